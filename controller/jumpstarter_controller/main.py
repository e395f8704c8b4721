# SPDX-License-Identifier: Apache-2.0
"""The command `jumpstarter-controller`."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from jumpstarter.common.exceptions import JumpstarterException
from jumpstarter_controller.config import ControllerConfig, seconds
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.state.database import Database, open_database

__all__ = ["cli", "main"]

F = TypeVar("F", bound=Callable[..., Any])

_config_option = click.option(
    "--config",
    "path",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The controller's configuration file.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Run a lab: leases, access, and tunnels to the devices."""


def main() -> None:
    """Entry point: an error is one line, and exit code 1."""
    try:
        cli.main(prog_name="jumpstarter-controller")
    except (JumpstarterException, Refused) as error:
        print(f"jumpstarter-controller: {error}", file=sys.stderr)
        sys.exit(1)


# --- serve ------------------------------------------------------------------------------------------------------------


@cli.command()
@_config_option
@click.option(
    "--log-level", default="INFO", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), show_default=True
)
def serve(path: Path, log_level: str) -> None:
    """Serve exporters and clients until SIGTERM. Says READY {json} on stdout when it does."""
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("alembic").setLevel("WARNING")
    asyncio.run(_serve(ControllerConfig.load(path)))


async def _serve(config: ControllerConfig) -> None:
    from jumpstarter_controller.server import running_controller

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_controller(config) as controller:
        ready = {"address": controller.address, "endpoint": controller.endpoint}
        print(f"READY {json.dumps(ready)}", flush=True)
        await stop.wait()


# --- ca ---------------------------------------------------------------------------------------------------------------

_dir_option = click.option(
    "--dir",
    "folder",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the authority's ca.crt and ca.key are.",
)


@cli.group()
def ca() -> None:
    """The lab's certificate authority."""


@ca.command("init")
@_dir_option
@click.option("--name", default="jumpstarter lab", show_default=True, help="What the authority calls itself.")
@click.option("--days", default=3650, show_default=True, type=click.IntRange(1), help="How long it is valid.")
def ca_init(folder: Path, name: str, days: int) -> None:
    """Make the authority."""
    from jumpstarter_controller.ca import init_ca

    click.echo(init_ca(folder, name, days))


