# SPDX-License-Identifier: Apache-2.0
"""`jmp get leases`."""

from __future__ import annotations

import click

from jumpstarter_cli.options import opt_client, opt_selector
from jumpstarter_cli.output import opt_output

__all__ = ["get_leases"]


@click.command("leases")
@opt_client
@opt_selector("Only leases that ask for these labels.")
@click.option("-a", "--all", "ended", is_flag=True, help="Also leases that have ended.")
@click.option("-A", "--all-clients", is_flag=True, help="Also leases of other clients.")
@click.option("--tag-filter", default="", metavar="SELECTOR", help="Only leases with these tags.")
@click.option("--page-size", type=click.IntRange(min=1), default=100, help="How many to ask for at once.")
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_leases(
    client: str | None,
    client_config: str | None,
    selector: str,
    ended: bool,
    all_clients: bool,
    tag_filter: str,
    page_size: int,
    output: str | None,
    names: tuple[str, ...],
) -> None:
    """List leases.

    Your own active ones, unless you say otherwise or name some.
    """
    from jumpstarter.client.controller import LeaseInfo, connect_controller
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.lease_view import print_leases

    config = resolve(client, client_config)

    async def ask() -> list[LeaseInfo]:
        async with connect_controller(config) as controller:
            if names:
                return [await controller.get_lease(name) for name in names]
            return await controller.list_leases(
                selector, only_active=not ended, tag_filter=tag_filter, page_size=page_size
            )

    found = call_with_login(config, ask)
    if not all_clients and not names:
        found = [lease for lease in found if lease.client == config.metadata.name]
    print_leases(found, output)
