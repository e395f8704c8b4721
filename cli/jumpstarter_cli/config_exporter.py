# SPDX-License-Identifier: Apache-2.0
"""`jmp config exporter`."""

from __future__ import annotations

import click

from jumpstarter_cli.config_common import opt_nointeractive, public, readable, tls_config
from jumpstarter_cli.output import opt_output, print_data, print_table
from jumpstarter_cli.secrets import ask, read_secret, warn_argv

__all__ = ["create", "delete", "edit", "list_exporters"]


@click.command("create")
@click.argument("alias", default="default")
@click.option("--namespace", help="Namespace of the exporter at the controller.")
@click.option("--name", help="Name of the exporter (default: the alias).")
@click.option("--endpoint", help="The controller, host:port.")
@click.option("--token", help="Access token. Better: --token-file, or let it be asked for.")
@click.option("--token-file", type=click.Path(), help="File with the access token.")
@click.option("--ca", type=click.Path(), help="PEM file: the certificate authority of the controller.")
@click.option("-k", "--insecure-tls", is_flag=True, help="Do not verify the controller's certificate.")
@opt_nointeractive
@opt_output("path")
def create(
    alias: str,
    namespace: str | None,
    name: str | None,
    endpoint: str | None,
    token: str | None,
    token_file: str | None,
    ca: str | None,
    insecure_tls: bool,
    nointeractive: bool,
    output: str | None,
) -> None:
    """Create an exporter configuration.

    What is not given is asked for. Add the drivers with `jmp config exporter edit`.
    """
    from jumpstarter.config.common import ObjectMeta
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

    if token and token_file:
        raise click.UsageError("--token and --token-file exclude each other")
    path = ExporterConfigV1Alpha1.user_path(alias)
    if path.exists():
        raise click.ClickException(f'an exporter configuration "{alias}" exists ({path})')
    if token:
        warn_argv("--token", "--token-file")
    elif token_file:
        token = read_secret(token_file, "token file")
    config = ExporterConfigV1Alpha1(
        alias=alias,
        metadata=ObjectMeta(
            namespace=ask(namespace, "Namespace", "--namespace", nointeractive),
            name=ask(name, "Name", "--name", nointeractive, default=alias),
        ),
        endpoint=ask(endpoint, "Endpoint (host:port)", "--endpoint", nointeractive),
        token=ask(token, "Token", "--token-file", nointeractive, secret=True),
        tls=tls_config(ca, insecure_tls),
    )
    ExporterConfigV1Alpha1.save(config)
    click.echo(str(path) if output == "path" else f'exporter configuration "{alias}" written to {path}')


@click.command("delete")
@click.argument("alias", default="default")
@opt_output("path")
def delete(alias: str, output: str | None) -> None:
    """Delete an exporter configuration.

    Only the user's own file is removed, never one that is installed system-wide.
    """
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

    path = ExporterConfigV1Alpha1.delete(alias)
    system = ExporterConfigV1Alpha1.system_path(alias)
    if system.is_file():
        click.echo(f'Warning: "{alias}" is still installed system-wide ({system}), which now applies', err=True)
    click.echo(str(path) if output == "path" else f'exporter configuration "{alias}" deleted ({path})')


@click.command("edit")
@click.argument("alias", default="default")
def edit(alias: str) -> None:
    """Edit an exporter configuration.

    Opens $EDITOR and checks the file afterwards.
    """
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

    path = ExporterConfigV1Alpha1.user_path(alias)
    if not path.is_file():
        raise click.ClickException(f'no exporter configuration "{alias}" ({path}); jmp config exporter create {alias}')
    click.edit(filename=str(path))
    path.chmod(0o600)  # editors that replace the file give it the mode of the umask
    ExporterConfigV1Alpha1.load(alias)


@click.command("list")
@opt_output("json", "yaml", "name")
def list_exporters(output: str | None) -> None:
    """List exporter configurations.

    Tokens are never shown.
    """
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.config.files import SYSTEM_DIRECTORY, aliases

    directory = ExporterConfigV1Alpha1.user_path("any").parent
    names = sorted({*aliases(directory), *aliases(SYSTEM_DIRECTORY)})
    if output == "name":
        for name in names:
            click.echo(name)
        return
    configs = list(readable(names, ExporterConfigV1Alpha1.load))
    if output:
        data = {
            "apiVersion": "jumpstarter.dev/v1alpha1",
            "items": [public(config) for config in configs],
            "kind": "ExporterConfigList",
        }
        print_data(data, output)
        return
    print_table(("ALIAS", "PATH"), [(config.alias, str(config.path)) for config in configs])
