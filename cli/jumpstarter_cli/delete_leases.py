# SPDX-License-Identifier: Apache-2.0
"""`jmp delete leases`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from jumpstarter_cli.options import opt_client, opt_selector
from jumpstarter_cli.output import opt_output

if TYPE_CHECKING:
    from jumpstarter.client.controller import ControllerClient
    from jumpstarter.common.exceptions import JumpstarterException

__all__ = ["delete_leases"]


@click.command("leases")
@opt_client
@opt_selector("Your leases that ask for these labels.")
@click.option("-a", "--all", "every", is_flag=True, help="All your leases.")
@click.option("-A", "--all-clients", is_flag=True, help="With -a or -l: leases of other clients too.")
@opt_output("name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def delete_leases(
    client: str | None,
    client_config: str | None,
    selector: str,
    every: bool,
    all_clients: bool,
    output: str | None,
    names: tuple[str, ...],
) -> int:
    """Give leases back.

    One that cannot be given back does not keep the others; the exit code is 1 then.
    """
    if bool(names) + bool(selector) + every != 1:
        raise click.UsageError("give either names, or -l/--selector, or -a/--all")
    if all_clients and names:
        raise click.UsageError("-A/--all-clients goes with -a/--all or -l/--selector")

    from jumpstarter.client.controller import connect_controller
    from jumpstarter_cli.errors import EXIT_FAILURE, report
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve

    config = resolve(client, client_config)

    async def work() -> dict[str, JumpstarterException | None]:
        async with connect_controller(config) as controller:
            wanted = list(dict.fromkeys(names))
            if not wanted:
                leases = await controller.list_leases(selector)
                wanted = [item.name for item in leases if all_clients or item.client == config.metadata.name]
            return {name: await _delete(controller, name) for name in wanted}

    results = call_with_login(config, work)
    if not results:
        raise click.ClickException(f"controller {config.endpoint}: no active lease to delete")
    for name, error in results.items():
        if error is None:
            click.echo(name if output == "name" else f'lease "{name}" deleted')
    failed = [error for error in results.values() if error is not None]
    for error in failed:
        report(str(error))
    return EXIT_FAILURE if failed else 0


async def _delete(controller: ControllerClient, name: str) -> JumpstarterException | None:
    """Delete one lease; what was in the way, if it concerns this lease alone."""
    from jumpstarter.common.exceptions import ControllerError

    try:
        await controller.delete_lease(name)
    except ControllerError as error:
        return error
    return None
