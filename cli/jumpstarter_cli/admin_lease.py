# SPDX-License-Identifier: Apache-2.0
"""`jmp admin get lease`, `jmp admin end lease`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jumpstarter_cli.admin_common import Reach, opt_admin
from jumpstarter_cli.options import opt_client, opt_selector
from jumpstarter_cli.output import opt_output

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient

__all__ = ["end_lease", "get_lease"]


@click.command("lease")
@opt_client
@opt_selector("Only leases that ask for these labels.")
@click.option("-a", "--all", "ended", is_flag=True, help="Also leases that have ended.")
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def get_lease(
    ctx: click.Context,
    client: str | None,
    client_config: str | None,
    selector: str,
    ended: bool,
    output: str | None,
    names: tuple[str, ...],
) -> None:
    """Show the leases of all clients."""
    from jumpstarter_cli.get_leases import get_leases

    ctx.invoke(
        get_leases,
        client=client,
        client_config=client_config,
        selector=selector,
        ended=ended,
        all_clients=True,
        output=output,
        names=names,
    )


@click.command("lease")
@opt_admin
@click.option("--reason", default="", help="A line that its holder gets to read.")
@opt_output("name")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def end_lease(reach: Reach, reason: str, output: str | None, names: tuple[str, ...]) -> int:
    """End leases.

    Whoever holds or waits for them; what runs on the exporter is cut off.
    """

    async def work(admin: AdminClient, name: str) -> None:
        await admin.end_lease(name, reason)

    return reach.for_each(names, work, "lease {} ended", output)
