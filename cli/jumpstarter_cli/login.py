# SPDX-License-Identifier: Apache-2.0
"""`jmp login`."""

from __future__ import annotations

import click

from jumpstarter_cli.config_common import opt_nointeractive

__all__ = ["login"]


@click.command("login")
@click.argument("lab", required=False, metavar="[[CLIENT@]LAB]")
@click.option("--client", metavar="ALIAS", help="Log in this client; it is created when there is none.")
@click.option("--client-config", type=click.Path(), help="Log in the client of this file.")
@click.option("--exporter", metavar="ALIAS", help="Log in this exporter; it is created when there is none.")
@click.option("--exporter-config", type=click.Path(), help="Log in the exporter of this file.")
@click.option("-e", "--endpoint", help="The controller, host:port (default: what LAB says).")
@click.option("--namespace", help="Namespace at the controller (default: what LAB says).")
@click.option("--name", help="Name at the controller (default: CLIENT).")
@click.option("--token", help="A token. Better: --token-file, or let it be asked for.")
@click.option("--token-file", type=click.Path(allow_dash=True), help="File with a token; - for standard input.")
@click.option("--issuer", help="OpenID Connect issuer (default: what LAB says).")
@click.option("--client-id", help="What we are called at the issuer (default: what LAB says, or jumpstarter-cli).")
@click.option("--username", help="Log in at the issuer by name and password.")
@click.option("--password", help="The password. Better: --password-file, or let it be asked for.")
@click.option("--password-file", type=click.Path(), help="File whose first line is the password.")
@click.option("--connector-id", help="With a token: of which connector it is, for its exchange at Dex.")
@click.option(
    "--callback-port",
    type=click.IntRange(0, 65535),
    default=0,
    envvar="JMP_OIDC_CALLBACK_PORT",
    help="Port of this machine that the browser returns to (default: any free one).",
)
@click.option("--offline-access/--no-offline-access", default=True, help="Ask for a refresh token, too (default: yes).")
@click.option("--device-flow", is_flag=True, envvar="JMP_OIDC_DEVICE_FLOW", help="Log in with a browser elsewhere.")
@click.option("--allow", help="Driver packages to trust: comma separated globs of class paths.")
@click.option("--unsafe", is_flag=True, help="Trust every driver package an exporter names.")
@click.option("--ca", type=click.Path(), help="PEM file: the lab's certificate authority.")
@click.option("--ca-fingerprint", metavar="SHA256", help="Fingerprint of the lab's certificate authority.")
@click.option("-k", "--insecure-tls", is_flag=True, help="Verify no certificate, now and later.")
@opt_nointeractive
def login(lab: str | None, **options: object) -> None:
    """Log in to a lab.

    LAB is the address of the lab's login page: it says where the controller is and who vouches for people. Without
    LAB, give --endpoint; without both, the current client logs in again.

    The first time, the fingerprint of the lab's certificate authority is shown for you to compare.

    \b
    jmp login alice@lab.example.org
    jmp login alice@lab.example.org --token-file token
    jmp login --client ci --endpoint lab.example.org:8082 --namespace default --ca ca.crt --token-file -
    """
    targets = [name for name in ("client", "client_config", "exporter", "exporter_config") if options[name]]
    if len(targets) > 1:
        raise click.UsageError(
            f"--{targets[0].replace('_', '-')} and --{targets[1].replace('_', '-')} exclude each other"
        )
    for one, other in (
        ("token", "token_file"),
        ("password", "password_file"),
        ("ca", "ca_fingerprint"),
        ("ca", "insecure_tls"),
        ("ca_fingerprint", "insecure_tls"),
    ):
        if options[one] and options[other]:
            raise click.UsageError(f"--{one.replace('_', '-')} and --{other.replace('_', '-')} exclude each other")
    if (options["password"] or options["password_file"]) and not options["username"]:
        raise click.UsageError("a password goes with --username")
    if options["ca_fingerprint"] and not lab:
        raise click.UsageError("--ca-fingerprint goes with LAB: without it, give the certificate with --ca")
    client, at, address = (lab or "").rpartition("@")
    if at and (not client or not address):
        raise click.UsageError(f'"{lab}" is not [CLIENT@]LAB')

    from jumpstarter_cli.login_flow import LoginOptions, log_in

    log_in(client or None, address or None, LoginOptions(**options))  # type: ignore[arg-type]
