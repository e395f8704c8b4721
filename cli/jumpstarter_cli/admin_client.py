# SPDX-License-Identifier: Apache-2.0
"""`jmp admin ... client`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from jumpstarter_cli.admin_common import Reach, opt_admin, print_items, relabelled
from jumpstarter_cli.admin_files import Destination, opt_destination, opt_drivers
from jumpstarter_cli.config_common import opt_nointeractive
from jumpstarter_cli.options import opt_pairs, opt_selector
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import local

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, AdminClientInfo, Credential

__all__ = ["create_client", "delete_client", "get_client", "update_client"]

_COLUMNS = ("NAME", "ADMINISTRATOR", "USERNAME", "CREATED", "LABELS")


def _row(client: AdminClientInfo) -> tuple[str, ...]:
    from jumpstarter_cli.lease_view import pairs_text

    role = "yes" if client.administrator else ""
    return client.name, role, client.username, local(client.created), pairs_text(client.labels)


@click.command("client")
@opt_admin
@opt_selector("Only clients with these labels.")
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_client(reach: Reach, selector: str, output: str | None, names: tuple[str, ...]) -> None:
    """Show clients."""

    async def ask(admin: AdminClient) -> list[AdminClientInfo]:
        return [await admin.get_client(n) for n in names] if names else await admin.list_clients(selector)

    print_items("clients", reach.run(ask), output, _COLUMNS, _row)


@click.command("client")
@opt_admin
@opt_pairs("-l", "--label", "labels", help="Label that access policies may select, repeatable.")
@click.option("--oidc-username", default="", help="Its identity at an external issuer, as the lab's mapping makes it.")
@click.option("--administrator", "--admin", "administrator", is_flag=True, help="It may administer the lab.")
@opt_drivers
@opt_destination
@opt_nointeractive
@opt_output("json", "yaml", "name")
@click.argument("name")
def create_client(
    reach: Reach,
    labels: dict[str, str],
    oidc_username: str,
    administrator: bool,
    allow: str | None,
    unsafe: bool,
    destination: Destination,
    nointeractive: bool,
    output: str | None,
    name: str,
) -> None:
    """Create a client.

    With --save or --out it gets a token, in a file that only you can read. Without, it has none: for people who log in
    at an external issuer, or until `jmp admin rotate client`.

    \b
    jmp admin create client alice -l team=ci --out alice.yaml
    """
    from jumpstarter_cli.admin_files import ask_to_save

    destination = ask_to_save(destination, "client", nointeractive)
    if destination.wanted:
        destination.check_new("client", name)

    async def work(admin: AdminClient) -> tuple[AdminClientInfo, Any]:
        made, credential = await admin.create_client(
            name,
            labels=labels,
            username=oidc_username,
            administrator=administrator,
            without_token=not destination.wanted,
        )
        return made, _write(admin, credential)

    def _write(admin: AdminClient, credential: Credential | None) -> Any:
        if credential is None:
            return None
        return destination.write("client", admin, name, credential, reach.config(), allow=allow, unsafe=unsafe)

    made, path = reach.run(work)
    from jumpstarter_cli.admin_output import print_made

    print_made("client", made, path, destination, output, tokenless=not destination.wanted and not oidc_username)


@click.command("client")
@opt_admin
@opt_pairs("-l", "--label", "labels", help="Label to set, repeatable.")
@click.option("--remove-label", "removed", multiple=True, metavar="KEY", help="Label to remove, repeatable.")
@click.option("--oidc-username", help='Its identity at an external issuer ("" for none).')
@click.option("--administrator/--no-administrator", default=None, help="Whether it may administer the lab.")
@opt_output("json", "yaml", "name")
@click.argument("name")
def update_client(
    reach: Reach,
    labels: dict[str, str],
    removed: tuple[str, ...],
    oidc_username: str | None,
    administrator: bool | None,
    output: str | None,
    name: str,
) -> None:
    """Change a client.

    What is not given stays as it is.
    """
    if not labels and not removed and oidc_username is None and administrator is None:
        raise click.UsageError("say what to change: --label, --remove-label, --oidc-username or --administrator")

    async def work(admin: AdminClient) -> AdminClientInfo:
        new = relabelled((await admin.get_client(name)).labels, labels, removed) if labels or removed else None
        return await admin.update_client(name, labels=new, username=oidc_username, administrator=administrator)

    from jumpstarter_cli.admin_output import print_changed

    print_changed("client", reach.run(work), output)


@click.command("client")
@opt_admin
@click.option("--force", is_flag=True, help="Also one that holds leases: they end.")
@click.option("-d", "--delete", "with_file", is_flag=True, help="Also its file in your configuration directory.")
@opt_output("name")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete_client(reach: Reach, force: bool, with_file: bool, output: str | None, names: tuple[str, ...]) -> int:
    """Delete clients.

    Their tokens are worth nothing from then on.
    """
    from jumpstarter_cli.admin_files import delete_subjects

    return delete_subjects(reach, "client", names, force, with_file, output)