@ca.command("issue")
@_dir_option
@click.option("--out", default="server", show_default=True, help="Write OUT.crt and OUT.key into the folder.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1), help="How long it is valid.")
@click.argument("hosts", nargs=-1, required=True)
def ca_issue(folder: Path, out: str, days: int, hosts: tuple[str, ...]) -> None:
    """Make a certificate for a server that is reached by these names and addresses."""
    from jumpstarter_controller.ca import issue_certificate

    for path in issue_certificate(folder, out, hosts, days):
        click.echo(path)


@ca.command("renew")
@_dir_option
@click.option("--out", default="server", show_default=True, help="Replace OUT.crt in the folder.")
@click.option("--days", default=365, show_default=True, type=click.IntRange(1), help="How long it is valid.")
def ca_renew(folder: Path, out: str, days: int) -> None:
    """Replace a certificate by one that is valid from now on. A running controller takes it up by itself."""
    from jumpstarter_controller.ca import renew_certificate

    click.echo(renew_certificate(folder, out, days))


# --- admin ------------------------------------------------------------------------------------------------------------


@cli.group()
def admin() -> None:
    """Clients, exporters, tokens and policies, directly in the database."""


def _labels(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f'"{text}" is not KEY=VALUE')
        labels[key] = value
    return labels


def _seconds(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return float(str(seconds(value)))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _subject_options(command: F) -> F:
    options = [
        _config_option,
        click.option("--namespace", help="Default: the one in the configuration."),
        click.option("--endpoint", help="host:port for the file to name. Default: the one in the configuration."),
        click.option(
            "--save",
            required=True,
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the configuration file, with the token, here (mode 0600).",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


_labels_option = click.option("-l", "--label", "labels", multiple=True, callback=_labels, help="KEY=VALUE, repeatable.")
_allow_option = click.option("-a", "--allow", multiple=True, help="Driver classes the client may import, as globs.")
_unsafe_option = click.option("--unsafe", is_flag=True, help="The client imports whatever exporters name.")


@admin.group("create")
def create() -> None:
    """Make a client, an exporter or a policy."""


@create.command("client")
@_subject_options
@_labels_option
@_allow_option
@_unsafe_option
@click.argument("name")
def create_client(
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path,
    labels: dict[str, str],
    allow: tuple[str, ...],
    unsafe: bool,
    name: str,
) -> None:
    """Make a client and write its configuration file."""
    from jumpstarter_controller.admin import client_file, create_subject

    def text(credentials: Any) -> str:
        return client_file(credentials, list(allow), unsafe)

    _give_token(path, namespace, name, endpoint, save, text, create_subject, "client", labels)


@create.command("exporter")
@_subject_options
@_labels_option
@click.argument("name")
def create_exporter(
    path: Path, namespace: str | None, endpoint: str | None, save: Path, labels: dict[str, str], name: str
) -> None:
    """Make an exporter and write its configuration file; add its drivers there."""
    from jumpstarter_controller.admin import create_subject, exporter_file

    _give_token(path, namespace, name, endpoint, save, exporter_file, create_subject, "exporter", labels)


@create.command("policy")
@_config_option
@click.option("--namespace", help="Default: the one in the configuration.")
@click.option("--exporters", default="", help="Selector of the exporters (default: all).")
@click.option("--clients", default="", help="Selector of the clients that may lease them (default: all).")
@click.option("--priority", default=0, show_default=True, help="Higher ones are served first.")
@click.option("--maximum-duration", callback=_seconds, help="Longest lease, as in 2h.")
@click.argument("name")
def create_policy(
    path: Path,
    namespace: str | None,
    exporters: str,
    clients: str,
    priority: int,
    maximum_duration: float | None,
    name: str,
) -> None:
    """Make or replace an access policy. As soon as there is one, only what policies allow is leased."""
    from jumpstarter_controller.admin import set_policy

    config = ControllerConfig.load(path)
    space = namespace or config.namespace
    with _opened(config) as database:
        database.write_now(set_policy, space, name, exporters, clients, priority, maximum_duration)


@admin.command("rotate")
@_subject_options
@_allow_option
@_unsafe_option
@click.argument("kind", type=click.Choice(["client", "exporter"]))
@click.argument("name")
def rotate(
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path,
    allow: tuple[str, ...],
    unsafe: bool,
    kind: Any,
    name: str,
) -> None:
    """Revoke every token of a client or exporter and write a file with a new one."""
    from jumpstarter_controller.admin import client_file, exporter_file, revoke

    def text(credentials: Any) -> str:
        return client_file(credentials, list(allow), unsafe) if kind == "client" else exporter_file(credentials)

    _give_token(path, namespace, name, endpoint, save, text, revoke, kind)


@admin.command("rotate-keys")
@_config_option
@click.option("--retire", is_flag=True, help="Refuse from now on what the older keys have signed.")
def rotate_signing_keys(path: Path, retire: bool) -> None:
    """Sign tokens with a new key from now on."""
    from jumpstarter_controller.identity import retire_keys, rotate_keys

    with _opened(ControllerConfig.load(path)) as database:
        click.echo(f"key {database.write_now(rotate_keys).kid} signs")
        if retire:
            click.echo(f"{database.write_now(retire_keys)} older keys are retired")


@admin.command("audit")
@_config_option
@click.option("--lease", help="Only what concerns this lease.")
@click.option("-n", "--limit", default=100, show_default=True, type=click.IntRange(1), help="How many entries.")
def audit(path: Path, lease: str | None, limit: int) -> None:
    """Print who did what, one JSON object a line, the newest last."""
    from jumpstarter_controller.admin import read_audit

    with _opened(ControllerConfig.load(path)) as database:
        for entry in database.write_now(read_audit, lease, limit):
            line = {
                "at": datetime.fromtimestamp(entry.at, UTC).isoformat(),
                "actor": entry.actor,
                "action": entry.action,
                "lease": entry.lease,
                "exporter": entry.exporter,
                **entry.detail,
            }
            click.echo(json.dumps({key: value for key, value in line.items() if value is not None}))


class _opened:
    """Context: the database of a configuration."""

    def __init__(self, config: ControllerConfig) -> None:
        self._database = open_database(config.database)

    def __enter__(self) -> Database:
        return self._database

    def __exit__(self, *_: object) -> None:
        self._database.close()


def _give_token(
    path: Path,
    namespace: str | None,
    name: str,
    endpoint: str | None,
    save: Path,
    text: Callable[[Any], str],
    transaction: Callable[..., str],
    kind: str,
    *arguments: Any,
) -> None:
    """Run the transaction that makes a token, and write the file that holds it."""
    from jumpstarter.config.files import write_private
    from jumpstarter_controller.admin import Credentials

    config = ControllerConfig.load(path)
    endpoint = endpoint or config.endpoint
    if endpoint is None:
        raise click.UsageError(f"{path} has no endpoint: name the one for the file with --endpoint")
    space = namespace or config.namespace
    with _opened(config) as database:
        token = database.write_now(transaction, kind, space, name, *arguments, config.tokens.lifetime)
    write_private(save, text(Credentials(space, name, endpoint, token, config.tls.ca)))
    click.echo(save)


if __name__ == "__main__":
    main()
