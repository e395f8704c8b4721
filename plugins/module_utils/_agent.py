# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Client of the session agent: one request per unix socket connection, length-prefixed JSON, standard library only.

This module util is **PRIVATE** to the collection. Closing the connection cancels the request, so the socket is held
in a ``with`` block: a task timeout, Ctrl-C or a killed worker all end the work on the device.
"""

from __future__ import annotations

import json
import socket
import struct
import typing as t

PROTOCOL_VERSION = 1
MAX_FRAME = 16 * 1024 * 1024
_LENGTH = struct.Struct(">I")

Event = t.Callable[[str, dict[str, t.Any]], None]


class AgentError(Exception):
    """The agent refused or failed a request.

    :ivar code: stable word for the kind of error (``invalid``, ``busy``, ``exporter_lost``, ...).
    :ivar data: what else is known, flat (``console_tail``, ``written_bytes``, ...).
    """

    def __init__(self, message: str, code: str = "failed", data: dict[str, t.Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.data = data or {}


class AgentGone(AgentError):
    """The agent is not there, or went away before it answered."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="agent_lost")


def _to_json(value: t.Any) -> str:
    """What json cannot write by itself: Ansible's lazy strings, paths and dates go as their text."""
    return str(value)


def encode(frame: dict[str, t.Any]) -> bytes:
    """One frame as bytes: four bytes of length, then UTF-8 JSON."""
    body = json.dumps(frame, default=_to_json).encode()
    if len(body) > MAX_FRAME:
        raise AgentError(
            f"the request is {len(body)} bytes, the agent takes at most {MAX_FRAME}: hand large data over as a file",
            code="invalid",
        )
    return _LENGTH.pack(len(body)) + body


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = sock.recv(min(count - len(data), 1 << 20))
        if not piece:
            raise AgentGone("the session agent ended before it answered")
        data += piece
    return bytes(data)


def read_frame(sock: socket.socket) -> dict[str, t.Any]:
    """Next frame from *sock*.

    :raises AgentGone: the agent closed the connection.
    :raises AgentError: what came is not a frame.
    """
    (length,) = _LENGTH.unpack(_read_exactly(sock, _LENGTH.size))
    if length > MAX_FRAME:
        raise AgentError(f"the agent announced a frame of {length} bytes, the limit is {MAX_FRAME}", code="protocol")
    try:
        frame = json.loads(_read_exactly(sock, length))
    except ValueError as error:
        raise AgentError(f"the agent sent a frame that is not JSON: {error}", code="protocol") from error
    if not isinstance(frame, dict):
        raise AgentError("the agent sent a frame that is not an object", code="protocol")
    return frame


class AgentClient:
    """Talks to the agent that listens on *path*, over a connection per request.

    :param timeout: longest silence of the agent in seconds; none for work on a device, which has deadlines of its own.
    """

    def __init__(self, path: str, timeout: float | None = None) -> None:
        self.path = path
        self.timeout = timeout
        self._ready: socket.socket | None = None

    def answers(self) -> bool:
        """True when the agent listens. The connection that showed it is kept for the next request."""
        try:
            self._ready = self.connect()
        except AgentGone:
            return False
        return True

    def connect(self) -> socket.socket:
        """A connection of its own; the caller closes it.

        :raises AgentGone: nobody listens.
        """
        if self._ready is not None:
            sock, self._ready = self._ready, None
            return sock
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(self.timeout)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise AgentGone(f"nobody listens on the agent socket {self.path}: {error.strerror}") from error
        return sock

    def request(self, frame: dict[str, t.Any], on_event: Event | None = None) -> dict[str, t.Any]:
        """Send one request, hand its events to *on_event* and return the value of its result.

        :raises AgentError: the agent's own error, word for word.
        :raises AgentGone: the agent died while it worked.
        """
        with self.connect() as sock:
            try:
                sock.sendall(encode({"v": PROTOCOL_VERSION, **frame}))
                return self._answer(sock, on_event)
            except (ConnectionResetError, BrokenPipeError) as error:
                raise AgentGone("the session agent ended before it answered") from error
            except TimeoutError as error:
                raise AgentError(f"the session agent said nothing for {self.timeout} s", code="timeout") from error

    def _answer(self, sock: socket.socket, on_event: Event | None) -> dict[str, t.Any]:
        while True:
            reply = read_frame(sock)
            kind = reply.get("type")
            if kind == "event":
                if on_event is not None:
                    on_event(str(reply.get("event")), reply.get("data") or {})
            elif kind in ("result", "ready"):
                value = reply.get("value")
                return value if isinstance(value, dict) else {"value": value}
            elif kind == "error":
                error = reply.get("error") or {}
                raise AgentError(
                    str(error.get("message") or "the agent gave no reason"),
                    str(error.get("code") or "failed"),
                    error.get("data"),
                )
            else:
                raise AgentError(f"the agent sent a frame of unknown type {kind!r}", code="protocol")
