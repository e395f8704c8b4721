# SPDX-License-Identifier: Apache-2.0
"""`jmp config client`."""

from __future__ import annotations

from pathlib import Path

import click

from jumpstarter_cli.config_common import opt_nointeractive, public, readable, tls_config
from jumpstarter_cli.output import opt_output, print_data, print_table
from jumpstarter_cli.secrets import ask, read_secret, warn_argv

__all__ = ["create", "delete", "list_clients", "use"]


@click.command("create")
@click.argument("alias")
@click.option("--namespace", help="Namespace of the client at the controller.")
@click.option("--name", help="Name of the client at the controller (default: the alias).")
@click.option("-e", "--endpoint", help="The controller, host:port.")
@click.option("-t", "--token", help="Access token. Better: --token-file, or let it be asked for.")
@click.option("--token-file", type=click.Path(), help="File with the access token.")
@click.option("-a", "--allow", help="Driver packages to trust: comma separated globs of class paths.")
@click.option("--unsafe", is_flag=True, help="Trust every driver package an exporter names.")
@click.option("--ca", type=click.Path(), help="PEM file: the certificate authority of the controller.")
@click.option("-k", "--insecure-tls", is_flag=True, help="Do not verify the controller's certificate.")
@click.option("--out", type=click.Path(), help="Write to this file instead of the configuration directory.")
@opt_nointeractive
@opt_output("path")
def create(
    alias: str,
    namespace: str | None,
    name: str | None,
    endpoint: str | None,
    token: str | None,
    token_file: str | None,
    allow: str | None,
    unsafe: bool,
    ca: str | None,
    insecure_tls: bool,
    out: str | None,
    nointeractive: bool,
    output: str | None,
) -> None:
    """Create a client configuration.

    What is not given is asked for. The first configuration becomes the current one.
    """
    from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
    from jumpstarter.config.common import ObjectMeta
    from jumpstarter.config.user import UserConfigV1Alpha1

    if token and token_file:
        raise click.UsageError("--token and --token-file exclude each other")
    if out is None and ClientConfigV1Alpha1.exists(alias):
        raise click.ClickException(f'a client configuration "{alias}" exists ({ClientConfigV1Alpha1.user_path(alias)})')
    if token:
        warn_argv("--token", "--token-file")
    elif token_file:
        token = read_secret(token_file, "token file")
    config = ClientConfigV1Alpha1(
        alias=alias,
        metadata=ObjectMeta(
            namespace=ask(namespace, "Namespace", "--namespace", nointeractive),
            name=ask(name, "Name", "--name", nointeractive, default=alias),
        ),
        endpoint=ask(endpoint, "Endpoint (host:port)", "--endpoint", nointeractive),
        token=ask(token, "Token", "--token-file", nointeractive, secret=True),
        tls=tls_config(ca, insecure_tls),
        drivers=ClientConfigV1Alpha1Drivers.model_validate(
            {
                "allow": "" if unsafe else ask(allow, "Trusted driver packages", "--allow", nointeractive, default=""),
                "unsafe": unsafe,
            }
        ),
    )
    path = ClientConfigV1Alpha1.save(config, out)
    if out is None and [found.alias for found in ClientConfigV1Alpha1.list()] == [alias]:
        UserConfigV1Alpha1.load_or_create().use_client(alias)
    click.echo(str(path) if output == "path" else f'client configuration "{alias}" written to {path}')


@click.command("delete")
@click.argument("name")
@opt_output("path")
def delete(name: str, output: str | None) -> None:
    """Delete a client configuration.

    When it was the current one, the next in the list becomes current.
    """
    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.files import aliases
    from jumpstarter.config.user import UserConfigV1Alpha1
    from jumpstarter_cli.login_record import forget_login

    path = ClientConfigV1Alpha1.delete(name)
    forget_login(path)
    if UserConfigV1Alpha1.exists():
        user = UserConfigV1Alpha1.load()
        if user.config.current_client_alias == name:
            user.use_client(next(iter(aliases(path.parent)), None))
    click.echo(str(path) if output == "path" else f'client configuration "{name}" deleted ({path})')


@click.command("list")
@opt_output("json", "yaml", "name")
def list_clients(output: str | None) -> None:
    """List client configurations.

    Tokens are never shown.
    """
    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.files import aliases
    from jumpstarter.config.user import UserConfigV1Alpha1

    directory: Path = ClientConfigV1Alpha1.user_path("any").parent
    names = aliases(directory)
    if output == "name":
        for name in names:
            click.echo(name)
        return
    current = UserConfigV1Alpha1.load().config.current_client_alias if UserConfigV1Alpha1.exists() else None
    configs = list(readable(names, ClientConfigV1Alpha1.load))
    if output:
        data = {
            "apiVersion": "jumpstarter.dev/v1alpha1",
            "currentConfig": current,
            "items": [public(config) for config in configs],
            "kind": "ClientConfigList",
        }
        print_data(data, output)
        return
    print_table(
        ("CURRENT", "ALIAS", "ENDPOINT", "PATH"),
        [("*" if c.alias == current else "", c.alias, c.endpoint or "", str(c.path)) for c in configs],
    )


@click.command("use")
@click.argument("name")
@opt_output("name")
def use(name: str, output: str | None) -> None:
    """Make a client configuration the current one."""
    from jumpstarter.config.user import UserConfigV1Alpha1

    UserConfigV1Alpha1.load_or_create().use_client(name)
    click.echo(name if output == "name" else f'now using client configuration "{name}"')
