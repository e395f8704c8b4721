# SPDX-License-Identifier: Apache-2.0
"""YKUSH boards: each switch is what the board says, whatever happens to the board."""

from __future__ import annotations

import array
import errno
import re
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import usb.core
import yaml
from usb_boards import Ykush as Board
from usb_bus import Bridge, Bus

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter_driver_yepkit.driver import Ykush


@pytest.mark.parametrize(
    ("product", "ports", "report"),
    [(0xF2F7, 3, 64), (0x0042, 3, 6), (0xF11B, 3, 64), (0xF0CD, 1, 64)],
    ids=["ykush", "first", "ykush3", "xs"],
)
def test_every_model_switches_and_tells(bridge: Bridge, bus: Bus, product: int, ports: int, report: int) -> None:
    board = Board("YK1", product, ports, report)
    bus.plug(board.usb)
    with serve(Ykush(port="1")) as one, serve(Ykush(serial="YK1")) as all_:
        one.off()
        assert not board.ports[1] and all(board.ports[port] for port in range(2, ports + 1))
        assert (one.status(), all_.status()) == ("off", "off" if ports == 1 else "unknown")
        all_.off()
        assert not any(board.ports.values()) and all_.status() == "off"
        one.on()
        assert board.ports[1] and one.status() == "on"
        all_.on()
        assert all(board.ports.values()) and all_.status() == "on"
    assert bridge.claimed == {}
    assert set(bridge.kernel.values()) == {True}, "the kernel's driver did not get the board back"


def test_a_stuck_relay_is_no_success(bridge: Bridge, bus: Bus) -> None:
    board = Board("YK1")
    board.stuck = {2}
    bus.plug(board.usb)
    with serve(Ykush(serial="YK1", port=2, settle=0.2)) as power:
        with pytest.raises(DriverError, match="port 2 of YKUSH board .*still reports"):
            power.off()
        assert power.status() == "on"


def test_a_wrong_answer_is_no_state(bridge: Bridge, bus: Bus) -> None:
    board = Board("YK1")
    board.garbled = True
    bus.plug(board.usb)
    with serve(Ykush(port="1")) as power:
        with pytest.raises(DriverError, match="its answer begins with ff ff"):
            power.status()


def test_a_mute_board_ends_in_time_and_does_not_hold_up_others(bridge: Bridge, bus: Bus) -> None:
    mute, well = Board("MUTE"), Board("WELL")
    mute.mute = True
    bus.plug(mute.usb)
    bus.plug(well.usb)
    group = _group(Ykush(serial="MUTE", port="1", timeout=3.0), Ykush(serial="WELL", port="1"))
    with serve(group) as client:
        failed: list[BaseException] = []

        def ask() -> None:
            try:
                client.a.status()
            except DriverError as error:
                failed.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        client.b.off()
        assert asking.is_alive(), "the exporter stood still while the other board was silent"
        asking.join()
        assert len(failed) == 1 and "no answer within 3 s" in str(failed[0])


