# SPDX-License-Identifier: Apache-2.0
"""How a command on the controller's host tells the controller that serves from the same SQLite file what it changed.

By a unix socket beside the file: the command sends its topics after the commit and waits for the answer, so that the
change is in force when the command returns (a revoked token is refused), and nothing is polled. SQLite itself could
only be asked, again and again, whether anything at all has changed. PostgreSQL has NOTIFY for this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.state.bus import Bus

__all__ = ["nudge", "nudged"]

logger = logging.getLogger(__name__)

#: Seconds that either side waits for the other.
_PATIENCE = 5.0
#: Bytes of topics; more of them become "everything".
_MAX_BYTES = 65536
#: Bytes of a path that every system takes as the address of a unix socket.
_MAX_ADDRESS = 100


@contextmanager
def _address(database: Path) -> Iterator[str]:
    """Context: where the socket is, by a name that is short enough."""
    path = database.with_name(f"{database.name}.sock")
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def nudge(database: Path, topics: Iterable[str]) -> None:
    """Tell the controller that serves from this file, if there is one, that these topics have changed."""
    message = json.dumps(sorted(topics)).encode()
    if len(message) > _MAX_BYTES:
        message = b"null"
    try:
        with _address(database) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(address)
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            if connection.recv(2) != b"ok":
                raise OSError("it closed the connection")
    except (FileNotFoundError, ConnectionRefusedError):
        return  # nobody serves
    except OSError as error:
        logger.warning(
            "the controller that serves from %s could not be told (%s): the change is made, but it may take it up late",
            database,
            error,
        )


@contextmanager
def nudged(database: Path, bus: Bus) -> Iterator[None]:
    """Context: bring what commands say to the bus. Within a running event loop.

    Raises ConfigurationError when another controller serves from this file.
    """
    with _address(database) as address:
        listener = _listen(address, database)
        thread = threading.Thread(
            target=_serve, args=(listener, bus, asyncio.get_running_loop()), name="nudges", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            os.unlink(address)
            listener.shutdown(socket.SHUT_RDWR)  # ends the thread's accept
            thread.join()
            listener.close()


def _listen(address: str, database: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(address, database)
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen(8)
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"{database}.sock cannot be made: {error.strerror or error}") from error
    except ConfigurationError:
        listener.close()
        raise
    return listener


def _remove_stale(address: str, database: Path) -> None:
    """Remove the socket of a controller that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PATIENCE)
        try:
            probe.connect(address)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(address)
            return
    raise ConfigurationError(f"another controller serves from database {database}; SQLite is for one (see PostgreSQL)")


def _serve(listener: socket.socket, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
    """Take nudges, in a thread of its own: a command may run in the very thread of the event loop (in tests)."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # closed
        with connection:
            connection.settimeout(_PATIENCE)
            try:
                _take(connection, bus, loop)
            except (OSError, ValueError) as error:
                logger.warning("a nudge was not understood: %s", error)
            except RuntimeError:
                return  # the loop has ended


def _take(connection: socket.socket, bus: Bus, loop: asyncio.AbstractEventLoop) -> None:
    data = b""
    while chunk := connection.recv(8192):
        data += chunk
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it is longer than {_MAX_BYTES} bytes")
    if not data:
        return  # somebody looked whether we are here
    topics = json.loads(data)
    # In the queue of the loop before the answer leaves: whatever the command's user asks next comes after it.
    if topics is None:
        loop.call_soon_threadsafe(bus.publish_all)
    elif isinstance(topics, list):
        loop.call_soon_threadsafe(bus.publish, [str(topic) for topic in topics])
    else:
        raise ValueError("it is no list of topics")
    connection.sendall(b"ok")
