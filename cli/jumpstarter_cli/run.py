# SPDX-License-Identifier: Apache-2.0
"""`jmp run`."""

from __future__ import annotations

import click

__all__ = ["parse_listener", "run"]


def parse_listener(value: str) -> tuple[str, int]:
    """Host and port of "[HOST:]PORT" (IPv6 in brackets). Without a host: all addresses. Port 0: any free one."""
    host, _, port = value.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise click.BadParameter(f'"{value}" has no valid port: expected [HOST:]PORT', param_hint="--tls-grpc-listener")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise click.BadParameter(f'put the IPv6 address of "{value}" in brackets', param_hint="--tls-grpc-listener")
    return host or "0.0.0.0", int(port)


@click.command("run")
@click.option("--exporter", "alias", metavar="ALIAS", help="Exporter configuration by its alias.")
@click.option("--exporter-config", "path", type=click.Path(), help="Exporter configuration file.")
@click.option("--tls-grpc-listener", "listener", metavar="[HOST:]PORT", help="Serve clients directly on this port.")
@click.option("--tls-grpc-insecure", "insecure", is_flag=True, help="Serve without TLS.")
@click.option("--tls-cert", type=click.Path(), help="PEM file: certificate of the listener.")
@click.option("--tls-key", type=click.Path(), help="PEM file: its key.")
@click.option("--tls-client-ca", type=click.Path(), help="PEM file: only clients with a certificate of this CA.")
@click.option("--passphrase", help="Secret that clients must give. Better: --passphrase-file or JMP_GRPC_PASSPHRASE.")
@click.option("--passphrase-file", type=click.Path(), help="File whose first line is that secret.")
@click.option("--exit-on-lease-end", is_flag=True, help="Stop after the first lease.")
@click.pass_context
def run(
    ctx: click.Context,
    alias: str | None,
    path: str | None,
    listener: str | None,
    insecure: bool,
    tls_cert: str | None,
    tls_key: str | None,
    tls_client_ca: str | None,
    passphrase: str | None,
    passphrase_file: str | None,
    exit_on_lease_end: bool,
) -> int:
    """Run an exporter.

    For the controller of its configuration or, with --tls-grpc-listener, for clients directly.

    SIGINT and SIGTERM stop it: the device is given back (afterLease hook, power off) and the exit code is 0; a second
    one does not wait for hooks. SIGHUP does the same when the present lease has ended (at once with
    --tls-grpc-listener). 1 means that it could not start, that its controller does not take it, that it crashed too
    often (failureDetection), or that a hook with onFailure: exit failed.
    """
    if (alias is None) == (path is None):
        raise click.UsageError("give one of --exporter and --exporter-config")
    if listener is None:
        for value, option in (
            (insecure, "--tls-grpc-insecure"),
            (tls_cert, "--tls-cert"),
            (tls_key, "--tls-key"),
            (tls_client_ca, "--tls-client-ca"),
            (passphrase, "--passphrase"),
            (passphrase_file, "--passphrase-file"),
        ):
            if value:
                raise click.UsageError(f"{option} goes with --tls-grpc-listener")
        return _supervised(ctx, alias, path, exit_on_lease_end)
    if insecure and (tls_cert or tls_key or tls_client_ca):
        raise click.UsageError("--tls-grpc-insecure excludes --tls-cert, --tls-key and --tls-client-ca")
    if not insecure and not (tls_cert and tls_key):
        raise click.UsageError("--tls-grpc-listener needs --tls-cert and --tls-key, or --tls-grpc-insecure")
    if passphrase and passphrase_file:
        raise click.UsageError("--passphrase and --passphrase-file exclude each other")
    host, port = parse_listener(listener)
    if passphrase:
        from jumpstarter_cli.secrets import warn_argv

        warn_argv("--passphrase", "--passphrase-file or JMP_GRPC_PASSPHRASE")

    from jumpstarter_cli.logs import setup

    setup(ctx.obj["log_level"] or "INFO", ctx.obj["log_format"], "exporter")

    from jumpstarter_cli.serve import ListenerFiles, serve_direct

    files = ListenerFiles(host, port, insecure, tls_cert, tls_key, tls_client_ca, passphrase, passphrase_file)
    return serve_direct(alias, path, files, exit_on_lease_end)


def _supervised(ctx: click.Context, alias: str | None, path: str | None, exit_on_lease_end: bool) -> int:
    """Run the exporter as a child process, for its controller."""
    from jumpstarter.common.exceptions import ConfigurationError
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter_cli.logs import setup
    from jumpstarter_cli.supervise import child_argv, supervise

    level, log_format = ctx.obj["log_level"] or "INFO", ctx.obj["log_format"]
    setup(level, log_format, "exporter")
    config = ExporterConfigV1Alpha1.load(alias) if alias is not None else ExporterConfigV1Alpha1.load_path(str(path))
    # Whoever shows a certificate to the controller needs no token.
    for value, field in ((config.endpoint, "endpoint"), (config.token or config.tls.cert, "token")):
        if not value:
            raise ConfigurationError(
                f"{config.where}: {field} is not set: which controller is it for? "
                "(--tls-grpc-listener serves clients without one)"
            )
    which = ["--exporter", alias] if alias is not None else ["--exporter-config", str(path)]
    failures = config.failure_detection
    argv = child_argv(which, level, log_format, exit_on_lease_end)
    return supervise(argv, failures.max_rapid_failures, failures.rapid_failure_window)
