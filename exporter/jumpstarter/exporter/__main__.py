# SPDX-License-Identifier: Apache-2.0
"""One exporter as a child of another program: ``python -m jumpstarter.exporter``.

The agent starts one per board for local reach. It serves a unix socket, says ``READY {json}`` on stdout, and ends the
session when its lifeline (stdin, or the descriptor given) reaches end of file, which it does whatever becomes of the
parent. For an exporter that people run, see ``jmp run``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import threading
from typing import Any

# Before pydantic is imported: looking for its plugins means reading the metadata of every installed distribution,
# a quarter of this process's start.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConfigurationError, JumpstarterException

#: Seconds the end of a session may take, slow power supplies included.
_END_SECONDS = 20.0


def _lifeline(loop: asyncio.AbstractEventLoop, fd: int, stop: asyncio.Event) -> None:
    """Set ``stop`` when ``fd`` reaches end of file."""

    def readable() -> None:
        try:
            if os.read(fd, 4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # a broken lifeline is an ended one
        loop.remove_reader(fd)
        stop.set()

    try:
        os.set_blocking(fd, False)
        loop.add_reader(fd, readable)
    except OSError as error:
        raise ConfigurationError(
            f"--lifeline {fd}: {error.strerror}: this has to be a pipe or a socket, whose other end the parent keeps"
        ) from None


async def _run(options: argparse.Namespace) -> int:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.exporter.server import UnixListener, serve_session
    from jumpstarter.exporter.session import Session

    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    _lifeline(loop, options.lifeline, stop)
    config = ExporterConfigV1Alpha1.load_path(options.config)
    root = await _instantiate(config, stop)
    watchdog = asyncio.create_task(_limit_the_end(stop))
    session = Session.from_config(config, root)
    with session:
        path = options.listen.removeprefix("unix:").removeprefix("//")
        async with serve_session(session, UnixListener(path)) as addresses:
            session.update_status(ExporterStatus.LEASE_READY)
            _say({"socket": addresses[0], "name": config.metadata.name, "pid": os.getpid()})
            await stop.wait()
    watchdog.cancel()
    return 0


async def _instantiate(config: Any, stop: asyncio.Event) -> Any:
    """The drivers, built in a thread. Whoever is told to end meanwhile ends at once: hardware may never answer."""
    building = asyncio.ensure_future(asyncio.to_thread(config.instantiate))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([building, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not building.done():
        # Not sys.exit: that would wait for the thread. Nothing is switched on yet.
        os._exit(0)
    stopping.cancel()
    return building.result()


async def _limit_the_end(stop: asyncio.Event) -> None:
    """A driver that never closes must not keep the exporter, and what it started, for ever."""
    await stop.wait()
    timer = threading.Timer(_END_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _say(ready: dict[str, Any]) -> None:
    sys.stdout.write(f"READY {json.dumps(ready)}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jumpstarter.exporter", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="exporter configuration file")
    parser.add_argument("--listen", required=True, metavar="unix:PATH", help="socket to serve on")
    parser.add_argument("--lifeline", type=int, default=0, metavar="FD", help="end of file here ends the session")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        return asyncio.run(_run(options))
    except (JumpstarterException, OSError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
