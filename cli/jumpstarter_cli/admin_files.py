# SPDX-License-Identifier: Apache-2.0
"""Configuration files for the clients and exporters that an administrator makes: who gets the token."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, Credential
    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter_cli.admin_common import Reach

__all__ = ["Destination", "ask_to_save", "delete_subjects", "opt_destination", "opt_drivers"]

_STDOUT = "-"


@dataclass(frozen=True)
class Destination:
    """Where the file of a new token goes. save: to the configuration directory. out: to this path, "-" for stdout."""

    save: bool
    out: str | None
    insecure: bool

    @property
    def wanted(self) -> bool:
        """Whether there is one."""
        return self.save or self.out is not None

    def path(self, kind: str, name: str) -> Path | None:
        """The file; None for standard output."""
        from jumpstarter.config.client import ClientConfigV1Alpha1
        from jumpstarter.config.exporter import ExporterConfigV1Alpha1

        if self.out == _STDOUT:
            return None
        if self.out is not None:
            return Path(self.out)
        return ClientConfigV1Alpha1.user_path(name) if kind == "client" else ExporterConfigV1Alpha1.user_path(name)

    def check_new(self, kind: str, name: str) -> None:
        """Raise `ConfigurationError` when the file exists or cannot be written."""
        from jumpstarter.config.files import check_writable

        path = self.path(kind, name)
        if path is not None and path.exists():
            raise ConfigurationError(f"{path} exists already; it is not overwritten")
        if path is not None:
            check_writable(path)

    def existing(self, kind: str, name: str) -> ClientConfigV1Alpha1 | ExporterConfigV1Alpha1 | None:
        """The file that is there already for this very client or exporter: only its token is to change.

        Raises `ConfigurationError` when it is about something else, or cannot be written.
        """
        from jumpstarter.config.client import ClientConfigV1Alpha1
        from jumpstarter.config.exporter import ExporterConfigV1Alpha1
        from jumpstarter.config.files import check_writable

        path = self.path(kind, name)
        if path is not None:
            check_writable(path)
        if path is None or not path.exists():
            return None
        found: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1
        found = ClientConfigV1Alpha1.from_file(path) if kind == "client" else ExporterConfigV1Alpha1.load_path(path)
        if found.metadata.name != name:
            raise ConfigurationError(f'{path} is of {kind} "{found.metadata.name}"; it is not overwritten')
        return found

    def write(
        self,
        kind: str,
        admin: AdminClient,
        name: str,
        credential: Credential,
        fallback: ClientConfigV1Alpha1,
        *,
        allow: str | None = None,
        unsafe: bool = False,
        existing: ClientConfigV1Alpha1 | ExporterConfigV1Alpha1 | None = None,
    ) -> Path | None:
        """Write the file (mode 0600), or print it. fallback: says how to reach the lab when the credential does not."""
        from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
        from jumpstarter.config.common import ObjectMeta
        from jumpstarter.config.exporter import ExporterConfigV1Alpha1
        from jumpstarter.config.files import write_private
        from jumpstarter.config.tls import TLSConfigV1Alpha1

        config = existing or (ClientConfigV1Alpha1() if kind == "client" else ExporterConfigV1Alpha1())
        config.metadata = ObjectMeta(namespace=admin.namespace, name=name)
        config.endpoint = credential.endpoint or fallback.endpoint
        config.token = credential.token
        ca = base64.b64encode(credential.ca.encode()).decode() if credential.ca else fallback.tls.ca
        config.tls = TLSConfigV1Alpha1(insecure=True) if self.insecure else TLSConfigV1Alpha1(ca=ca)
        if isinstance(config, ClientConfigV1Alpha1):
            config.refresh_token = None
            if allow is not None or unsafe:
                config.drivers = ClientConfigV1Alpha1Drivers.model_validate({"allow": allow or "", "unsafe": unsafe})
        path = self.path(kind, name)
        if path is None:
            click.echo(config.to_yaml(), nl=False)
        else:
            write_private(path, config.to_yaml())
        return path


def opt_destination(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options -s/--save, --out and -k/--insecure-tls, as one argument `destination`."""

    @wraps(command)
    def with_destination(*, save: bool, out: str | None, insecure_tls: bool, **others: Any) -> Any:
        if save and out is not None:
            raise click.UsageError("--save and --out exclude each other")
        return command(destination=Destination(save, out, insecure_tls), **others)

    for option in (
        click.option("-k", "--insecure-tls", is_flag=True, help="The file says not to verify the controller."),
        click.option("--out", type=click.Path(allow_dash=True), help="Write the file here; - for standard output."),
        click.option("-s", "--save", is_flag=True, help="Write the file to your configuration directory."),
    ):
        with_destination = option(with_destination)
    return with_destination


def opt_drivers(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options -a/--allow and --unsafe."""
    unsafe = click.option("--unsafe", is_flag=True, help="The client trusts every driver package an exporter names.")
    allow = click.option("-a", "--allow", help="Driver packages it trusts: comma separated globs of class paths.")
    return allow(unsafe(command))


def ask_to_save(destination: Destination, kind: str, nointeractive: bool) -> Destination:
    """Ask a person whether to save the file, when they did not say."""
    if destination.wanted or nointeractive or not sys.stdin.isatty():
        return destination
    return Destination(
        click.confirm(f"Save a configuration file for this {kind}?", default=True, err=True), None, destination.insecure
    )


def delete_subjects(
    reach: Reach, kind: str, names: tuple[str, ...], force: bool, with_file: bool, output: str | None
) -> int:
    """Delete clients or exporters, on request with their files; the exit code."""

    async def work(admin: AdminClient, name: str) -> None:
        await (admin.delete_client if kind == "client" else admin.delete_exporter)(name, force=force)
        if with_file:
            delete_file(kind, name)

    return reach.for_each(names, work, f"{kind} {{}} deleted", output)


def delete_file(kind: str, name: str) -> Path | None:
    """Delete the configuration file of a client or exporter from the user's directory; its path if there was one."""
    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.config.user import UserConfigV1Alpha1
    from jumpstarter_cli.login_record import forget_login

    try:
        path = (ClientConfigV1Alpha1 if kind == "client" else ExporterConfigV1Alpha1).delete(name)
    except FileNotFoundError:
        return None
    forget_login(path)
    if kind == "client" and UserConfigV1Alpha1.exists():
        user = UserConfigV1Alpha1.load()
        if user.config.current_client_alias == name:
            user.use_client(None)
    return path