def test_a_late_answer_is_not_taken_for_the_next_one(bridge: Bridge, bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board keeps an answer that nobody was there to read, and gives it to whoever reads next."""
    bus.plug(Board("YK1").usb)
    kept: deque[bytes] = deque()
    late: list[bytes] = []

    def write(dev_handle: Any, ep: int, intf: int, data: Any, timeout: int) -> int:
        # Port 1 is stuck: it is on, whatever it is told. An answer repeats the command.
        answer = bytes([1, 0x11 if data[0] == 0x21 else data[0]]).ljust(64, b"\0")
        (kept if late else late).append(answer)
        return len(data)

    def read(dev_handle: Any, ep: int, intf: int, buff: Any, timeout: int) -> int:
        if not kept:
            raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT)
        buff[:] = array.array("B", kept.popleft())
        return len(buff)

    monkeypatch.setattr(bridge, "intr_write", write)
    monkeypatch.setattr(bridge, "intr_read", read)
    with serve(Ykush(port="1", settle=0.2)) as power:
        with pytest.raises(DriverError, match="no answer within"):
            power.off()
        kept.extend(late)
        with pytest.raises(DriverError, match="still reports"):
            power.off()
        assert power.status() == "on"


def test_a_default_that_the_board_does_not_take_is_told_to_the_log(
    bridge: Bridge, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board("YK1")
    board.stuck = {1}
    bus.plug(board.usb)
    with serve(Ykush(port="1", default="off", settle=0.2)) as power:
        assert power.status() == "on"
    assert any("could not be brought to its default" in record.message for record in caplog.records)


def test_a_board_that_hides_its_name_is_no_reason_against_the_one_that_was_named(
    bridge: Bridge, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, board = Board("HIDDEN"), Board("YK1")
    bus.plug(hidden.usb)
    bus.plug(board.usb)
    opened = bridge.open_device

    def refuse(dev: Any) -> Any:
        if dev is hidden.usb:
            raise usb.core.USBError("Access denied (insufficient permissions)", -3, errno.EACCES)
        return opened(dev)

    monkeypatch.setattr(bridge, "open_device", refuse)
    with serve(Ykush(serial="YK1", port="1")) as named, serve(Ykush(port="1")) as any_:
        named.off()
        assert not board.ports[1]
        with pytest.raises(DriverError, match="no permission"):
            any_.off()


def test_another_program_that_is_quicker_with_the_interface_is_no_failure(
    bridge: Bridge, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board("YK1")
    bus.plug(board.usb)

    def busy(dev_handle: Any, intf: int) -> None:
        raise usb.core.USBError("Resource busy", -6, errno.EBUSY)

    monkeypatch.setattr(bridge, "attach_kernel_driver", busy)
    with serve(Ykush(port="1")) as power:
        power.off()
    assert not board.ports[1]


def test_it_may_be_unplugged_and_plugged_in_again(bridge: Bridge, bus: Bus) -> None:
    board = Board("YK1")
    with serve(Ykush(serial="YK1", port="1")) as power:
        with pytest.raises(DriverError, match='YKUSH board "YK1" is not there .*plugged in'):
            power.on()
        bus.plug(board.usb)
        power.off()
        assert power.status() == "off"
        bus.unplug(board.usb)
        with pytest.raises(DriverError, match="is not there"):
            power.status()
        bus.plug(board.usb)
        power.on()
        assert board.ports[1]


def test_two_boards_need_a_serial_number(bridge: Bridge, bus: Bus) -> None:
    first, second = Board("YK1"), Board("YK2")
    bus.plug(first.usb)
    bus.plug(second.usb)
    with serve(Ykush(port="1")) as any_, serve(Ykush(serial="YK2", port="1")) as named:
        with pytest.raises(DriverError, match=r"2 devices are a YKUSH board \(YK1, YK2\): name one with serial:"):
            any_.off()
        named.off()
    assert (first.ports[1], second.ports[1]) == (True, False)
    with serve(Ykush(serial="YK3", port="1")) as absent:
        with pytest.raises(DriverError, match="connected: YK1, YK2"):
            absent.off()


def test_two_ports_of_a_board_are_used_at_the_same_time(bridge: Bridge, bus: Bus) -> None:
    board = Board("YK1")
    bus.plug(board.usb)
    with serve(_group(Ykush(serial="YK1", port="1"), Ykush(serial="YK1", port="2"))) as client:
        with ThreadPoolExecutor(2) as pool:
            turns = [pool.submit(_off_on_off, port) for port in (client.a, client.b)]
            for turn in turns:
                turn.result(30)
    assert board.ports == {1: False, 2: False, 3: True}


def test_without_permission_the_error_says_what_to_do(bridge: Bridge, bus: Bus) -> None:
    bus.plug(Board("YK1").usb)
    bridge.denied = True
    with serve(Ykush(port="1")) as power:
        with pytest.raises(DriverError, match="no permission to open it: give this user access with a udev rule"):
            power.on()


@pytest.mark.parametrize(("default", "expected"), [("on", True), ("off", False), ("keep", None), (False, False)])
def test_a_session_begins_with_the_default_of_the_configuration(
    bridge: Bridge, bus: Bus, default: Any, expected: bool | None
) -> None:
    board = Board("YK1")
    board.ports = {1: expected is False, 2: True, 3: False}
    bus.plug(board.usb)
    driver = Ykush(serial="YK1", port="1", default=default)
    assert board.commands == [], "constructing touched the board"
    with serve(driver) as power:
        assert power.status() == ("on" if board.ports[1] else "off")
    assert board.ports[1] is (expected if expected is not None else False)
    assert [command for command in board.commands if command < 0x20] == (
        [] if expected is None else [0x11 if expected else 0x01]
    )


def test_measuring_is_refused_and_says_so(bridge: Bridge, bus: Bus) -> None:
    bus.plug(Board("YK1").usb)
    with serve(Ykush(port="1")) as power, pytest.raises(DriverError, match="cannot measure"):
        next(power.read())


@pytest.mark.parametrize("wrong", [{"port": "4"}, {"port": 0}, {"default": "maybe"}, {"timeout": 0}])
def test_wrong_configuration_is_found_at_construction(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        Ykush(**wrong)


def test_a_port_the_model_does_not_have(bridge: Bridge, bus: Bus) -> None:
    bus.plug(Board("XS1", 0xF0CD, 1).usb)
    with serve(Ykush(port="2")) as power, pytest.raises(ValueError, match="YKUSH XS, which has no port 2"):
        power.on()


def test_the_power_of_the_drivers_document_works_as_written(bridge: Bridge, bus: Bus) -> None:
    document = (Path(__file__).parents[1] / "seeds" / "drivers.md").read_text()
    match = re.search(r"```yaml\n(.*?)```", document, re.DOTALL)
    assert match
    whole = yaml.safe_load(match[1])
    config = ExporterConfigV1Alpha1.model_validate({**whole, "export": {"power": whole["export"]["power"]}})
    board, other = Board("YK25838"), Board("another")
    bus.plug(other.usb)
    bus.plug(board.usb)
    with serve(config.instantiate()) as client:
        client.power.off()
        assert (board.ports, client.power.status()) == ({1: False, 2: True, 3: True}, "off")
        client.power.cycle(0)
        assert board.ports[1] and all(other.ports.values())


def _off_on_off(port: Any) -> None:
    port.off()
    port.on()
    port.off()


def _group(a: Ykush, b: Ykush) -> Any:
    from jumpstarter_driver_composite.driver import Composite

    return Composite(children={"a": a, "b": b})
