# SPDX-License-Identifier: Apache-2.0
"""`jumpstarter-controller ca`: the lab's certificate authority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from jumpstarter_controller.commands.common import (
    OpenLab,
    config_option,
    folder_option,
    namespace_option,
    opened,
    seconds_of,
)

__all__ = ["ca"]


@click.group()
def ca() -> None:
    """The lab's certificate authority."""


@ca.command("init")
@folder_option
@click.option("--name", default="jumpstarter lab", show_default=True, help="What the authority calls itself.")
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1), help="How long it is valid.")
def ca_init(folder: Path, name: str, days: int) -> None:
    """Make the authority."""
    from jumpstarter_controller.ca import init_ca

    click.echo(init_ca(folder, name, days))


@ca.command("issue")
@folder_option
@click.option("--out", default="server", show_default=True, help="Write OUT.crt and OUT.key into the folder.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1), help="How long it is valid.")
@click.argument("hosts", nargs=-1, required=True)
def ca_issue(folder: Path, out: str, days: int, hosts: tuple[str, ...]) -> None:
    """Make a certificate for a server that is reached by these names and addresses."""
    from jumpstarter_controller.ca import issue_certificate

    for path in issue_certificate(folder, out, hosts, days):
        click.echo(path)


@ca.command("issue-client")
@folder_option
@config_option
@namespace_option
@click.option("--kind", default="client", show_default=True, type=click.Choice(["client", "exporter"]))
@click.option("--out", help="Write OUT.crt and OUT.key into the folder. Default: KIND-NAME.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1), help="How long it is valid.")
@click.argument("name")
def ca_issue_client(
    folder: Path, path: Path, namespace: str | None, kind: Any, out: str | None, days: int, name: str
) -> None:
    """Make a certificate that identifies a client or exporter, instead of a token or beside one.

    It is listed and revoked as tokens are (`admin tokens`, `admin revoke`), and worth nothing once its holder is
    deleted.
    """
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, find_subject
    from jumpstarter_controller.ca import issue_client_certificate
    from jumpstarter_controller.identity.certificates import identity_uri, record_certificate

    with opened(path) as lab:
        space = namespace or lab.config.namespace
        lab.read(find_subject, kind, space, name)  # before anything is written
        uri = identity_uri(kind, space, name)
        files, certificate = issue_client_certificate(folder, out or f"{kind}-{name}", name, uri, days)

        def record(tx: Any) -> None:
            subject = find_subject(tx, kind, space, name)
            record_certificate(tx, subject, certificate.serial_number, certificate.not_valid_after_utc, LOCAL_ACTOR)

        lab.change(record)
    for file in files:
        click.echo(file)


@ca.command("renew")
@folder_option
@click.option("--out", default="server", show_default=True, help="Replace OUT.crt in the folder; ca: the authority.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1), help="How long it is valid.")
@click.option(
    "--config",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The controller's configuration file: needed for the certificate of a client or exporter.",
)
def ca_renew(folder: Path, out: str, days: int, path: Path | None) -> None:
    """Replace a certificate by one that is valid from now on. A running controller takes it up by itself."""
    from jumpstarter_controller.ca import list_certificates, renew_certificate
    from jumpstarter_controller.identity.certificates import parse_identity_uri

    listed = {each.path.name: each for each in list_certificates(folder)}.get(f"{out}.crt")
    holder = next(filter(None, map(parse_identity_uri, listed.names)), None) if listed is not None else None
    if holder is None:
        click.echo(renew_certificate(folder, out, days)[0])
        return
    if path is None:
        raise click.UsageError(f"{out}.crt is that of {holder[0]} {holder[1]}/{holder[2]}: --config is needed")
    with opened(path) as lab:
        _renew_client(lab, folder, out, days, holder)


def _renew_client(lab: OpenLab, folder: Path, out: str, days: int, holder: tuple[Any, str, str]) -> None:
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, find_subject
    from jumpstarter_controller.ca import renew_certificate
    from jumpstarter_controller.identity.certificates import record_certificate

    lab.read(find_subject, *holder)
    file, certificate = renew_certificate(folder, out, days)

    def record(tx: Any) -> None:
        subject = find_subject(tx, *holder)
        record_certificate(tx, subject, certificate.serial_number, certificate.not_valid_after_utc, LOCAL_ACTOR)

    lab.change(record)
    click.echo(file)


@ca.command("show")
@folder_option
@click.option("--within", default="30d", show_default=True, callback=seconds_of, help="What ends so soon is marked.")
@click.option("--check", is_flag=True, help="Exit with 1 when something is marked.")
def ca_show(folder: Path, within: float, check: bool) -> None:
    """List the certificates in the folder, the one that ends first at the head."""
    from jumpstarter_controller.ca import list_certificates

    marked = False
    for each in list_certificates(folder):
        left = each.left.total_seconds()
        state = "EXPIRED" if left <= 0 else "EXPIRES SOON" if left <= within else "ok"
        marked = marked or state != "ok"
        days = f"{each.left.days} days left" if left > 0 else f"{-each.left.days} days ago"
        click.echo(f"{each.path.name}: {', '.join(each.names)}: until {each.ends:%Y-%m-%d %H:%M} UTC, {days}: {state}")
    if check and marked:
        raise click.exceptions.Exit(1)
