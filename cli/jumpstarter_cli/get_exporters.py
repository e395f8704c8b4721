# SPDX-License-Identifier: Apache-2.0
"""`jmp get exporters`."""

from __future__ import annotations

import click

from jumpstarter_cli.options import opt_client, opt_selector
from jumpstarter_cli.output import opt_output

__all__ = ["get_exporters"]

_EXTRA = ("leases", "online", "status")


def _with(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> set[str]:
    found = {word.strip() for value in values for word in value.split(",") if word.strip()}
    wrong = sorted(found - set(_EXTRA))
    if wrong:
        raise click.BadParameter(f'"{wrong[0]}" is none of {", ".join(_EXTRA)}')
    return found


@click.command("exporters")
@opt_client
@opt_selector("Only exporters with these labels: a=b, a!=b, a in (b,c), a notin (b), a, !a.")
@click.option(
    "--with",
    "extra",
    multiple=True,
    callback=_with,
    metavar="[leases,online,status]",
    help="Show more: who holds them, whether they are online, what they say.",
)
@click.option("--allow-disabled", is_flag=True, help="Also exporters that administrators have disabled.")
@click.option("--show-hidden-labels", is_flag=True, help="Also labels that the lab hides.")
@click.option("--page-size", type=click.IntRange(min=1), default=100, help="How many to ask for at once.")
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_exporters(
    client: str | None,
    client_config: str | None,
    selector: str,
    extra: set[str],
    allow_disabled: bool,
    show_hidden_labels: bool,
    page_size: int,
    output: str | None,
    names: tuple[str, ...],
) -> None:
    """List the exporters of the lab.

    -o json and yaml show everything that is known of them, their drivers too.

    \b
    jmp get exporters -l board=rpi4 --with online,leases
    """
    from jumpstarter.client.controller import ExporterInfo, connect_controller
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.lease_view import print_exporters

    config = resolve(client, client_config)

    async def ask() -> list[ExporterInfo]:
        async with connect_controller(config) as controller:
            return await controller.list_exporters(selector, show_hidden_labels=show_hidden_labels, page_size=page_size)

    found = call_with_login(config, ask)
    if names:
        by_name = {exporter.name: exporter for exporter in found}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise click.ClickException(f'controller {config.endpoint}: no exporter "{missing[0]}"')
        found = [by_name[name] for name in names]
    elif not allow_disabled:
        found = [exporter for exporter in found if exporter.enabled]
    shown = {*extra, "enabled"} if any(not exporter.enabled for exporter in found) else extra
    print_exporters(found, output, shown)
