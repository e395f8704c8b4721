# SPDX-License-Identifier: Apache-2.0
"""ISO-TP done by the Linux kernel (CAN_ISOTP, Linux 5.10 and newer)."""

from __future__ import annotations

import errno
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from socket import MSG_DONTWAIT

import isotp

from jumpstarter.driver import export
from jumpstarter.driver.cancellation import call_cancelled
from jumpstarter_driver_can.common import IsoTpMessage
from jumpstarter_driver_can.isotp_base import IsoTpDriver, WireAddress, isotp_address

__all__ = ["IsoTpSocket"]

#: Seconds between two looks whether the caller is still there.
_SLICE = 0.2


@dataclass(kw_only=True)
class IsoTpSocket(IsoTpDriver):
    """An ISO-TP link as a socket of the kernel. channel: the network interface, "can0".

    Of ``params`` the kernel knows stmin, blocksize, wftmax, tx_data_length, tx_padding, override_receiver_stmin,
    can_fd, bitrate_switch and listen_mode. Its own limit for missing flow controls is one second.
    """

    channel: str

    _lock: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _socket: isotp.socket | None = field(init=False, repr=False, default=None)
    _sender: ThreadPoolExecutor | None = field(init=False, repr=False, default=None)

    @export(concurrent=True)
    def start(self) -> None:
        """Open and bind the socket. Raises ValueError when it is open, ConnectionError when it cannot be."""
        with self._lock:
            self.require_session()
            if self._socket is not None:
                raise ValueError("isotp: the socket is started already; stop it first")
            try:
                socket = isotp.socket()
            except (OSError, NotImplementedError) as error:
                raise ConnectionError(
                    f"isotp: the exporter's kernel has no ISO-TP sockets (Linux 5.10 or newer, modprobe can-isotp): "
                    f"{error}"
                ) from error
            try:
                self.params.apply(socket)
                socket.bind(self.channel, isotp_address(self.address))
            except (OSError, ValueError) as error:
                socket.close()
                raise ConnectionError(f"isotp: {self.channel}: cannot be opened: {error}") from error
            self._socket = socket
            self._sender = ThreadPoolExecutor(1, thread_name_prefix=f"isotp send {self.channel}")

    @export(concurrent=True)
    def stop(self) -> None:
        """Close the socket. Raises ValueError when it is not open."""
        self._started()
        self.end_link()

    def end_link(self) -> None:
        """Close the socket, if it is open."""
        with self._lock:
            socket, self._socket = self._socket, None
            sender, self._sender = self._sender, None
        if sender is not None:
            sender.shutdown()  # the kernel ends a send that nobody answers after a second
        if socket is not None:
            socket.close()

    def _started(self) -> tuple[isotp.socket, ThreadPoolExecutor]:
        with self._lock:
            if self._socket is None or self._sender is None:
                raise ValueError("isotp: the socket is not started; call start() first")
            return self._socket, self._sender

    @export(concurrent=True)
    def send(
        self, msg: IsoTpMessage, target_address_type: int | None = None, send_timeout: float | None = None
    ) -> None:
        """Send a message and wait until its last frame has left. send_timeout: seconds to wait at most.

        Raises ConnectionError when the receiver did not take it, TimeoutError when it took too long (the kernel may
        still be sending then), NotImplementedError for functional addressing, which the kernel does not have.
        """
        if target_address_type:
            raise NotImplementedError("isotp: the kernel only sends to physical addresses: set the address instead")
        socket, sender = self._started()
        try:
            future = sender.submit(self._send, socket, msg.data or b"", send_timeout)
        except RuntimeError:  # it was stopped just now
            raise ValueError("isotp: the socket is not started; call start() first") from None
        try:
            future.result(send_timeout)
        except FutureTimeoutError as error:
            if future.done() and future.exception() is not None:
                raise
            future.cancel()
            raise TimeoutError(f"isotp: {self.channel}: not sent within {send_timeout:g} s") from error

    def _send(self, socket: isotp.socket, data: bytes, timeout: float | None) -> None:
        try:
            socket.send(data)
        except OSError as error:
            reasons = {
                errno.ECOMM: "the receiver did not answer with a flow control",
                errno.EBADMSG: "the receiver answered with a flow control that cannot be",
                errno.EMSGSIZE: "the receiver has no room for it",
            }
            why = reasons.get(error.errno or 0, error.strerror or str(error))
            raise ConnectionError(f"isotp: {self.channel}: {len(data)} bytes were not sent: {why}") from error

    @export(concurrent=True)
    def recv(self, block: bool = False, timeout: float | None = None) -> IsoTpMessage:
        """The next message; no data when none came within `timeout` seconds (0 does not wait).

        Without a timeout it waits until one comes, also without `block`: users of Jumpstarter 0.9 rely on it.
        """
        socket, _ = self._started()
        end = None if timeout is None else time.monotonic() + timeout
        while self._socket is socket:
            left = _SLICE if end is None else min(_SLICE, max(end - time.monotonic(), 0))
            try:
                if select.select([socket], [], [], left)[0]:
                    size = max(self.params.max_frame_size, isotp.tpsock.mtu)
                    return IsoTpMessage(data=socket.recv(size, MSG_DONTWAIT))
            except BlockingIOError:
                continue  # another reader was quicker
            except (OSError, ValueError) as error:
                if self._socket is not socket:
                    break  # it was closed just now
                raise ConnectionError(f"isotp: {self.channel}: receiving failed: {error}") from error
            if call_cancelled() or end is not None and time.monotonic() >= end:
                break
        return IsoTpMessage(data=None)

    @export(concurrent=True)
    def request(self, msg: IsoTpMessage, timeout: float = 5.0) -> IsoTpMessage:
        """Send a message and return the next that comes. What was received before is thrown away.

        Raises TimeoutError when none came within `timeout` seconds, ConnectionError when the message was not sent.
        """
        begin = time.monotonic()
        while self.recv(timeout=0).data is not None:
            pass
        self.send(msg, None, timeout)
        answer = self.recv(timeout=max(timeout - (time.monotonic() - begin), 0))
        if answer.data is None:
            raise TimeoutError(f"isotp: {self.channel}: no answer within {timeout:g} s")
        return answer

    @export(readonly=True)
    def available(self) -> bool:
        """Whether a message is there."""
        socket, _ = self._started()
        return bool(select.select([socket], [], [], 0)[0])

    @export(readonly=True)
    def transmitting(self) -> bool:
        """Not known to the kernel's sockets; `send` waits until it is done."""
        raise NotImplementedError("isotp: a socket of the kernel does not tell; send waits until it is done")

    @export(concurrent=True)
    def set_address(self, address: WireAddress) -> None:
        """Use another address: a started socket is closed and opened again."""
        with self._lock:
            self.address = isotp_address(address)
            if self._socket is not None:
                self.end_link()
                self.start()

    @export(concurrent=True)
    def stop_sending(self) -> None:
        """Not possible with the kernel's sockets."""
        raise NotImplementedError("isotp: a socket of the kernel cannot give up a message; stop() closes it")

    @export(concurrent=True)
    def stop_receiving(self) -> None:
        """Not possible with the kernel's sockets."""
        raise NotImplementedError("isotp: a socket of the kernel cannot give up a message; stop() closes it")
