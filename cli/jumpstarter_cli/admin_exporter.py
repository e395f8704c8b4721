# SPDX-License-Identifier: Apache-2.0
"""`jmp admin ... exporter`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from jumpstarter_cli.admin_common import Reach, opt_admin, print_items, relabelled
from jumpstarter_cli.admin_files import Destination, opt_destination
from jumpstarter_cli.config_common import opt_nointeractive
from jumpstarter_cli.options import opt_pairs, opt_selector
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import local

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, AdminExporterInfo
    from jumpstarter.client.controller import ExporterInfo

__all__ = ["create_exporter", "delete_exporter", "get_exporter", "update_exporter"]

_COLUMNS = ("NAME", "ENABLED", "ONLINE", "STATUS", "LEASE", "LAST SEEN", "LABELS")


def _row(exporter: AdminExporterInfo) -> tuple[str, ...]:
    from jumpstarter_cli.lease_view import pairs_text

    return (
        exporter.name,
        "yes" if exporter.enabled else "no",
        "yes" if exporter.online else "no",
        exporter.status.name,
        exporter.lease,
        local(exporter.last_seen) or "never",
        pairs_text({**exporter.reported_labels, **exporter.labels}),
    )


@click.command("exporter")
@opt_admin
@opt_selector("Only exporters with these labels.")
@click.option("-d", "--devices", is_flag=True, help="Show their drivers.")
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_exporter(reach: Reach, selector: str, devices: bool, output: str | None, names: tuple[str, ...]) -> None:
    """Show exporters."""

    async def ask(admin: AdminClient) -> list[AdminExporterInfo]:
        return [await admin.get_exporter(n) for n in names] if names else await admin.list_exporters(selector)

    found = reach.run(ask)
    if not devices:
        print_items("exporters", found, output, _COLUMNS, _row)
        return
    from jumpstarter.client.controller import DriverInfo
    from jumpstarter_cli.lease_view import plain
    from jumpstarter_cli.output import print_table

    drivers = _drivers(reach)
    known = {exporter.name: drivers[exporter.name].drivers if exporter.name in drivers else () for exporter in found}
    if output:
        print_items(
            "exporters", found, output, _COLUMNS, _row, data=lambda e: {**plain(e), "drivers": plain(known[e.name])}
        )
        return
    rows = [
        (exporter.name, driver.path or "(root)", driver.client, driver.description)
        for exporter in found
        for driver in known[exporter.name] or (DriverInfo("(none)", ""),)
    ]
    print_table(("EXPORTER", "DRIVER", "CLIENT", "DESCRIPTION"), rows)


def _drivers(reach: Reach) -> dict[str, ExporterInfo]:
    """What the exporters of the administrator's own namespace have registered."""
    from jumpstarter.client.controller import connect_controller
    from jumpstarter_cli.identity import call_with_login

    config = reach.config()
    if reach.namespace and reach.namespace != config.metadata.namespace:
        raise click.UsageError("-d/--devices is for the exporters of your own namespace")

    async def ask() -> dict[str, ExporterInfo]:
        async with connect_controller(config) as controller:
            return {exporter.name: exporter for exporter in await controller.list_exporters()}

    return call_with_login(config, ask)


@click.command("exporter")
@opt_admin
@opt_pairs("-l", "--label", "labels", help="Label that leases and access policies may select, repeatable.")
@click.option("--oidc-username", default="", help="Its identity at an external issuer, as the lab's mapping makes it.")
@click.option("--disabled", is_flag=True, help="It is not leased until it is enabled.")
@opt_destination
@opt_nointeractive
@opt_output("json", "yaml", "name")
@click.argument("name")
def create_exporter(
    reach: Reach,
    labels: dict[str, str],
    oidc_username: str,
    disabled: bool,
    destination: Destination,
    nointeractive: bool,
    output: str | None,
    name: str,
) -> None:
    """Create an exporter.

    With --save or --out it gets a token, in a file that only you can read; add its drivers there. Without, it has none
    until `jmp admin rotate exporter`.

    \b
    jmp admin create exporter rack1-rpi4 -l board=rpi4 --out rack1-rpi4.yaml
    """
    from jumpstarter_cli.admin_files import ask_to_save
    from jumpstarter_cli.admin_output import print_made

    destination = ask_to_save(destination, "exporter", nointeractive)
    if destination.wanted:
        destination.check_new("exporter", name)

    async def work(admin: AdminClient) -> tuple[AdminExporterInfo, Path | None]:
        made, credential = await admin.create_exporter(
            name, labels=labels, username=oidc_username, enabled=not disabled, without_token=not destination.wanted
        )
        if credential is None:
            return made, None
        return made, destination.write("exporter", admin, name, credential, reach.config())

    made, path = reach.run(work)
    print_made("exporter", made, path, destination, output, tokenless=not destination.wanted and not oidc_username)


@click.command("exporter")
@opt_admin
@opt_pairs("-l", "--label", "labels", help="Label to set, repeatable.")
@click.option("--remove-label", "removed", multiple=True, metavar="KEY", help="Label to remove, repeatable.")
@click.option("--enable/--disable", "enabled", default=None, help="Whether it is leased to anybody from now on.")
@click.option("--oidc-username", help='Its identity at an external issuer ("" for none).')
@opt_output("json", "yaml", "name")
@click.argument("name")
def update_exporter(
    reach: Reach,
    labels: dict[str, str],
    removed: tuple[str, ...],
    enabled: bool | None,
    oidc_username: str | None,
    output: str | None,
    name: str,
) -> None:
    """Change an exporter.

    What is not given stays as it is. A lease that holds it is not touched.
    """
    if not labels and not removed and oidc_username is None and enabled is None:
        raise click.UsageError("say what to change: --label, --remove-label, --enable, --disable or --oidc-username")

    async def work(admin: AdminClient) -> AdminExporterInfo:
        new = relabelled((await admin.get_exporter(name)).labels, labels, removed) if labels or removed else None
        return await admin.update_exporter(name, labels=new, username=oidc_username, enabled=enabled)

    from jumpstarter_cli.admin_output import print_changed

    print_changed("exporter", reach.run(work), output)


@click.command("exporter")
@opt_admin
@click.option("--force", is_flag=True, help="Also one that is leased: the lease ends.")
@click.option("-d", "--delete", "with_file", is_flag=True, help="Also its file in your configuration directory.")
@opt_output("name")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete_exporter(reach: Reach, force: bool, with_file: bool, output: str | None, names: tuple[str, ...]) -> int:
    """Delete exporters.

    Their tokens are worth nothing from then on.
    """
    from jumpstarter_cli.admin_files import delete_subjects

    return delete_subjects(reach, "exporter", names, force, with_file, output)
