# SPDX-License-Identifier: Apache-2.0
"""What `j` does, in whichever process: connect, build the commands from the drivers, run one."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["run"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(args: Sequence[str]) -> int:
    """Run `j` with these arguments and return the exit code."""
    from jumpstarter_cli.errors import run as run_command

    # `jmp shell` asks for these two; no argument of a user can.
    command = {"probe": _probe, "logs": _logs}.get(os.environ.pop("_JMP_J_ENTRY", ""), _command)
    with _cancel_on_signals():
        return run_command(command, list(args))


def _command(args: Sequence[str], **options: Any) -> object:
    from jumpstarter.common.exceptions import JumpstarterException
    from jumpstarter.utils.env import env

    with env() as client:
        cli = getattr(client, "cli", None)
        if cli is None:
            raise JumpstarterException(
                f"the exporter's root driver has no commands ({client.labels.get('jumpstarter.dev/client', '?')} "
                "is not installed here, or not in the allow list JMP_DRIVERS_ALLOW)"
            )
        result: object = cli().main(args=list(args), prog_name="j", **options)
        return result


def _probe(args: Sequence[str], **_: Any) -> None:
    """Print who the exporter is, as JSON. Drivers and their client classes are not looked at."""
    import asyncio
    import json

    from jumpstarter.client.aio import fetch_report
    from jumpstarter.common.exceptions import ExporterUnreachableError
    from jumpstarter.utils.env import Reach
    from jumpstarter.utils.explain import why_unreachable

    async def ask() -> dict[str, object]:
        reach = Reach.from_env()
        connection = reach.open()
        try:
            report = await fetch_report(connection)
        except ExporterUnreachableError as error:
            why = why_unreachable(error.message, secure=not reach.insecure)
            raise ExporterUnreachableError(f"the exporter at {reach.host} cannot be reached: {why}") from None
        finally:
            await connection.aclose()
        labels = dict(report.labels)
        return {"name": labels.get("jumpstarter.dev/name", ""), "labels": labels, "motd": report.motd}

    print(json.dumps(asyncio.run(ask())))


def _logs(args: Sequence[str], **_: Any) -> None:
    """Print the exporter's log lines until it goes away."""
    import asyncio

    from jumpstarter.client.aio import connect
    from jumpstarter.utils.env import Reach

    async def follow() -> None:
        reach = Reach.from_env()
        async with connect(reach.host, **reach.options()) as session:
            async for entry in session.logs():
                print(f"{entry.severity} {entry.message}", flush=True)

    asyncio.run(follow())


@contextmanager
def _cancel_on_signals() -> Iterator[None]:
    """Turn the first signal into KeyboardInterrupt.

    A Ctrl-C may arrive twice, from the terminal and passed on by `j`: repeats within a second do not disturb the
    cleaning up after the first.
    """
    last = 0.0

    def cancel(_: int, __: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > 1.0:
            last = now
            raise KeyboardInterrupt

    before = {number: signal.signal(number, cancel) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
