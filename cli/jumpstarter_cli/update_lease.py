# SPDX-License-Identifier: Apache-2.0
"""`jmp update lease`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from jumpstarter_cli.options import opt_client
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import DURATION, TIME

if TYPE_CHECKING:
    from jumpstarter.client.controller import LeaseInfo

__all__ = ["update_lease"]


@click.command("lease")
@opt_client
@click.option("--duration", type=DURATION, metavar="TIME", help="New length, from the lease's beginning on.")
@click.option("--begin-time", type=TIME, metavar="TIME", help="New beginning, of a lease that has not begun.")
@click.option("--end-time", type=TIME, metavar="TIME", help="New end.")
@click.option("--to-client", metavar="CLIENT", help="Hand the lease over to this client.")
@opt_output("json", "yaml", "name")
@click.argument("name")
def update_lease(
    client: str | None,
    client_config: str | None,
    duration: float | None,
    begin_time: datetime | None,
    end_time: datetime | None,
    to_client: str | None,
    output: str | None,
    name: str,
) -> None:
    """Change the times or the owner of a lease.

    \b
    jmp update lease NAME --duration 4h
    jmp update lease NAME --end-time +30m
    """
    if duration is None and begin_time is None and end_time is None and to_client is None:
        raise click.UsageError("say what to change: --duration, --begin-time, --end-time or --to-client")

    from jumpstarter.client.controller import connect_controller
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.lease_view import print_lease

    config = resolve(client, client_config)

    async def ask() -> LeaseInfo:
        async with connect_controller(config) as controller:
            return await controller.update_lease(
                name, duration=duration, begin_time=begin_time, end_time=end_time, client=to_client
            )

    print_lease(call_with_login(config, ask), output)
