# SPDX-License-Identifier: Apache-2.0
"""`jmp admin ... token`, `jmp admin rotate`, `jmp admin import`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from jumpstarter_cli.admin_common import Reach, opt_admin, print_items
from jumpstarter_cli.admin_files import Destination, opt_destination, opt_drivers
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import DURATION, local

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, TokenInfo

__all__ = ["delete_token", "get_token", "import_client", "import_exporter", "rotate_client", "rotate_exporter"]

_arg_kind = click.argument("kind", type=click.Choice(["client", "exporter"]))
_opt_lifetime = click.option(
    "--lifetime", type=DURATION, metavar="TIME", help="How long the token is valid (default: the lab's)."
)


@click.command("token")
@opt_admin
@opt_output("json", "yaml", "name")
@_arg_kind
@click.argument("name")
def get_token(reach: Reach, output: str | None, kind: str, name: str) -> None:
    """Show the tokens of a client or exporter.

    When they were issued and whether they are valid still; never the tokens themselves.
    """

    async def ask(admin: AdminClient) -> list[TokenInfo]:
        return await admin.list_tokens(kind, name)

    now = datetime.now(UTC)

    def row(token: TokenInfo) -> tuple[str, ...]:
        state = "valid" if token.valid_at(now) else "revoked" if token.revoked else "expired"
        return token.id, state, local(token.issued), local(token.expiry), local(token.revoked)

    columns = ("ID", "STATE", "ISSUED", "EXPIRES", "REVOKED")
    print_items("tokens", reach.run(ask), output, columns, row, name=lambda token: token.id)


@click.command("token")
@opt_admin
@click.option("--all", "every", is_flag=True, help="All its tokens.")
@_arg_kind
@click.argument("name")
@click.argument("ids", nargs=-1, metavar="[ID]...")
def delete_token(reach: Reach, every: bool, kind: str, name: str, ids: tuple[str, ...]) -> None:
    """Revoke tokens of a client or exporter.

    By their ids, which `jmp admin get token` shows.
    """
    if bool(ids) == every:
        raise click.UsageError("give either ids or --all")

    async def work(admin: AdminClient) -> int:
        return await admin.revoke_tokens(kind, name, ids)

    count = reach.run(work)
    if ids and not count:
        raise click.ClickException(f'{kind} "{name}": none of these tokens was valid')
    click.echo(f'{count} token{"" if count == 1 else "s"} of {kind} "{name}" revoked')


def _issue(
    reach: Reach,
    kind: str,
    name: str,
    destination: Destination,
    *,
    rotate: bool,
    lifetime: float | None,
    allow: str | None = None,
    unsafe: bool = False,
) -> None:
    """A new token, into a file."""
    from jumpstarter_cli.admin_output import print_token

    if not destination.wanted:
        raise click.UsageError("say where the new token goes: --save or --out FILE")
    existing = destination.existing(kind, name)

    async def work(admin: AdminClient) -> None:
        credential = await admin.issue_token(kind, name, lifetime=lifetime, revoke_older=rotate)
        path = destination.write(
            kind, admin, name, credential, reach.config(), allow=allow, unsafe=unsafe, existing=existing
        )
        print_token(kind, name, path, credential.revoked, rotate)

    reach.run(work)


@click.command("client")
@opt_admin
@_opt_lifetime
@opt_destination
@click.argument("name")
def rotate_client(reach: Reach, lifetime: float | None, destination: Destination, name: str) -> None:
    """Replace the tokens of a client by a new one.

    The older ones are worth nothing from now on. In a file that is there already only the token changes.
    """
    _issue(reach, "client", name, destination, rotate=True, lifetime=lifetime)


@click.command("exporter")
@opt_admin
@_opt_lifetime
@opt_destination
@click.argument("name")
def rotate_exporter(reach: Reach, lifetime: float | None, destination: Destination, name: str) -> None:
    """Replace the tokens of an exporter by a new one.

    The older ones are worth nothing from now on. In a file that is there already only the token changes.
    """
    _issue(reach, "exporter", name, destination, rotate=True, lifetime=lifetime)


@click.command("client")
@opt_admin
@_opt_lifetime
@opt_drivers
@opt_destination
@click.argument("name")
def import_client(
    reach: Reach, lifetime: float | None, allow: str | None, unsafe: bool, destination: Destination, name: str
) -> None:
    """Write a configuration file for a client.

    It gets a token of its own; the older ones stay valid (the lab keeps no copies of them). By default the file goes to
    your configuration directory.
    """
    _issue(reach, "client", name, _or_save(destination), rotate=False, lifetime=lifetime, allow=allow, unsafe=unsafe)


@click.command("exporter")
@opt_admin
@_opt_lifetime
@opt_destination
@click.argument("name")
def import_exporter(reach: Reach, lifetime: float | None, destination: Destination, name: str) -> None:
    """Write a configuration file for an exporter.

    It gets a token of its own; the older ones stay valid (the lab keeps no copies of them). By default the file goes to
    your configuration directory.
    """
    _issue(reach, "exporter", name, _or_save(destination), rotate=False, lifetime=lifetime)


def _or_save(destination: Destination) -> Destination:
    return destination if destination.wanted else Destination(True, None, destination.insecure)
