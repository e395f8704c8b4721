# SPDX-License-Identifier: Apache-2.0
"""`jmp auth`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from jumpstarter_cli.lazy import Entry, LazyGroup
from jumpstarter_cli.options import opt_client
from jumpstarter_cli.output import opt_output, print_data
from jumpstarter_cli.times import local, span

if TYPE_CHECKING:
    from jumpstarter.client.admin import Identity
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["auth", "refresh", "rotate", "status", "whoami"]

#: A token that ends within these seconds is shown as one that ends soon.
_SOON = 7 * 86400.0


@click.group(
    cls=LazyGroup,
    entries={
        "refresh": Entry("jumpstarter_cli.auth:refresh", "Get a new token from the issuer, by the refresh token."),
        "rotate": Entry("jumpstarter_cli.auth:rotate", "Get a new token from the lab."),
        "status": Entry("jumpstarter_cli.auth:status", "Show whose token is stored and how long it is valid."),
        "whoami": Entry("jumpstarter_cli.auth:whoami", "Ask the lab who you are."),
    },
)
def auth() -> None:
    """Look at, refresh or rotate your token."""


@click.command("status")
@opt_client
@click.option("-v", "--verbose", is_flag=True, help="Also everything else that the token claims.")
@opt_output("json", "yaml")
def status(client: str | None, client_config: str | None, verbose: bool, output: str | None) -> int:
    """Show whose token is stored and how long it is valid.

    The lab is not asked: a revoked token still looks valid here (`jmp auth whoami` asks). The exit code is 1 when there
    is no token or when it has expired.
    """
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.login_record import LoginRecord
    from jumpstarter_cli.oidc import claims_of

    config = resolve(client, client_config)
    if not config.token:
        click.echo(f'client "{config.alias}" has no token; `jmp login` gets one', err=True)
        return 1
    try:
        claims = claims_of(config.token)
    except ValueError:
        claims = {}
    expiry = _expiry(claims)
    left = (expiry - datetime.now(UTC)).total_seconds() if expiry else None
    record = LoginRecord.of(config)
    data: dict[str, Any] = {
        "client": config.metadata.name,
        "namespace": config.metadata.namespace,
        "endpoint": config.endpoint,
        "issuer": claims.get("iss"),
        "subject": claims.get("sub"),
        "expires": expiry.isoformat().replace("+00:00", "Z") if expiry else None,
        "expired": left is not None and left <= 0,
        "refreshToken": config.refresh_token is not None,
        "loginIssuer": record.issuer if record else None,
    }
    if verbose:
        data["claims"] = claims
    if output:
        print_data(data, output)
    else:
        _show(data, expiry, left)
    return 1 if data["expired"] else 0


def _expiry(claims: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(claims["exp"]), UTC)
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def _show(data: dict[str, Any], expiry: datetime | None, left: float | None) -> None:
    if expiry is None or left is None:
        validity = "unknown: the token does not say"
    elif left <= 0:
        validity = click.style(f"expired {span(-left)} ago ({local(expiry)})", fg="red")
    else:
        validity = click.style(f"{span(left)} left, until {local(expiry)}", fg="yellow" if left < _SOON else "green")
    rows = [
        ("Client", f"{data['namespace'] or '-'}/{data['client']}"),
        ("Controller", data["endpoint"] or "-"),
        ("Token", validity),
        ("Issuer", data["issuer"] or "-"),
        ("Subject", data["subject"] or "-"),
        ("Refresh", "refresh token stored" if data["refreshToken"] else "no refresh token"),
        *((f"  {key}", str(value)) for key, value in sorted(data.get("claims", {}).items())),
    ]
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        click.echo(f"{title.ljust(width)}  {text}")


@click.command("whoami")
@opt_client
@opt_output("json", "yaml", "name")
def whoami(client: str | None, client_config: str | None, output: str | None) -> None:
    """Ask the lab who you are."""
    from jumpstarter.client.admin import connect_admin
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.lease_view import plain

    config = resolve(client, client_config)

    async def ask() -> Identity:
        async with connect_admin(config) as admin:
            return await admin.whoami()

    who = call_with_login(config, ask)
    if output == "name":
        click.echo(who.name)
    elif output:
        print_data(plain(who), output)
    else:
        role = ", administrator" if who.administrator else ""
        until = f", until {local(who.expiry)}" if who.expiry else ""
        click.echo(f"{who.kind} {who.namespace}/{who.name}{role} at {config.endpoint} by {who.method}{until}")


@click.command("refresh")
@opt_client
def refresh(client: str | None, client_config: str | None) -> None:
    """Get a new token from the issuer, by the refresh token."""
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.login_record import LoginRecord
    from jumpstarter_cli.relogin import refresh as refresh_token

    config = resolve(client, client_config)
    record = LoginRecord.of(config)
    if not config.refresh_token:
        raise click.ClickException(
            f'client "{config.alias}" has no refresh token: log in with `jmp login --offline-access`, or get a '
            "token of the lab's own with `jmp auth rotate`"
        )
    if record is None:
        raise click.ClickException(
            f'client "{config.alias}": it is not known which issuer its refresh token is of; log in with `jmp login`'
        )
    refresh_token(config, record)
    click.echo(f'client "{config.alias}": token refreshed{_until(config)}')


@click.command("rotate")
@opt_client
def rotate(client: str | None, client_config: str | None) -> None:
    """Get a new token from the lab.

    The lab issues it for the present one, which has to be valid still.
    """
    import asyncio

    from jumpstarter.client.controller import connect_controller
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.login_record import forget_login
    from jumpstarter_cli.oidc import Tokens
    from jumpstarter_cli.relogin import store

    config = resolve(client, client_config)
    if config.path is None:
        raise click.ClickException("the client is from the environment (JMP_TOKEN): there is no file for a new token")

    async def ask() -> tuple[str, datetime]:
        async with connect_controller(config) as controller:
            return await controller.rotate_token()

    token, _ = asyncio.run(ask())
    config.refresh_token = None
    store(config, Tokens(token))
    forget_login(config.path)
    click.echo(f'client "{config.alias}": token rotated{_until(config)}')


def _until(config: ClientConfigV1Alpha1) -> str:
    from jumpstarter_cli.oidc import claims_of

    try:
        expiry = _expiry(claims_of(config.token or ""))
    except ValueError:
        return ""
    return f", valid until {local(expiry)}" if expiry else ""
