# SPDX-License-Identifier: Apache-2.0
"""Protects IsoTpPython: messages both ways over a bus of python-can, and failures that are told.

Against the kernel's implementation it is tested in test_can_guest.py.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import isotp
import pytest
from click.testing import CliRunner

from jumpstarter.common.exceptions import ConfigurationError, DriverError, DriverInvalidArgument
from jumpstarter.common.utils import serve
from jumpstarter_driver_can import isotp_socket
from jumpstarter_driver_can.common import IsoTpAddress, IsoTpAsymmetricAddress, IsoTpMessage, IsoTpParams
from jumpstarter_driver_can.driver import IsoTpPython, IsoTpSocket

channels = itertools.count()


def pair(**params: Any) -> tuple[IsoTpPython, IsoTpPython]:
    bus = {"channel": f"isotp-{next(channels)}", "interface": "virtual"}
    made = [
        IsoTpPython(**bus, address=IsoTpAddress(txid=tx, rxid=rx), params=IsoTpParams(**params))
        for tx, rx in ((1, 2), (2, 1))
    ]
    return made[0], made[1]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("fd", "length"), [(False, 8), (True, 64)])
def test_long_messages_go_both_ways(blocking: bool, fd: bool, length: int) -> None:
    left, right = pair(blocking_send=blocking, can_fd=fd, tx_data_length=length, max_frame_size=4095)
    message = bytes(range(256)) * 8
    with serve(left) as a, serve(right) as b:
        a.start()
        b.start()
        assert (b.available(), a.transmitting(), b.recv()) == (False, False, None)
        a.send(message)
        assert b.recv(block=True, timeout=10) == message
        b.send(message[::-1])
        assert a.recv(True, 10) == message[::-1]
        assert a.errors() == b.errors() == []
        a.stop()
        b.stop()


def test_request_answers_with_what_comes_after_it_and_not_with_leftovers() -> None:
    left, right = pair()
    with serve(left) as a, serve(right) as b:
        a.start()
        b.start()
        b.send(b"old news")
        assert a.recv(True, 5) == b"old news"
        b.send(b"never read")

        def answer() -> None:
            assert b.recv(True, 10) == b"\x22\xf1\x90"
            b.send(b"\x62\xf1\x90WVWZZZ1JZXW000001")

        server = threading.Thread(target=answer)
        server.start()
        while not a.available():
            pass
        assert a.request(b"\x22\xf1\x90", 10) == b"\x62\xf1\x90WVWZZZ1JZXW000001"
        server.join()


def test_addresses_can_be_changed_and_be_asymmetric() -> None:
    left, right = pair(blocking_send=True)
    mode = isotp.AddressingMode.Normal_29bits
    to_right, to_left = ({"tx_only": True, "txid": n, "addressing_mode": mode} for n in (0x1111, 0x2222))
    from_right, from_left = ({"rx_only": True, "rxid": n, "addressing_mode": mode} for n in (0x2222, 0x1111))
    with serve(left) as a, serve(right) as b:
        a.set_address(isotp.AsymmetricAddress(isotp.Address(**to_right), isotp.Address(**from_right)))
        a.start()
        b.start()
        b.set_address(isotp.AsymmetricAddress(isotp.Address(**to_left), isotp.Address(**from_left)))
        a.send(b"to the right")
        assert b.recv(True, 5) == b"to the right"
        for client in (a, b):
            client.set_address(
                isotp.Address(isotp.AddressingMode.NormalFixed_29bits, target_address=5, source_address=5)
            )
        b.send(b"x" * 100)
        assert a.recv(True, 5) == b"x" * 100
        with pytest.raises(ValueError, match="no isotp.Address"):
            a.set_address("0x123")


def test_a_message_nobody_takes_is_a_failure() -> None:
    left, right = pair(blocking_send=True, rx_flowcontrol_timeout=200)
    with serve(left) as a, serve(right) as b:
        a.start()
        assert right.address is not None and b is not None  # there, and not started
        with pytest.raises(DriverError, match="not sent.*FlowControlTimeout") as caught:
            a.send(bytes(100))
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(DriverError, match="FlowControlTimeout"):
            a.request(bytes(100), 5)


def test_a_failure_of_a_send_that_did_not_wait_is_in_the_errors() -> None:
    left, _ = pair(rx_flowcontrol_timeout=100)
    with serve(left) as a:
        a.start()
        a.send(bytes(100))
        assert a.transmitting()
        while a.transmitting():
            pass
        assert ["FlowControlTimeout" in text for text in a.errors()] == [True]
        assert a.errors() == []


def test_timeouts_are_kept() -> None:
    left, right = pair(blocking_send=True, rx_flowcontrol_timeout=60_000)
    with serve(left) as a, serve(right) as b:
        a.start()
        began = time.monotonic()
        with pytest.raises(DriverError, match="not sent within 0.3 s") as caught:
            a.send(bytes(100), send_timeout=0.3)
        assert caught.value.code == "DEADLINE_EXCEEDED"
        b.start()
        assert b.recv(block=True, timeout=0.2) is None
        with pytest.raises(DriverError, match="no answer within 0.3 s"):
            a.request(b"single", 0.3)
        assert time.monotonic() - began < 30


def test_use_before_start_and_double_start_are_refused() -> None:
    left, _ = pair()
    with serve(left) as a:
        for use in (lambda: a.send(b"x"), a.recv, a.available, a.stop_sending):
            with pytest.raises(DriverInvalidArgument, match="not started"):
                use()
        a.start()
        with pytest.raises(DriverInvalidArgument, match="started already"):
            a.start()
        a.stop()
        a.stop()  # stopped is what it shall be
        a.start()
    assert not [thread.name for thread in threading.enumerate() if "Notifier" in thread.name or "isotp" in thread.name]


def test_configurations_are_checked_without_a_bus() -> None:
    ids = {"txid": 1, "rxid": 2}
    for address, params, why in (
        (IsoTpAddress(txid=1), {}, "address: "),
        (IsoTpAddress(txid=1, tx_only=True), {}, "one half"),
        (IsoTpAddress(**ids), {"tx_data_length": 9}, "params: "),
        (IsoTpAddress(**ids), {"stmin": 999}, "params: "),
    ):
        with pytest.raises(ConfigurationError, match=why):
            IsoTpSocket(channel="can0", address=address, params=IsoTpParams(**params))
    with pytest.raises(ValueError, match='no addressing mode "Normal_30bits"'):
        IsoTpAddress(addressing_mode="Normal_30bits", **ids)  # type: ignore[arg-type]
    fixed = IsoTpAddress(addressing_mode="NormalFixed_29bits", target_address=1, source_address=2)  # type: ignore[arg-type]
    again = IsoTpAddress.validate(fixed.dump())
    assert again.dump().get_tx_arbitration_id() == fixed.dump().get_tx_arbitration_id() == 0x18DA0102
    both = IsoTpAsymmetricAddress(
        tx_addr=IsoTpAddress(txid=1, tx_only=True), rx_addr=IsoTpAddress(rxid=2, rx_only=True)
    )
    assert IsoTpAsymmetricAddress.validate(both.dump()) == both


def test_commands() -> None:
    left, right = pair()
    run = CliRunner()
    with serve(left) as a, serve(right) as b:
        for client in (a, b):
            assert run.invoke(client.cli(), ["start"], catch_exceptions=False).exit_code == 0
        assert run.invoke(a.cli(), ["send", "DE.AD BE EF 01 02 03 04 05"], catch_exceptions=False).exit_code == 0
        done = run.invoke(b.cli(), ["recv", "-t", "10"], catch_exceptions=False)
        assert (done.exit_code, done.output) == (0, "DEADBEEF0102030405\n")
        done = run.invoke(b.cli(), ["recv", "-t", "0.1"])
        assert done.exit_code == 1 and "no message within 0.1 s" in done.output


def test_the_next_session_finds_the_link_stopped_and_the_configured_address() -> None:
    left, _ = pair()
    with serve(left) as a:
        a.start()
        a.set_address(isotp.Address(txid=7, rxid=8))
        left.reset()
        with pytest.raises(DriverError, match="not started"):
            a.available()
        a.start()
        assert left.address.get_tx_arbitration_id() == 1  # type: ignore[union-attr]


def test_a_link_that_is_started_as_the_session_ends_does_not_stay() -> None:
    """The call is still in its thread: nobody would ever stop what it starts."""
    link, _ = pair()
    sockets = IsoTpSocket(channel="can0", address=IsoTpAddress(txid=1, rxid=2))
    for driver in (link, sockets):
        driver.reset()
        driver.close()
        with pytest.raises(ConnectionError, match="the session has ended"):
            driver.start()
    link.reset()
    link.start()
    link.close()


def test_a_socket_that_is_stopped_under_its_users_is_no_strange_error(monkeypatch: pytest.MonkeyPatch) -> None:
    driver: Any = IsoTpSocket(channel="can0", address=IsoTpAddress(txid=1, rxid=2))
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    look = select.select

    def stopped_meanwhile(*arguments: Any) -> Any:
        driver.end_link()
        return look(*arguments)

    with far:
        driver._socket, driver._sender = near, ThreadPoolExecutor(1)
        sender = driver._sender
        monkeypatch.setattr(isotp_socket.select, "select", stopped_meanwhile)
        assert driver.recv(True, 5).data is None
        driver._socket, driver._sender = far, sender  # looked at just before they were stopped
        with pytest.raises(ValueError, match="not started"):
            driver.send(IsoTpMessage(data=b"x"))
