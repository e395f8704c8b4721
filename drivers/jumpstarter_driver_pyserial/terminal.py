# SPDX-License-Identifier: Apache-2.0
"""A terminal on a console: raw mode, left with Ctrl-B three times."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from anyio import ClosedResourceError, EndOfStream

if TYPE_CHECKING:
    from jumpstarter.client import DriverClient

__all__ = ["Escape", "run_terminal"]

_CTRL_B = 0x02


class Escape:
    """Finds three Ctrl-B in a row in what is typed. They are passed on as well: a device may want them."""

    def __init__(self) -> None:
        self._count = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What to send of the typed bytes, and whether to leave after it."""
        for index, byte in enumerate(data):
            self._count = self._count + 1 if byte == _CTRL_B else 0
            if self._count == 3:
                return data[:index], True
        return data, False


def run_terminal(client: DriverClient, stdin: int | None = None, stdout: int | None = None) -> None:
    """Join a terminal (two file descriptors, this process's by default) and the console until the user leaves.

    Raises `DriverError` when the console ends the stream with an error.
    """
    source = sys.stdin.fileno() if stdin is None else stdin
    sink = sys.stdout.fileno() if stdout is None else stdout
    where = client.path or client.name or "console"
    os.write(sys.stderr.fileno(), f"Connected to {where}. Ctrl-B three times leaves.\r\n".encode())
    with _raw(source):
        client.portal.call(_join, client, source, sink)
    os.write(sys.stderr.fileno(), b"\nDisconnected.\n")


@contextlib.contextmanager
def _raw(fd: int) -> Iterator[None]:
    if not os.isatty(fd):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(fd)
    tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is meant for the device
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def _join(client: DriverClient, source: int, sink: int) -> None:
    async with client.stream_async("connect") as stream:
        typing = asyncio.create_task(_type(stream, source))
        showing = asyncio.create_task(_show(stream, sink))
        try:
            done, _ = await asyncio.wait([typing, showing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            typing.cancel()
            showing.cancel()
            await asyncio.gather(typing, showing, return_exceptions=True)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                why = await stream.error() if hasattr(stream, "error") else None
                raise why or error


async def _type(stream: object, source: int) -> None:
    loop = asyncio.get_running_loop()
    escape = Escape()
    while True:
        ready = loop.create_future()
        loop.add_reader(source, lambda ready=ready: ready.done() or ready.set_result(None))  # type: ignore[misc]
        try:
            await ready
        finally:
            loop.remove_reader(source)
        data = os.read(source, 4096)
        if not data:
            return
        send, leave = escape.feed(data)
        if send:
            await stream.send(send)  # type: ignore[attr-defined]
        if leave:
            return


async def _show(stream: object, sink: int) -> None:
    while True:
        try:
            data = await stream.receive()  # type: ignore[attr-defined]
        except (EndOfStream, ClosedResourceError):
            return
        await asyncio.to_thread(_write_all, sink, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
