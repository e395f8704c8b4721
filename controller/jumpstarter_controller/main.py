# SPDX-License-Identifier: Apache-2.0
"""The command `jumpstarter-controller`."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import click

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_controller.commands.admin import admin
from jumpstarter_controller.commands.ca import ca
from jumpstarter_controller.commands.common import config_option
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.errors import Refused

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Run a lab: leases, access, and tunnels to the devices."""


cli.add_command(ca)
cli.add_command(admin)


def main() -> None:
    """Entry point: an error is one line, and exit code 1."""
    try:
        cli.main(prog_name="jumpstarter-controller")
    except (JumpstarterException, Refused) as error:
        print(f"jumpstarter-controller: {error}", file=sys.stderr)
        sys.exit(1)


@cli.command()
@config_option
@click.option(
    "--role",
    default="all",
    type=click.Choice(["all", "controller", "router"]),
    show_default=True,
    help="A controller with the router within, one without, or a router alone (which has a configuration of its own).",
)
@click.option(
    "--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), show_default=True
)
def serve(path: Path, role: str, log_level: str) -> None:
    """Serve exporters and clients until SIGTERM. Says READY {json} on stdout when it does."""
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel("WARNING")
    asyncio.run(_serve(path, role))


async def _serve(path: Path, role: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _running(path, role) as running:
        ready = {"address": running.address, "endpoint": running.endpoint, "role": role}
        for name, place in (("metrics", "metrics"), ("login", "login"), ("clientAddress", "client_address")):
            if getattr(running, place, None):
                ready[name] = getattr(running, place)
        print(f"READY {json.dumps(ready)}", flush=True)
        await stop.wait()


def _running(path: Path, role: str) -> AbstractAsyncContextManager[Any]:
    # Neither role loads what only the other one needs.
    if role == "router":
        from jumpstarter_controller.router_process import running_router

        return running_router(path)
    from jumpstarter_controller.server import running_controller

    return running_controller(ControllerConfig.load(path), "all" if role == "all" else "controller")


if __name__ == "__main__":
    main()
