# SPDX-License-Identifier: Apache-2.0
"""The screenshot operation: what is taken, kept and compared, with a real ustreamer and a real QEMU as screens."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, RunningAgent, agent_base
from PIL import Image

from jumpstarter_agent.errors import AgentError
from jumpstarter_agent.ops.screenshot import _compare, _may_pass, _Wish
from jumpstarter_agent.screen import Picture, _decode, needs
from jumpstarter_driver_vnc.rfb import RfbError, RfbRefused

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))

from video_pictures import login_screen, panic_screen, save

pytestmark = pytest.mark.xdist_group("agent-screenshot")  # one agent and one exporter for all

UBOOT = "/usr/lib/u-boot/qemu_arm64/u-boot.bin"


class Screens:
    """An exporter with two ustreamers, a virtual machine and an echo; and the host that reaches it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shown = save(login_screen("09:41"), folder / "shown.jpg")
        self.login = save(login_screen("12:00"), folder / "login.png")
        self.panic = save(panic_screen(), folder / "panic.png")
        video = {"type": "jumpstarter_driver_ustreamer.driver.UStreamer"}
        machine = {"arch": "aarch64", "mem": "128M", "smp": 1, "cloud_init": False, "powerdown_timeout": 0}
        export: dict[str, Any] = {
            "video": {**video, "config": {"args": {"blank": str(self.shown), "device": "/dev/no-such"}}},
            "echo": {"type": "jumpstarter_driver_network.driver.EchoNetwork"},
            "qemu": {
                "type": "jumpstarter_driver_qemu.driver.Qemu",
                "config": {**machine, "default_partitions": {"bios": UBOOT}},
            },
        }
        path = folder / "screens.yaml"
        path.write_text(json.dumps({"metadata": {"namespace": "default", "name": "screens"}, "export": export}))
        self.host = {"name": "screens", "reach": {"exporter_config": str(path)}}


@pytest.fixture(scope="module")
def agent() -> Iterator[RunningAgent]:
    """One agent and one exporter for all: nothing here changes what they are."""
    with agent_base() as base:
        agent = RunningAgent(base)
        try:
            yield agent
        finally:
            agent.close()


@pytest.fixture(scope="module")
def screens(tmp_path_factory: pytest.TempPathFactory, agent: RunningAgent) -> Screens:
    screens = Screens(tmp_path_factory.mktemp("screens"))
    agent.ask("recording", None, event="run_start", data={"dir": str(screens.folder / "report")})
    return screens


