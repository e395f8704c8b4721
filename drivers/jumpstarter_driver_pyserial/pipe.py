# SPDX-License-Identifier: Apache-2.0
"""stdin and stdout (or a file) on a console, without a terminal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, BinaryIO

from anyio import BrokenResourceError, ClosedResourceError

if TYPE_CHECKING:
    from jumpstarter.client import DriverClient
    from jumpstarter.streams.blocking import BlockingStream

__all__ = ["run_pipe"]


def run_pipe(client: DriverClient, source: BinaryIO | None, sink: BinaryIO | None) -> None:
    """Send what ``source`` gives and write what the console says to ``sink``.

    Without sink it ends when the source has been sent. With one it goes on until the console's stream ends or the
    reader of the sink goes away; the end of the source ends nothing, since the answer comes after it.
    """
    with client.stream() as stream:
        try:
            if sink is None:
                if source is not None:
                    _send(stream, source)
                stream.send_eof()
                for _ in stream:  # until the console has ended the stream: then all that was sent has been written
                    pass
                return
            if source is not None:
                # A daemon: reading stdin cannot be interrupted, and must not keep the command from ending.
                threading.Thread(target=_send_quietly, args=(stream, source), name="console-pipe", daemon=True).start()
            for data in stream:
                sink.write(data)
                sink.flush()
        except BrokenPipeError:
            return  # whoever read our output has seen enough
        except BrokenResourceError as error:
            why = client.portal.call(stream.stream.error) if hasattr(stream.stream, "error") else None
            raise why or error from None


def _send_quietly(stream: BlockingStream, source: BinaryIO) -> None:
    try:
        _send(stream, source)
    except (BrokenResourceError, ClosedResourceError, RuntimeError):
        return  # the stream broke or was closed; the receiving side tells why


def _send(stream: BlockingStream, source: BinaryIO) -> None:
    read = getattr(source, "read1", source.read)
    while data := read(4096):
        stream.send(data)
