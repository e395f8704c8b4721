# SPDX-License-Identifier: Apache-2.0
"""Protects the CAN driver and its client: a bus of python-can for whoever takes one, on a real transport, at speed."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import can
import isotp
import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter_driver_can.backlog import Backlog, Entry
from jumpstarter_driver_can.client import CanClient
from jumpstarter_driver_can.common import CanMessage, IsoTpAddress
from jumpstarter_driver_can.cyclic import CyclicSend
from jumpstarter_driver_can.driver import Can, IsoTpPython
from jumpstarter_driver_can.packing import pack, unpack
from jumpstarter_driver_can.receiver import Receiver
from jumpstarter_testing import eventually

channels = itertools.count()


def virtual() -> dict[str, Any]:
    return {"channel": f"test-{next(channels)}", "interface": "virtual"}


def until(condition: Callable[[], Any], timeout: float) -> None:
    def check() -> None:
        assert condition()

    eventually(check, timeout)


def standard(ident: int, data: bytes = b"") -> can.Message:
    return can.Message(arbitration_id=ident, data=data, is_extended_id=False)


def without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an exporter of Jumpstarter 0.9: nothing but the calls it has."""
    monkeypatch.setattr(CanClient, "has_method", lambda self, name: False)


# On a real transport ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", [True, False])
def test_frames_go_to_another_process_and_come_back(peer: Any, streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not streams:
        without_streams(monkeypatch)
    with serve(Can(**peer.config)) as bus:
        bus.set_filters([{"can_id": 0x708, "can_mask": 0x7FF, "extended": False}])
        bus.send(standard(0x700, b"\x01\x02\x03"))
        answer = bus.recv(10)
    assert answer is not None
    assert (answer.arbitration_id, bytes(answer.data), answer.is_extended_id) == (0x708, b"\x03\x02\x01", False)


def test_datagrams_that_are_no_frames_do_not_end_the_bus(multicast: Any) -> None:
    """Anyone may send to a multicast group."""
    driver, link = Can(**multicast.config), IsoTpPython(**multicast.config, address=IsoTpAddress(txid=1, rxid=2))
    with serve(driver) as bus, serve(link) as tp:
        tp.start()
        assert bus.channel_info
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 0)
            for data in (b"\xff", b"\x07", b"", bytes(300)):
                stranger.sendto(data, (multicast.group, multicast.port))
        until(tp.errors, 5)
        config = multicast.config
        with can.Bus(channel=config["channel"], interface=config["interface"], **config["options"]) as other:
            other.send(standard(2, b"\x01A"))
            assert bus.recv(5).arbitration_id == 2
            assert tp.recv(True, 5) == b"A"


def test_a_burst_arrives_complete_and_in_order(peer: Any) -> None:
    with serve(Can(**peer.config)) as bus:
        bus.set_filters([{"can_id": 0x601, "can_mask": 0x7FF, "extended": False}])
        bus.send(standard(0x600, struct.pack(">H", 200)))
        numbers = [struct.unpack(">I", msg.data)[0] for msg in iter(lambda: bus.recv(2), None)]
        assert numbers == list(range(200))
        assert bus.dropped == 0


