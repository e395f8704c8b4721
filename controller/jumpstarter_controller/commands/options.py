# SPDX-License-Identifier: Apache-2.0
"""Options of the commands of `admin`, and the files that they write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from jumpstarter_controller.commands.common import Command, OpenLab, labels_of

__all__ = [
    "allow_option",
    "endpoint_option",
    "kind_argument",
    "labels_option",
    "name_argument",
    "reached_at",
    "save_option",
    "unsafe_option",
    "username_option",
    "write_file",
]

labels_option = click.option(
    "-l", "--label", "labels", multiple=True, callback=labels_of, help="KEY=VALUE, repeatable."
)
username_option = click.option("--oidc-username", "username", help="Who this is at an external issuer, with prefix.")
allow_option = click.option("-a", "--allow", multiple=True, help="Driver classes the client may import, as globs.")
unsafe_option = click.option("--unsafe", is_flag=True, help="The client imports whatever exporters name.")
endpoint_option = click.option(
    "--endpoint", help="host:port for the file to name. Default: the one in the configuration."
)
kind_argument = click.argument("kind", type=click.Choice(["client", "exporter"]))
name_argument = click.argument("name")


def save_option(*, required: bool) -> Callable[[Command], Command]:
    """--save."""
    return click.option(
        "--save",
        required=required,
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write the file with the token here (mode 0600)." + ("" if required else " Without it no token is made."),
    )


def reached_at(lab: OpenLab, path: Path, given: str | None) -> str:
    """The endpoint for a file to name. Raises UsageError when there is none."""
    endpoint = given or lab.config.endpoint
    if endpoint is None:
        raise click.UsageError(f"{path} has no endpoint: name the one for the file with --endpoint")
    return endpoint


def write_file(
    lab: OpenLab,
    kind: str,
    namespace: str,
    name: str,
    endpoint: str,
    token: str,
    save: Path,
    allow: tuple[str, ...],
    unsafe: bool,
) -> None:
    """Write the configuration file that holds a token."""
    from jumpstarter.config.files import write_private
    from jumpstarter_controller.administration.files import Credentials, client_file, exporter_file

    credentials = Credentials(namespace, name, endpoint, token, lab.config.tls.ca)
    text = client_file(credentials, list(allow), unsafe) if kind == "client" else exporter_file(credentials)
    write_private(save, text)
