# SPDX-License-Identifier: Apache-2.0
"""Protects the contract with probe-rs, which cannot be had here: a fake of that name stands in for program and chip."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.exceptions import ArgumentError, ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter_driver_probe_rs.driver import ProbeRs


class Tool:
    """The fake program, and the chip it has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "probe-rs"
        source = Path(__file__).with_name("fake_probe_rs.py").read_text()
        self.path.write_text(source.replace("#!/usr/bin/env python3", f"#!{sys.executable} -IS", 1))
        self.path.chmod(0o755)
        (folder / "memory").write_bytes(bytes(range(256)) * 256)
        (folder / "flash").write_bytes(b"\xff" * (256 << 10))

    def fault(self, text: str) -> None:
        (self.folder / "fault").write_text(text)

    @property
    def runs(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]

    @property
    def flash(self) -> bytes:
        return (self.folder / "flash").read_bytes()


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    folder = tmp_path / "tool"
    folder.mkdir()
    return Tool(folder)


def driver(tool: Tool, **config: Any) -> ProbeRs:
    folder = tool.folder.parent
    settings = {
        "probe_rs_path": str(tool.path), "chip": "STM32F401RE", "state_dir": str(folder / "state"),
        "staging_dir": str(folder / "staged"),
    }  # fmt: skip
    return ProbeRs(**{**settings, **config})


@pytest.fixture
def elf(tmp_path: Path) -> Path:
    path = tmp_path / "app.elf"
    path.write_bytes(b"\x7fELF" + bytes(range(200)))
    return path


def test_memory_is_read_in_words_of_every_width(tool: Tool) -> None:
    with serve(driver(tool)) as client:
        assert client.read(8, 0x20000000, 3) == [0, 1, 2]
        assert client.read(16, 0x20000002, 2) == [0x0302, 0x0504]
        assert client.read(32, 0x20000000, 1) == [0x03020100]
        assert client.read(64, 0x20000008, 1) == [0x0F0E0D0C0B0A0908]
        assert client.call("read", "b32", "0x20000000", "2") == ["03020100", "07060504"], "as 0.9 sends and gets it"


def test_options_travel_by_variables_and_secrets_do_not(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_TOKEN", "hunter2")
    monkeypatch.setenv("SECRET", "hunter2")
    config = {"probe": "1366:1015", "protocol": "SWD", "connect_under_reset": True, "speed": 4000}
    with serve(driver(tool, **config)) as client:
        assert "Debug Port" in client.info()
        client.reset()
    assert [run["args"] for run in tool.runs] == [["info"], ["reset"]]
    assert tool.runs[0]["env"] == {
        "PROBE_RS_NON_INTERACTIVE": "true", "PROBE_RS_PROBE": "1366:1015", "PROBE_RS_CHIP": "STM32F401RE",
        "PROBE_RS_PROTOCOL": "swd", "PROBE_RS_CONNECT_UNDER_RESET": "true", "PROBE_RS_SPEED": "4000",
    }  # fmt: skip


def test_programs_are_written_and_read_back(tool: Tool, elf: Path) -> None:
    with serve(driver(tool)) as client:
        assert "Finished" in client.download_file(elf)
        assert tool.flash.startswith(elf.read_bytes())
        client.erase()
        assert tool.flash == b"\xff" * len(tool.flash)
        result = client.flash(elf)
        assert (result.changed, result.verified) == (True, True)
        assert tool.flash.startswith(elf.read_bytes())
    assert "--verify" in tool.runs[-1]["args"]


def test_formats_are_known_by_their_content(tool: Tool, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with serve(driver(tool, base_address=0x08004000, verify=False)) as client:
        for content, wanted in ((b":10000000", "hex"), (b"UF2\nxxxx", "uf2"), (b"\0\1\2\3", "bin")):
            image.write_bytes(content)
            assert client.flash(image).verified is False
            args = tool.runs[-1]["args"]
            assert args[args.index("--binary-format") + 1] == wanted and "--verify" not in args
        assert tool.flash[0x4000:0x4004] == b"\0\1\2\3"
    with serve(driver(tool)) as client, pytest.raises(ImagingError, match="set base_address; nothing was written"):
        client.flash(image)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("no-probe", "Could not open probe: No debug probes were found."),
        ("no-chip", "unsuccessful.: An ARM specific error occurred.: Target device did not respond."),
    ],
)
def test_failure_is_an_error_that_names_its_cause(tool: Tool, elf: Path, fault: str, words: str) -> None:
    tool.fault(fault)
    with serve(driver(tool)) as client:
        for call in (client.info, client.reset, client.erase, lambda: client.read(32, 0x20000000, 1)):
            with pytest.raises(DriverError, match=words):
                call()
        with pytest.raises(DriverError, match=words):
            client.download_file(elf)
        with pytest.raises(ImagingError, match=words):
            client.flash(elf)
        result = CliRunner().invoke(client.cli(), ["info"])
        assert result.exit_code != 0


