# SPDX-License-Identifier: GPL-3.0-or-later
"""Verify by screen: a play looks at what a real ustreamer shows, and its report shows what it saw."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from benches import Bench
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "video"))

from video_pictures import login_screen, panic_screen, save


def test_a_play_verifies_the_screen_and_its_report_shows_it(bench: Callable[..., Bench]) -> None:
    board = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    shown = save(login_screen("09:41"), board.folder / "shown.jpg")
    video = {"args": {"blank": str(shown), "device": "/dev/no-such-video"}}
    board.config("dut", {"video": {"type": "jumpstarter_driver_ustreamer.driver.UStreamer", "config": video}})
    (board.folder / "files").mkdir()
    save(login_screen("12:00"), board.folder / "files" / "login.png")
    save(panic_screen(), board.folder / "files" / "panic.png")
    look = {"require_online": False}
    played = board.run(
        [
            {
                "name": "Login screen",
                "jumpstarter.lab.screenshot": {"reference": "login.png", "path": "seen.jpg", "timeout": "10s", **look},
            },
            {
                "name": "Panic",
                "jumpstarter.lab.screenshot": {"reference": "panic.png", "timeout": 1, "interval": "500ms", **look},
                "ignore_errors": True,
            },
            {"name": "State", "jumpstarter.lab.call": {"driver": "video", "method": "state"}},
            {"name": "No signal", "jumpstarter.lab.screenshot": {}},
        ],
        callbacks="jumpstarter.lab.recording",
        JUMPSTARTER_REPORT_DIR=str(board.folder / "report"),
    )
    assert played.rc != 0, "the last task sees that there is no signal"
    assert "dut: screenshot: driver video gets no picture from the device (no signal)" in played.output
    (folder,) = (board.folder / "report").iterdir()
    login, panic = played.result("dut", 0), played.result("dut", 1)
    assert login["changed"] and login["similar"] and login["driver"] == "video"
    with Image.open(board.folder / "seen.jpg") as picture:
        assert picture.size == (640, 480)
    assert (panic["error_code"], panic["similar"]) == ("verify_failed", False)
    assert "the screen did not show panic.png within 1s" in panic["msg"]
    assert played.result("dut", 2)["value"]["width"] == 640
    page = (folder / "report.html").read_text()
    sources = re.findall(r"<img src='([^']+)'", page)
    assert len(sources) == 2 and "as wanted" in page and "not as wanted" in page
    for source in sources:
        with Image.open(folder / source) as picture:
            assert picture.size == (640, 480)
    board.wait_gone()
