# SPDX-License-Identifier: Apache-2.0
"""The exporter process that `jmp run` supervises: ``python -m jumpstarter_cli.exporter_process``.

SIGTERM: end the lease with its afterLease hook, unregister, exit; again: without waiting for hooks (exit code 130).
SIGHUP: the same after the present lease. End of file on stdin (the supervisor died) is a SIGTERM. Exit codes: 0 stopped
as told, 1 an error that starting again would not mend, 70 anything else.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

# Before pydantic is imported: looking for its plugins means reading the metadata of every installed distribution.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_cli.errors import explain, report
from jumpstarter_cli.logs import FORMATS, LEVELS, setup

if TYPE_CHECKING:
    from jumpstarter.exporter.exporter import Exporter

__all__ = ["main"]

logger = logging.getLogger("jumpstarter.exporter")

_EXIT_INTERRUPTED = 130
_EXIT_CRASHED = 70

#: Seconds that an end in a hurry may take, slow power supplies included.
_HURRY_SECONDS = 30.0


class _States:
    """Where the process tells its states, one per line; nowhere without a descriptor."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._ready = False
        if fd is not None:
            os.set_inheritable(fd, False)
            os.set_blocking(fd, False)

    def tell(self, text: str) -> None:
        """What the exporter does. The first state that a registered exporter tells makes the service ready."""
        if not self._ready:
            self._ready = True
            self.write("READY=1")
        self.write(f"STATUS={' '.join(text.split())}")

    def write(self, line: str) -> None:
        """One line as it is."""
        if self._fd is None:
            return
        try:
            os.write(self._fd, line.encode() + b"\n")
        except BlockingIOError:
            pass  # the supervisor hangs: states are for people, and systemd's watchdog will notice
        except OSError:
            self._fd = None  # the supervisor is gone; stdin says so, too


class _Stopper:
    """Turns signals and the end of the lifeline into `Exporter.stop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, exporter: Exporter) -> None:
        self._loop = loop
        self._exporter = exporter
        self.told = False
        self.hurried = False

    def watch(self) -> None:
        """Begin."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self.now, number.name)
        self._loop.add_signal_handler(signal.SIGHUP, self.after_lease)
        try:
            os.set_blocking(0, False)
            self._loop.add_reader(0, self._stdin)
        except OSError:
            logger.debug("stdin is no lifeline")

    def now(self, why: str) -> None:
        """Stop; when told before, in a hurry."""
        if self.told:
            logger.warning("%s again: stopping without waiting for hooks", why)
            self.hurried = True
            timer = threading.Timer(_HURRY_SECONDS, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        else:
            logger.info("%s: stopping", why)
        self.told = True
        self._exporter.stop()

    def after_lease(self) -> None:
        """Stop when no lease holds the exporter."""
        logger.info("SIGHUP: stopping after the lease")
        self._exporter.stop(wait_for_lease_exit=True)

    def _stdin(self) -> None:
        try:
            if os.read(0, 4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # a broken lifeline is an ended one
        self._loop.remove_reader(0)
        self.now("the supervisor has died")


async def _run(options: argparse.Namespace) -> int:
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.exporter.exporter import Exporter

    if options.exporter is not None:
        config = ExporterConfigV1Alpha1.load(options.exporter)
    else:
        config = ExporterConfigV1Alpha1.load_path(options.exporter_config)
    states = _States(options.state_fd)
    exporter = Exporter(config, exit_on_lease_end=options.exit_on_lease_end or None, on_state=states.tell)
    loop = asyncio.get_running_loop()
    stopper = _Stopper(loop, exporter)
    stopper.watch()
    beating = asyncio.create_task(_beat(states, options.watchdog / 3)) if options.watchdog > 0 else None
    try:
        code = await exporter.serve()
    finally:
        if beating is not None:
            beating.cancel()
    return _EXIT_INTERRUPTED if stopper.hurried else code


async def _to_the_end(options: argparse.Namespace) -> int:
    """Run, and end the process from within the loop: closing that would wait for threads in which a driver hangs."""
    try:
        code = await _run(options)
    except (JumpstarterException, OSError) as error:
        report(explain(error))
        code = 1
    except Exception:
        logger.exception("the exporter process crashed")
        code = _EXIT_CRASHED
    logging.shutdown()
    os._exit(code)


async def _beat(states: _States, seconds: float) -> None:
    """Tell systemd that the loop still turns."""
    while True:
        states.write("WATCHDOG=1")
        await asyncio.sleep(seconds)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jumpstarter_cli.exporter_process")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--exporter", metavar="ALIAS", help="exporter configuration by its alias")
    which.add_argument("--exporter-config", metavar="FILE", help="exporter configuration file")
    parser.add_argument("--exit-on-lease-end", action="store_true", help="stop after the first lease")
    parser.add_argument("--log-level", choices=LEVELS, default="INFO")
    parser.add_argument("--log-format", choices=FORMATS, default="auto")
    parser.add_argument("--state-fd", type=int, help="descriptor for lines that tell what the exporter does")
    parser.add_argument("--watchdog", type=float, default=0.0, help="seconds within which systemd wants a beat")
    options = parser.parse_args(argv)
    setup(options.log_level, options.log_format, "exporter")
    return asyncio.run(_to_the_end(options))


if __name__ == "__main__":
    raise SystemExit(main())