def test_damaged_writes_are_an_error(tool: Tool, elf: Path) -> None:
    tool.fault("bad-write")
    with serve(driver(tool)) as client, pytest.raises(ImagingError, match="verification failed.*is not known"):
        client.flash(elf)


def test_answers_that_are_no_words_are_an_error(tool: Tool) -> None:
    tool.fault("garbage")
    with serve(driver(tool)) as client, pytest.raises(DriverError, match="asked for 4 words of 32 bits"):
        client.read(32, 0x20000000, 4)
    tool.fault("")
    with serve(driver(tool)) as client, pytest.raises(DriverError, match="bus fault at 0x40000000"):
        client.read(32, 0x40000000, 1)
    with serve(driver(tool)) as client, pytest.raises(DriverError, match="asked for 4 words"):
        client.read(32, 0x2000FFF8, 4)


def test_a_tool_that_hangs_is_ended(tool: Tool) -> None:
    tool.fault("hang")
    with serve(driver(tool, timeout=0.5)) as client:
        started = time.monotonic()
        with pytest.raises(DriverError, match="probe-rs was ended after 0.5 s") as caught:
            client.info()
        assert caught.value.code == "DEADLINE_EXCEEDED"
        assert time.monotonic() - started < 60  # it hangs for ten minutes


def test_missing_tool_is_named(tool: Tool, elf: Path) -> None:
    with serve(driver(tool, probe_rs_path="no-such-probe-rs")) as client:
        with pytest.raises(DriverError, match="no-such-probe-rs.*not installed"):
            client.info()
        with pytest.raises(ImagingError, match="not installed.*nothing was written"):
            client.flash(elf)


def test_commands_of_j(tool: Tool, elf: Path) -> None:
    with serve(driver(tool)) as client:
        runner = CliRunner()
        assert runner.invoke(client.cli(), ["read", "16", "0x20000002", "2"]).output == "0302 0504\n"
        assert "Finished" in runner.invoke(client.cli(), ["download", str(elf)]).output
        for command in ("info", "reset", "erase"):
            assert runner.invoke(client.cli(), [command]).exit_code == 0
        assert runner.invoke(client.cli(), ["flash", str(elf)]).exit_code == 0
        assert runner.invoke(client.cli(), ["read", "16", "here", "2"]).exit_code == 2


def test_wrong_arguments_are_named(tool: Tool, elf: Path) -> None:
    with serve(driver(tool)) as client:
        for width, address, words in ((12, 0, 1), (8, -1, 1), (8, 0, 0)):
            with pytest.raises(ArgumentError, match="read:"):
                client.read(width, address, words)
        for args in (("b12", "0", "1"), ("b8", "x", "1"), ("b8", "0", "99999999"), ("b8", "-1", "1")):
            with pytest.raises(DriverInvalidArgument, match="read:"):
                client.call("read", *args)
        with pytest.raises(ImagingError, match='only "chip"'):
            client.flash(elf, target="0x0")
    assert not (tool.folder / "log").exists(), "probe-rs was not even asked"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"probe": "jlink"}, "VID:PID"),
        ({"protocol": "spi"}, "neither swd nor jtag"),
        ({"speed": 0}, "speed"),
        ({"timeout": 0}, "timeout"),
        ({"probe_rs_path": ""}, "probe_rs_path"),
        ({"base_address": -1}, "base_address"),
    ],
)
def test_wrong_configuration_is_found_at_construction(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ProbeRs(**config)
