# SPDX-License-Identifier: Apache-2.0
"""`jmp shell`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from jumpstarter_cli.options import join_selectors
from jumpstarter_cli.times import DURATION

if TYPE_CHECKING:
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["shell"]

_CONTROLLER = ("client", "client_config", "lease", "selector", "exporter_name", "duration")
_HALF_AN_HOUR = 1800.0


@click.command("shell")
@click.option("--client", metavar="ALIAS", help="Lease with this client configuration.")
@click.option("--client-config", type=click.Path(), help="Lease with this client configuration file.")
@click.option("--exporter", metavar="ALIAS", help="Run this exporter configuration here.")
@click.option("--exporter-config", type=click.Path(), help="Run this exporter configuration file here.")
@click.option("--lease", metavar="NAME", help="Use an existing lease.")
@click.option("-l", "--selector", multiple=True, callback=join_selectors, help="Lease an exporter with these labels.")
@click.option("-n", "--name", "exporter_name", metavar="EXPORTER", help="Lease the exporter of this name.")
@click.option("--duration", type=DURATION, metavar="TIME", help="How long to lease (default: 30 minutes).")
@click.option("--exporter-logs", is_flag=True, help="Show what the exporter logs.")
@click.option("--acquisition-timeout", type=click.IntRange(min=5), help="Seconds to wait for a lease.")
@click.option(
    "--retry-timeout",
    type=click.FloatRange(min=0),
    envvar="JMP_RETRY_TIMEOUT",
    help="Seconds to lease again while the exporter that was leased cannot be reached (0: not at all).",
)
@click.option(
    "--dial-timeout",
    type=click.FloatRange(min=1),
    envvar="JMP_DIAL_TIMEOUT",
    help="Seconds to wait for a leased exporter.",
)
@click.option("--tls-grpc", "endpoint", metavar="HOST:PORT", help="Connect to this exporter directly.")
@click.option("--tls-grpc-insecure", "insecure", is_flag=True, help="Connect without TLS.")
@click.option("--tls-ca", type=click.Path(), help="PEM file: the CA of the exporter (default: the system's).")
@click.option("--tls-cert", type=click.Path(), help="PEM file: our certificate, for an exporter that asks for one.")
@click.option("--tls-key", type=click.Path(), help="PEM file: its key.")
@click.option("--passphrase", help="The exporter's secret. Better: --passphrase-file or JMP_GRPC_PASSPHRASE.")
@click.option("--passphrase-file", type=click.Path(), help="File whose first line is that secret.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def shell(
    exporter: str | None,
    exporter_config: str | None,
    endpoint: str | None,
    insecure: bool,
    tls_ca: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    passphrase: str | None,
    passphrase_file: str | None,
    exporter_logs: bool,
    command: tuple[str, ...],
    **others: Any,
) -> int:
    """Open a shell, or run a command, with an exporter at hand.

    In it, `j` runs the commands of the exporter's drivers, and jumpstarter.utils.env.env() connects Python to it. The
    exit code is the command's own; 127 when it does not exist, 126 when it cannot be run, 75 when the lease ended while
    it ran (by its time, by an administrator, by preemption). Without options it uses the only lease that you have.

    \b
    jmp shell -l board=rpi4 -- j power on
    jmp shell --exporter-config board.yaml
    jmp shell --tls-grpc bench-3.lab:8443 --tls-ca lab-ca.pem -- pytest tests/
    """
    chosen = [option for option, value in _reach(exporter, exporter_config, endpoint) if value]
    wanted = [name for name in _CONTROLLER if others.get(name)]
    if len(chosen) > 1 or (chosen and wanted):
        raise click.UsageError("--exporter, --exporter-config, --tls-grpc and the lease options exclude each other")
    if endpoint is None:
        for value, option in (
            (insecure, "--tls-grpc-insecure"),
            (tls_ca, "--tls-ca"),
            (tls_cert, "--tls-cert"),
            (tls_key, "--tls-key"),
            (passphrase, "--passphrase"),
            (passphrase_file, "--passphrase-file"),
        ):
            if value:
                raise click.UsageError(f"{option} goes with --tls-grpc")
    if insecure and (tls_ca or tls_cert or tls_key):
        raise click.UsageError("--tls-grpc-insecure excludes --tls-ca, --tls-cert and --tls-key")
    if bool(tls_cert) != bool(tls_key):
        raise click.UsageError("--tls-cert and --tls-key go together")
    if passphrase and passphrase_file:
        raise click.UsageError("--passphrase and --passphrase-file exclude each other")

    if not chosen:
        return _leased(command, exporter_logs, others)

    from jumpstarter_cli import shell_session as session

    if endpoint is None:
        return session.local(exporter, exporter_config, command, exporter_logs)
    if passphrase:
        from jumpstarter_cli.secrets import warn_argv

        warn_argv("--passphrase", "--passphrase-file or JMP_GRPC_PASSPHRASE")
    reach = session.Endpoint(endpoint, insecure, tls_ca, tls_cert, tls_key, passphrase, passphrase_file)
    return session.direct(reach, command, exporter_logs)


def _leased(command: tuple[str, ...], exporter_logs: bool, options: dict[str, Any]) -> int:
    wished = bool(options["selector"] or options["exporter_name"])
    if options["lease"] and wished:
        raise click.UsageError("--lease excludes --selector and --name")
    lease = options["lease"] or ("" if wished else os.environ.get("JMP_LEASE", ""))

    from jumpstarter_cli.identity import client_config
    from jumpstarter_cli.lease_holder import Wanted
    from jumpstarter_cli.shell_lease import leased

    config = client_config(options["client"], options["client_config"])
    wanted = Wanted(
        config={},
        config_path=None,
        socket="",
        lease=lease,
        selector=options["selector"],
        exporter_name=options["exporter_name"] or "",
        duration=options["duration"] or _HALF_AN_HOUR,
        logs=exporter_logs,
        **_timeouts(config, options),
    )
    return leased(config, wanted, command)


def _timeouts(config: ClientConfigV1Alpha1, options: dict[str, Any]) -> dict[str, float]:
    names = ("acquisition_timeout", "dial_timeout", "retry_timeout")
    return {name: getattr(config.leases, name) if options[name] is None else options[name] for name in names}


def _reach(
    exporter: str | None, exporter_config: str | None, endpoint: str | None
) -> tuple[tuple[str, str | None], ...]:
    return (("--exporter", exporter), ("--exporter-config", exporter_config), ("--tls-grpc", endpoint))
