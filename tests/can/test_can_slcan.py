# SPDX-License-Identifier: Apache-2.0
"""Protects the CAN driver on a serial adapter: its dialogue, its settings, and its loss."""

from __future__ import annotations

import os
import tty
from collections.abc import Iterator

import can
import pytest
from slcan_adapter import SlcanAdapter

from jumpstarter.common.exceptions import DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_can.driver import Can


@pytest.fixture
def adapter() -> Iterator[SlcanAdapter]:
    made = SlcanAdapter()
    try:
        yield made
    finally:
        made.unplug()


def driver(adapter: SlcanAdapter, **config: int) -> Can:
    return Can(channel=adapter.path, interface="slcan", options={"sleep_after_open": 0.01}, **config)


def test_the_session_opens_the_adapter_with_the_configured_bitrate_and_closes_it(adapter: SlcanAdapter) -> None:
    made = driver(adapter, bitrate=500000)
    assert adapter.commands == []  # nothing is touched by constructing the driver
    with serve(made) as bus:
        # Nobody called anything: what the device says from the start on shall be there.
        adapter.wait_for(b"O")
        assert (adapter.bitrate, adapter.open) == (500000, True)
        adapter.receive(b"t1232AABB")
        early = bus.recv(5)
        assert early is not None
        assert (early.arbitration_id, bytes(early.data), early.is_extended_id) == (0x123, b"\xaa\xbb", False)
        bus.send(can.Message(arbitration_id=0x1ABCDEF0, data=b"\x01"))
        bus.send(can.Message(arbitration_id=0x7FF, is_extended_id=False, is_remote_frame=True, dlc=3))
        adapter.wait_for(b"r7FF3")
        assert adapter.sent == [b"T1ABCDEF0101", b"r7FF3"]
    adapter.wait_until_closed()


def test_frames_sent_from_many_threads_do_not_mix_on_the_line(adapter: SlcanAdapter) -> None:
    with serve(driver(adapter, bitrate=125000)) as bus:
        tasks = [
            bus.send_periodic(can.Message(arbitration_id=ident, data=bytes(8), is_extended_id=False), 0.002)
            for ident in (0x100, 0x200, 0x300)
        ]
        bus.send_many([can.Message(arbitration_id=0x400, data=bytes(8), is_extended_id=False)] * 200)
        for task in tasks:
            task.stop()
        adapter.wait_for(b"t4008" + b"0" * 16)
    assert {len(line) for line in adapter.sent} == {5 + 16}
    assert sum(line.startswith(b"t400") for line in adapter.sent) == 200


def test_noise_on_the_line_is_skipped_and_the_bus_stays(
    adapter: SlcanAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    with serve(driver(adapter, bitrate=125000)) as bus:
        assert bus.channel_info
        adapter.wait_for(b"O")
        for noise in (b"t1x22AABB", b"t", b"T-1234567", b"\xff\xfe"):
            adapter.receive(noise)
        adapter.receive(b"t1231AA")
        assert bus.recv(5).arbitration_id == 0x123
    assert "skipped what is no frame" in caplog.text


def test_an_adapter_that_takes_nothing_is_an_error_also_without_a_timeout(
    adapter: SlcanAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jumpstarter_driver_can.bus._SERIAL_SEND", 0.2)
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    try:
        made = Can(channel=os.ttyname(theirs), interface="slcan", bitrate=125000, options={"sleep_after_open": 0})
        with serve(made) as bus, pytest.raises(DriverError, match="was not sent: Could not write"):
            bus.send_many([can.Message(arbitration_id=1, data=bytes(8))] * 2000)
    finally:
        os.close(ours)
        os.close(theirs)


def test_an_adapter_that_is_pulled_out_is_an_error_and_the_next_one_is_used(adapter: SlcanAdapter) -> None:
    made = driver(adapter, bitrate=125000)
    with serve(made) as bus:
        assert "opened" in bus.channel_info or bus.channel_info
        adapter.unplug()
        with pytest.raises(DriverError, match="reading failed") as lost:
            bus.recv(10)
        assert lost.value.code == "UNAVAILABLE" and adapter.path in str(lost.value)
        with pytest.raises(DriverError, match="cannot be opened"):
            bus.send(can.Message(arbitration_id=1))
        second = SlcanAdapter()
        try:
            made._shared.settings.arguments["channel"] = second.path  # as udev's link would lead to it
            bus.send(can.Message(arbitration_id=1, is_extended_id=False))
            second.wait_for(b"t0010")
            second.receive(b"t0020")
            assert bus.recv(5).arbitration_id == 2
        finally:
            made._shared.close()
            second.unplug()