def test_commands_in_the_notation_of_can_utils(peer: Any) -> None:
    run = CliRunner()
    with serve(Can(**peer.config)) as bus:
        done = run.invoke(bus.cli(), ["send", "700#0A.0B.0C", "1F334455#11", "123#R4"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        done = run.invoke(bus.cli(), ["recv", "708", "-t", "10"], catch_exceptions=False)
        assert (done.exit_code, done.output) == (0, "708#0C0B0A\n")
        done = run.invoke(bus.cli(), ["recv", "555", "-t", "0.1"])
        assert done.exit_code == 1 and "0 of 1 frames within 0.1 s" in done.output
        for wrong, why in {"12#00": "is no frame", "123#0": "is no data", "FFF#00": "larger than 7FF"}.items():
            done = run.invoke(bus.cli(), ["send", wrong])
            assert done.exit_code == 2 and why in done.output, done.output
        assert run.invoke(bus.cli(), ["state"]).output.startswith("active CAN_FD ")


def test_dump_prints_what_comes_from_now_on(peer: Any) -> None:
    with serve(Can(**peer.config)) as bus, serve(Can(**peer.config)) as other:
        other.send(standard(0x111))  # before: not for dump
        until(lambda: bus.call("exchange", [], [{"id": "111"}], 1.0)["frames"], 10)
        sender = other.send_periodic(can.Message(arbitration_id=0x1F334455, data=b"\xde\xad"), 0.02)
        done = CliRunner().invoke(bus.cli(), ["dump", "-n", "2", "-T", "10"], catch_exceptions=False)
        sender.stop()
    lines = done.output.splitlines()
    assert len(lines) == 2 and all(line.split()[-4:] == ["1F334455", "[2]", "DE", "AD"] for line in lines), lines


# The facade ---------------------------------------------------------------------------------------------------


def test_properties_are_those_of_the_exporters_bus() -> None:
    driver = Can(**virtual())
    with serve(driver) as bus:
        real = driver._shared.get()
        assert (bus.channel_info, bus.state, bus.protocol) == (real.channel_info, real.state, real.protocol)
        with pytest.raises(NotImplementedError, match="setting the state to PASSIVE"):
            bus.state = can.BusState.PASSIVE
        with pytest.raises(NotImplementedError, match="flushing"):
            bus.flush_tx_buffer()


@pytest.mark.parametrize("streams", [True, False])
def test_notifier_reader_iteration_and_redirection(streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not streams:
        without_streams(monkeypatch)
    one, two = virtual(), virtual()
    with serve(Can(**one)) as a, serve(Can(**one)) as b, serve(Can(**two)) as c, serve(Can(**two)) as d:
        for bus in (a, b, c, d):
            assert bus.channel_info  # all are open before somebody sends
        reader = can.BufferedReader()
        with can.Notifier(b, [reader, can.RedirectReader(c)], timeout=0.1):
            a.send(standard(0x123, b"x"))
            seen = reader.get_message(5)
            assert seen is not None and seen.arbitration_id == 0x123
            passed = d.recv(5)
            assert passed is not None and bytes(passed.data) == b"x"
        for number in range(3):
            a.send(standard(number))
        assert [msg.arbitration_id for msg in itertools.islice(b, 3)] == [0, 1, 2]


@pytest.mark.parametrize("streams", [True, False])
def test_filters_can_be_changed_while_frames_come(streams: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not streams:
        without_streams(monkeypatch)
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        b.set_filters([{"can_id": 0x10, "can_mask": 0x7F0}])
        for ident in (0x20, 0x12, 0x21, 0x13):
            a.send(standard(ident))
        first = b.recv(5)
        assert first is not None and first.arbitration_id == 0x12
        b.set_filters([{"can_id": 0x31, "can_mask": 0x7FF, "extended": False}])
        a.send(can.Message(arbitration_id=0x31, is_extended_id=True))
        a.send(standard(0x31))
        second = b.recv(5)
        assert second is not None and (second.arbitration_id, second.is_extended_id) == (0x31, False)
        assert b.recv(0.1) is None


def test_all_kinds_of_frames_survive_the_way() -> None:
    config = virtual()
    frames = [
        can.Message(arbitration_id=0x1FFFFFFF, data=bytes(range(8))),
        can.Message(arbitration_id=0x7FF, is_extended_id=False, is_remote_frame=True, dlc=5),
        can.Message(arbitration_id=1, is_fd=True, bitrate_switch=True, error_state_indicator=True, data=bytes(64)),
        can.Message(arbitration_id=0, is_extended_id=False),
    ]
    for frame in frames:
        (again,) = unpack(pack(frame))
        assert again.equals(frame, timestamp_delta=None, check_channel=False)
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        for frame in frames:
            a.send(frame)
        assert a.send_many(frames) == len(frames)
        for frame in frames * 2:
            got = b.recv(5)
            assert got is not None
            assert got.equals(frame, timestamp_delta=None, check_channel=False, check_direction=False), (got, frame)


def test_two_clients_of_one_bus_get_all_frames_each() -> None:
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        stream = b.streamingcall("frames")
        next(stream)  # subscribed
        for number in range(100):
            a.send(standard(number))
        assert [b.recv(5).arbitration_id for _ in range(100)] == list(range(100))
        other: list[int] = []
        while len(other) < 100:
            other += [msg.arbitration_id for msg in unpack(next(stream)["frames"])]
        stream.close()
        assert other == list(range(100))


def test_what_came_before_the_first_recv_is_not_lost() -> None:
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        a.send(standard(1))
        a.send(standard(2))
        assert [b.recv(5).arbitration_id, b.recv(5).arbitration_id] == [1, 2]
        b.shutdown()


def test_iso_tp_over_the_client_as_its_bus() -> None:
    config = virtual()
    address = isotp.Address(rxid=1, txid=2), isotp.Address(rxid=2, txid=1)
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert a.channel_info and b.channel_info
        with can.Notifier(a, [], timeout=0.1) as left, can.Notifier(b, [], timeout=0.1) as right:
            stacks = [
                isotp.NotifierBasedCanStack(bus, notifier, address=where, params={"blocking_send": True})
                for bus, notifier, where in zip((a, b), (left, right), address, strict=True)
            ]
            for stack in stacks:
                stack.start()
            try:
                message = bytes(range(256)) * 8
                stacks[0].send(message, send_timeout=30)
                assert stacks[1].recv(block=True, timeout=10) == message
            finally:
                for stack in stacks:
                    stack.stop()


# Periodic -----------------------------------------------------------------------------------------------------


def test_periodic_frames_are_sent_by_the_exporter_until_stopped() -> None:
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        task = a.send_periodic(standard(0x55, b"\x01"), 0.02, autostart=False)
        assert b.recv(0.1) is None
        task.start()
        times = [b.recv(5).timestamp for _ in range(10)]
        assert 0.1 < times[-1] - times[0] < 1
        task.modify_data(standard(0x55, b"\x02"))
        until(lambda: bytes(b.recv(1).data) == b"\x02", 5)
        task.stop()
        while b.recv(0.2) is not None:
            pass
        task.start()  # again: a stopped task is not forgotten
        assert b.recv(5) is not None
        limited = a.send_periodic(standard(0x56), 0.01, duration=0.05)
        until(lambda: a.call("_task_status", limited.uuid)["running"] is False, 5)
        assert a.call("_task_status", limited.uuid)["sent"] == 5


def test_periodic_frames_of_one_session_end_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Can(**virtual())
    with serve(driver) as bus:
        task = bus.send_periodic(standard(1), 0.01)
        driver.reset()
        assert "can send" not in " ".join(thread.name for thread in threading.enumerate())
        with pytest.raises(DriverError, match="no periodic task"):
            task.stop()
        bus._periodic_tasks.clear()


def test_a_modifier_changes_each_frame_before_it_is_sent() -> None:
    config = virtual()

    def count(msg: can.Message) -> None:
        msg.data[0] += 1

    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        task = a.send_periodic(standard(0x55, b"\x00"), 0.02, modifier_callback=count)
        assert [b.recv(5).data[0] for _ in range(3)] == [1, 2, 3]
        task.stop()


def test_periodic_sending_that_failed_is_told_when_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Can(**virtual())
    with serve(driver) as bus:
        real = driver._shared.get()
        task = bus.send_periodic(standard(1), 0.01)
        monkeypatch.setattr(real, "send", _refuse)
        until(lambda: bus.call("_task_status", task.uuid)["running"] is False, 5)
        with pytest.raises(DriverError, match="had ended after .* frames: .*No buffer space"):
            task.stop()


def _refuse(msg: can.Message, timeout: float | None = None) -> None:
    raise can.CanOperationError("No buffer space available")


def test_wrong_periodic_tasks_are_refused() -> None:
    with serve(Can(**virtual())) as bus:
        for args, why in (
            (([], 0.1), "list of frames is empty"),
            (([{"arbitration_id": 1}], 0), "period is 0 s"),
            (([{"arbitration_id": 1}, {"arbitration_id": 2}], 1), "same id"),
        ):
            with pytest.raises(DriverInvalidArgument, match=why):
                bus.call("_send_periodic_internal", *args)
        with pytest.raises(DriverInvalidArgument, match="no periodic task"):
            bus.call("_stop_task", "6f0d5d1c-5b0e-5c5e-9d53-1a9c3f6f4b7e")


# Failures -----------------------------------------------------------------------------------------------------


def test_a_frame_the_interface_refuses_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Can(**virtual())
    with serve(driver) as bus:
        monkeypatch.setattr(driver._shared.get(), "send", _refuse)
        with pytest.raises(DriverError, match="frame 12 was not sent: No buffer space") as caught:
            bus.send(standard(0x12))
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(DriverError, match=r"\(0 of 3 frames were sent\)"):
            bus.send_many([standard(1)] * 3)


def test_what_cannot_be_a_frame_is_refused() -> None:
    with serve(Can(**virtual())) as bus:
        with pytest.raises(DriverInvalidArgument, match="DLC was 12"):
            bus.call("send", {"arbitration_id": 1, "data": "AAAAAAAAAAAAAAAA", "dlc": 12})
        with pytest.raises(DriverInvalidArgument, match="arbitration_id"):
            bus.call("send", {"data": "AA=="})


def test_bad_configurations_are_found_without_opening_anything() -> None:
    for config, why in (
        ({"interface": "no-such"}, '"no-such" is unknown'),
        ({"interface": "virtual", "bitrate": -5}, "bitrate is -5"),
        ({"interface": "virtual", "options": {"bitrate": 5}}, "options.bitrate is a field of its own"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            Can(channel=1, **config)


def test_a_bus_that_cannot_be_opened_leaves_the_session_usable_and_is_tried_again() -> None:
    driver = Can(channel="no-such-interface", interface="socketcan")
    with serve(driver) as bus:
        for _ in range(2):
            with pytest.raises(DriverError, match="socketcan channel no-such-interface cannot be opened") as caught:
                bus.send(standard(1))
            assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(DriverError, match="cannot be opened"):
            bus.recv(1)


def test_settings_reach_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    real = can.Bus

    def note(**kwargs: Any) -> can.BusABC:
        seen.update(kwargs)
        return real(channel=kwargs["channel"], interface=kwargs["interface"])

    monkeypatch.setattr(can, "Bus", note)
    config = virtual()
    with serve(Can(**config, bitrate=250000, fd=True, data_bitrate=2000000, options={"app_name": "x"})) as bus:
        assert bus.channel_info
    assert seen == {**config, "bitrate": 250000, "fd": True, "data_bitrate": 2000000, "app_name": "x"}


# Threads, speed, slow readers ---------------------------------------------------------------------------------


def test_threads_end_with_the_session() -> None:
    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith(("can ", "Cyclic", "Notif"))]

    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        a.send_periodic(standard(1), 600)  # in its pause when the session ends
        assert b.recv(5) is not None
        assert ours()
        began = time.monotonic()
    assert ours() == []
    assert time.monotonic() - began < 60


def test_whoever_waits_for_a_frame_learns_that_the_session_is_over() -> None:
    ended: list[BaseException] = []

    def wait(bus: CanClient) -> None:
        try:
            bus.recv()
        except can.CanError as error:
            ended.append(error)

    with serve(Can(**virtual())) as bus:
        waiting = threading.Thread(target=wait, args=(bus,))
        waiting.start()
        until(lambda: bus._receiver._task is not None, 5)
    waiting.join(10)
    assert not waiting.is_alive() and "was shut down" in str(ended[0])


def test_a_receiver_that_waits_holds_up_nobody() -> None:
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.channel_info
        waiting = threading.Thread(target=lambda: b.call("_recv_internal", 120))
        waiting.start()
        began = time.monotonic()
        for _ in range(20):
            b.send(standard(1))
        assert time.monotonic() - began < 60
        a.send(standard(2))  # ends the wait
        waiting.join(10)
        assert not waiting.is_alive()


def test_a_slow_reader_is_told_what_it_missed() -> None:
    async def read() -> None:
        backlog = Backlog(10)
        cursor = backlog.begin(None)
        for number in range(25):
            backlog.append(Entry(number, b"", None))
        entries, dropped, cursor = backlog.take(cursor, 100)
        assert ([entry.ident for entry in entries], dropped, cursor) == (list(range(15, 25)), 15, 25)
        assert backlog.begin(None) == 25  # all seen
        reading = asyncio.ensure_future(backlog.wait(cursor))
        threading.Timer(0.05, backlog.append, (Entry(25, b"", None),)).start()
        async with asyncio.timeout(5):
            await reading
        backlog.fail(ConnectionError("gone"))
        assert backlog.take(cursor, 1)[0][0].ident == 25  # what was there can still be read
        with pytest.raises(ConnectionError, match="gone"):
            await backlog.wait(26)

    asyncio.run(read())


def test_a_stream_carries_many_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it quicker than calls, of which each carries one."""
    count = 5000
    config = virtual()
    made = Can(**config)
    batches: list[dict[str, Any]] = []
    put = Receiver._put

    def putting(receiver: Receiver, item: dict[str, Any]) -> bool:
        batches.append(item)
        return put(receiver, item)

    monkeypatch.setattr(Receiver, "_put", putting)
    with serve(made) as b, serve(Can(**config)) as a:
        assert b.channel_info  # its bus is open
        a.send_many([standard(number & 0x7FF) for number in range(count)])
        until(lambda: made._shared.backlog.end == count, 60)
        got = [b.recv(60) for _ in range(count)]
        assert [msg and msg.arbitration_id for msg in got] == [number & 0x7FF for number in range(count)]
        assert b.dropped == 0
    assert len(batches) * 50 < count


# Waiting for frames (what plays use) --------------------------------------------------------------------------


def test_exchange_sends_and_waits_for_what_is_expected(peer: Any) -> None:
    with serve(Can(**peer.config)) as bus:
        sent = [{"arbitration_id": 0x700, "is_extended_id": False, "data": "AQI="}]
        wishes = [{"id": "708", "data": "02??"}, {"id": "700:700", "data": "01*"}]
        result = bus.call("exchange", sent, wishes, 10.0)
        assert sorted(int(frame["arbitration_id"]) for frame in result["frames"]) == [0x700, 0x708]
        with pytest.raises(
            DriverError, match="no frame 708#FF within 0.3 s; .* other frames came, the last .*708#0201"
        ) as late:
            bus.call("exchange", sent, [{"id": "708", "data": "FF"}], 0.3, True)
        assert late.value.code == "DEADLINE_EXCEEDED"
        for wish, why in (({"id": "7"}, "no CAN id"), ({"id": "708", "data": "x"}, "two digits"), ({}, "expectation")):
            with pytest.raises(DriverInvalidArgument, match=why):
                bus.call("exchange", [], [wish], 1.0)


def test_exchange_takes_what_nobody_has_seen_unless_it_shall_be_fresh() -> None:
    config = virtual()
    with serve(Can(**config)) as a, serve(Can(**config)) as b:
        assert b.call("channel_info")
        a.send(standard(0x11))
        with pytest.raises(DriverError, match="no frame 011 within 0.2 s; no other came"):
            b.call("exchange", [], [{"id": "011"}], 0.2, True)
        assert len(b.call("exchange", [], [{"id": "011"}], 5.0)["frames"]) == 1
        with pytest.raises(DriverError, match="no frame 011"):
            b.call("exchange", [], [{"id": "011"}], 0.2)  # seen


def test_an_interface_is_never_told_to_send_by_two_threads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Can(**virtual())
    with serve(driver) as bus:
        sending = threading.Lock()
        clashes: list[int] = []

        def send(msg: can.Message, timeout: float | None = None) -> None:
            if not sending.acquire(blocking=False):
                clashes.append(msg.arbitration_id)
                return
            time.sleep(0.002)  # as long as an adapter takes
            sending.release()

        monkeypatch.setattr(driver._shared.get(), "send", send)
        tasks = [bus.send_periodic(standard(ident), 0.001) for ident in (1, 2)]
        bus.send_many([standard(3)] * 20)
        for task in tasks:
            task.stop()
    assert clashes == []


def test_a_periodic_task_that_begins_as_the_session_ends_does_not_send_for_ever() -> None:
    """A call is still in its thread when the driver is closed: nobody would ever stop what it starts."""
    config = virtual()
    driver = Can(**config)
    driver.reset()
    frame = CanMessage.construct(can.Message(arbitration_id=0x123, is_extended_id=False))
    task = driver._send_periodic_internal(frame, 0.001, autostart=False)
    driver.close()
    for late in (lambda: driver._send_periodic_internal(frame, 0.001), lambda: driver._start_task(task)):
        with pytest.raises((ConnectionError, ValueError)):
            late()
    assert not driver._shared.ready
    assert not any(thread.name.startswith("can send 123 ") for thread in threading.enumerate())
    driver.reset()
    again = driver._send_periodic_internal(frame, 0.001)
    assert driver._task_status(again)["running"]
    driver.close()


def test_tasks_end_and_begin_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that begins while all are being ended is either ended with them or does not begin."""
    driver = Can(**virtual())
    driver.reset()
    frame = CanMessage.construct(can.Message(arbitration_id=0x124, is_extended_id=False))
    closer = threading.Thread(target=driver.close)
    start = CyclicSend.start

    def start_while_closing(task: CyclicSend) -> None:
        start(task)
        closer.start()
        closer.join(0.3)  # it must not get by while the task is not in the driver's list yet

    monkeypatch.setattr(CyclicSend, "start", start_while_closing)
    driver._send_periodic_internal(frame, 0.001)
    closer.join(20)
    assert not closer.is_alive()
    assert not any(thread.name.startswith("can send 124 ") for thread in threading.enumerate())


def test_a_frame_that_is_sent_as_the_session_ends_does_not_open_the_bus_again() -> None:
    driver = Can(**virtual())
    driver.reset()
    frame = CanMessage.construct(can.Message(arbitration_id=0x125, is_extended_id=False))
    driver.send(frame)
    driver.close()
    with pytest.raises(ConnectionError, match="the session has ended"):
        driver.send(frame)
    assert not driver._shared.ready
    driver.reset()
    driver.send(frame)
    driver.shutdown()
    driver.send(frame)  # another client's: the session goes on
    driver.close()
