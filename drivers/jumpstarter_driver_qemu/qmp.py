# SPDX-License-Identifier: Apache-2.0
"""QEMU's control socket for synchronous code: the `qemu.qmp` library on an event loop and thread of its own.

A machine is stopped from wherever its session ends (a worker thread, the exporter's loop, a signal handler's
clean-up), so its control connection must not depend on a loop that may be busy or gone by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError as FutureCancelled
from typing import Any, TypeVar

from qemu.qmp import EventListener, Message, QMPClient, QMPError

__all__ = ["ControlError", "ControlSocket"]

T = TypeVar("T")


class ControlError(ConnectionError):
    """QEMU refused a control command, or its control socket is gone."""


class ControlSocket:
    """One QMP connection over an already connected socket.

    on_event is called in the connection's thread with each event's name and data; it must not call back in here.
    """

    def __init__(self, sock: socket.socket, *, name: str, on_event: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._sock = sock
        self._on_event = on_event
        self._lock = threading.Lock()
        self._closed = False
        self._client = QMPClient(name)
        # It logs the end of a connection as an error, which every power off is; failures are raised here.
        self._client.logger.setLevel(logging.CRITICAL)
        self._listener = EventListener()
        self._client.register_listener(self._listener)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"qmp-{name}", daemon=True)
        self._thread.start()

    def connect(self, timeout: float) -> None:
        """Greet QEMU. Raises ControlError when it does not answer within ``timeout`` seconds or closes the socket."""
        self._run("greeting", self._greet(), timeout)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 10.0) -> Any:
        """Run a QMP command and return its result. Raises ControlError with QEMU's reason."""
        return self._run(command, self._client.execute(command, arguments), timeout)

    def close(self) -> None:
        """Close connection, loop and thread. May be called twice and after QEMU is gone, not from on_event."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._sock.close()

    def _run(self, what: str, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        with self._lock:
            if self._closed:
                coroutine.close()
                raise ControlError(f"{what}: the control socket of QEMU is closed")
            future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, timeout), self._loop)
        try:
            return future.result()
        except TimeoutError as error:
            raise ControlError(f"{what}: QEMU did not answer within {timeout:g} s") from error
        except FutureCancelled as error:
            raise ControlError(f"{what}: the control socket of QEMU was closed meanwhile") from error
        except (QMPError, OSError, EOFError) as error:
            raise ControlError(f"{what}: {error or type(error).__name__}") from error

    async def _greet(self) -> None:
        await self._client.connect(self._sock)
        self._events = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        async for event in self._listener:
            self._tell(event)

    def _tell(self, event: Message) -> None:
        data = event.get("data")
        self._on_event(str(event.get("event")), data if isinstance(data, dict) else {})

    async def _shutdown(self) -> None:
        # Disconnecting reports whatever ended the connection; QEMU having left is not news here.
        with contextlib.suppress(QMPError, OSError, EOFError, asyncio.TimeoutError):
            await asyncio.wait_for(self._client.disconnect(), 2)
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