def test_a_picture_is_kept_as_it_came_and_in_the_report(agent: RunningAgent, screens: Screens, tmp_path: Path) -> None:
    report = screens.folder / "report"
    path = tmp_path / "now.jpg"
    value = agent.ask("screenshot", screens.host, driver="video", path=str(path), require_online=False)
    data = path.read_bytes()
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (640, 480))
    assert (value["changed"], value["width"], value["height"], value["format"]) == (True, 640, 480, "jpeg")
    assert (value["sha256"], value["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    assert value["online"] is False and "similar" not in value
    kept = Path(value["recording"])
    assert kept == report / "screens" / "screenshot-001.jpg" and kept.read_bytes() == data
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    again = agent.ask("screenshot", screens.host, driver="video", path=str(path), require_online=False)
    assert again["changed"] is False and again["screenshot"] == "screenshot-002.jpg"
    png = agent.ask("screenshot", screens.host, driver="video", path=str(tmp_path / "a.png"), require_online=False)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and png["format"] == "png"
    quiet = agent.ask("screenshot", screens.host, driver="video", require_online=False, task={"no_log": True})
    assert "recording" not in quiet and len(list((report / "screens").glob("screenshot-*"))) == 3


def test_check_mode_looks_and_writes_nothing(agent: RunningAgent, screens: Screens, tmp_path: Path) -> None:
    path = tmp_path / "now.jpg"
    value = agent.ask("screenshot", screens.host, driver="video", path=str(path), require_online=False, check=True)
    assert value["changed"] is True and value["width"] == 640 and not path.exists()


def test_a_source_without_signal_is_no_success(agent: RunningAgent, screens: Screens) -> None:
    with pytest.raises(AgentFailure, match="video gets no picture from the device .no signal.") as caught:
        agent.ask("screenshot", screens.host, driver="video")
    assert caught.value.code == "unavailable"


def test_what_is_shown_is_compared(agent: RunningAgent, screens: Screens, tmp_path: Path) -> None:
    def compare(reference: Path, **args: Any) -> dict[str, Any]:
        return agent.ask(
            "screenshot", screens.host, driver="video", require_online=False, reference=str(reference), **args
        )

    value = compare(screens.login)
    assert value["similar"] is True and value["distance"] <= 6 and value["bits"] == 64 and value["attempts"] == 1
    assert compare(screens.login, hash="wavelet", hash_size=16, tolerance=40)["bits"] == 256
    path = tmp_path / "seen.png"
    with pytest.raises(AgentFailure, match=r"did not show panic\.png: \d+ of 64 bits of the perceptual hash") as caught:
        compare(screens.panic, path=str(path))
    assert caught.value.code == "verify_failed"
    assert caught.value.data["distance"] > 10 and caught.value.data["similar"] is False
    with Image.open(path) as picture:
        assert picture.size == (640, 480), "what was shown instead is what one wants to see"
    region = {"left": 180, "top": 120, "width": 280, "height": 240}
    assert compare(screens.login, region=region, tolerance=2)["similar"] is True
    with pytest.raises(AgentFailure, match="differ"):
        compare(screens.panic, region=region, tolerance=2)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ({"driver": "nope"}, "not_found", '"nope"'),
        ({"driver": "qemu.power"}, "invalid", "qemu.power has no screen"),
        ({"driver": "echo", "timeout": "10ms"}, "timeout", "no complete picture within 1 s"),
        ({}, "invalid", "several screens, say which by 'driver': qemu, video"),
        ({"driver": "video", "path": "/tmp/x.gif"}, "invalid", r"ends in \.jpg, \.jpeg, \.png"),
        ({"driver": "video", "path": "/no/such/x.png"}, "invalid", "there is no directory /no/such"),
        ({"driver": "video", "reference": "/no/such.png"}, "not_found", "cannot be read: no such file"),
        ({"driver": "video", "hash": "md5"}, "invalid", "choose one of perceptual"),
        ({"driver": "video", "region": {"left": -1, "width": 1, "height": 1}}, "invalid", "left is -1"),
        ({"driver": "video", "nonsense": 1}, "invalid", "unknown argument 'nonsense'"),
    ],
)
def test_what_makes_no_sense_is_named(
    agent: RunningAgent, screens: Screens, args: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(AgentFailure, match=words) as caught:
        agent.ask("screenshot", screens.host, **args)
    assert caught.value.code == code


def test_comparisons_that_make_no_sense_fail_before_the_device_is_asked(
    agent: RunningAgent, screens: Screens, tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for args, words in (
        ({"reference": str(text)}, "is no picture"),
        ({"reference": str(screens.login), "hash_size": 1}, "hash_size is 1"),
        ({"reference": str(screens.login), "tolerance": -1}, "'tolerance' is -1"),
        (
            {"reference": str(screens.login), "region": {"left": 600, "width": 100, "height": 9}},
            "is outside of reference",
        ),
    ):
        with pytest.raises(AgentFailure, match=words):
            agent.ask("screenshot", screens.host, driver="qemu", **args)


def test_a_screen_that_changes_its_size_is_looked_at_again_and_a_refused_password_is_not_tried_again() -> None:
    wish = _Wish(
        reference=Image.new("RGB", (9, 9)),
        name="logo.png",
        region=(800, 0, 100, 9),
        hash_name="perceptual",
        hash_size=8,
        tolerance=0,
    )
    with pytest.raises(AgentError, match="is outside of the device's screen, which has 640x480") as caught:
        _compare(Picture(Image.new("RGB", (640, 480)), None, True), wish, 1)
    assert _may_pass(caught.value), "text mode comes before the graphics"
    assert _may_pass(RfbError("closed")) and not _may_pass(RfbRefused("wrong password"))


def test_what_a_device_sends_does_not_choose_its_decoder() -> None:
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", bomb()):
        with pytest.raises(AgentError, match="driver video gave .* that are no picture") as caught:
            _decode(data, "video")
        assert caught.value.code == "driver_error"


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 4 billion pixels."""
    out = io.BytesIO()
    Image.new("L", (1, 1)).save(out, "PNG")
    header = struct.pack(">4sII5s", b"IHDR", 1 << 16, 1 << 16, b"\x08\0\0\0\0")
    return out.getvalue()[:12] + header + struct.pack(">I", zlib.crc32(header)) + out.getvalue()[33:]


def test_a_missing_extra_gives_the_command_that_installs_it() -> None:
    with pytest.raises(AgentError, match=r"No module named 'imagehash'; .* pip install 'jumpstarter-lab\[imagehash\]'"):
        with needs("jumpstarter_imagehash"):
            raise ModuleNotFoundError("No module named 'imagehash'")


def test_a_machine_is_watched_until_its_screen_is_as_wanted(
    agent: RunningAgent, screens: Screens, tmp_path: Path
) -> None:
    """It is off at first: there is no picture; then QEMU's own text is there."""
    host = screens.host
    agent.ask("power", host, driver="qemu.power", state="on")
    path = tmp_path / "wanted.png"
    first = agent.ask("screenshot", host, driver="qemu", path=str(path))
    assert (first["width"], first["height"], first["driver"], first["format"]) == (640, 480, "qemu", "png")
    agent.ask("power", host, driver="qemu.power", state="off")
    with pytest.raises(AgentFailure, match="the virtual machine is off"):
        agent.ask("screenshot", host, driver="qemu.vnc")
    wanted = {"driver": "qemu", "reference": str(path), "timeout": "50s", "interval": "50ms", "tolerance": 0}
    with agent.request("screenshot", host, **wanted) as watching:
        seen = watching.frame()
        assert seen is not None and "no picture yet" in json.dumps(seen), seen
        switch = threading.Thread(target=lambda: agent.ask("power", host, driver="qemu.power", state="on"))
        switch.start()
        value = watching.answer()
        switch.join(30)
    assert value["similar"] is True and value["attempts"] > 1
    with pytest.raises(AgentFailure, match=r"did not show panic\.png within 3s \(\d+ pictures\)"):
        agent.ask(
            "screenshot",
            host,
            driver="qemu",
            reference=str(screens.panic),
            timeout="3s",
            interval="20ms",
            tolerance=2,
        )
