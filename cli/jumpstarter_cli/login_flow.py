# SPDX-License-Identifier: Apache-2.0
"""The steps of `jmp login`: which configuration, which lab, a token, a check that the lab takes it, and the file."""

from __future__ import annotations

import asyncio
import base64
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from jumpstarter.common.exceptions import ConfigurationError, ConnectionError, ControllerError, JumpstarterException
from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
from jumpstarter.config.common import ObjectMeta
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.config.user import UserConfigV1Alpha1
from jumpstarter_cli.https import tls_context
from jumpstarter_cli.lab_info import LabInfo, Trust, fetch_lab, read_ca
from jumpstarter_cli.login_record import LoginRecord, forget_login
from jumpstarter_cli.oidc import DEFAULT_CLIENT_ID, DeviceCode, Issuer, OidcError, Tokens, claims_of
from jumpstarter_cli.secrets import ask, read_secret, warn_argv
from jumpstarter_cli.times import local

__all__ = ["LoginOptions", "browser_tokens", "issuer_of", "log_in"]

Config = ClientConfigV1Alpha1 | ExporterConfigV1Alpha1


@dataclass(frozen=True)
class LoginOptions:
    """The options of `jmp login`, by their names there."""

    client: str | None
    client_config: str | None
    exporter: str | None
    exporter_config: str | None
    endpoint: str | None
    namespace: str | None
    name: str | None
    token: str | None = field(repr=False)
    token_file: str | None
    issuer: str | None
    client_id: str | None
    username: str | None
    password: str | None = field(repr=False)
    password_file: str | None
    connector_id: str | None
    callback_port: int
    offline_access: bool
    device_flow: bool
    allow: str | None
    unsafe: bool
    ca: str | None
    ca_fingerprint: str | None
    insecure_tls: bool
    nointeractive: bool


def log_in(client: str | None, address: str | None, options: LoginOptions) -> None:
    """Log in and write the configuration. client: alias or name before the @ of the command line."""
    config, is_new = _target(client, options)
    if config is None and address is None and options.endpoint is None:
        raise click.UsageError("say where: jmp login [CLIENT@]LAB, or --endpoint HOST:PORT")
    lab = fetch_lab(address, _trust(options)) if address else None
    config = _same_lab(config, named=bool(client or _named(options)), where=_where(lab, options))
    ca = _authority(options, lab, config)
    name = options.name or client or (config.metadata.name if config and not is_new else None)
    if config is None:
        name = ask(name, "Name of the client", "--name, or CLIENT@LAB,", options.nointeractive)
        config, is_new = _client(name)
    assert config is not None
    _settle(config, lab, name or config.alias, options, ca)
    hint = _issuer_hint(config, lab, options)
    tokens = _tokens(config, hint, options, ca)
    config.token = tokens.access
    if isinstance(config, ClientConfigV1Alpha1):
        config.refresh_token = tokens.refresh
    who = _verify(config)
    _save(config, is_new, hint if tokens.refresh or _was_at_issuer(hint, tokens) else None)
    click.echo(f"{who}; configuration {config.path}", err=True)


# --- the configuration -------------------------------------------------------------------------------------------


def _target(client: str | None, options: LoginOptions) -> tuple[Config | None, bool]:
    """The configuration to log in, and whether it is a new one. None: a client whose name is to be found out."""
    if options.exporter_config:
        path = Path(options.exporter_config)
        if path.exists():
            return ExporterConfigV1Alpha1.load_path(path), False
        return ExporterConfigV1Alpha1(alias=path.stem, path=path), True
    if options.exporter:
        path = ExporterConfigV1Alpha1.user_path(options.exporter)
        if path.exists():
            return ExporterConfigV1Alpha1.load(options.exporter), False
        return ExporterConfigV1Alpha1(alias=options.exporter, path=path), True
    if options.client_config:
        path = Path(options.client_config)
        if path.exists():
            return ClientConfigV1Alpha1.from_file(path), False
        return ClientConfigV1Alpha1(alias=path.stem, path=path), True
    alias = options.client or client
    if alias:
        return _client(alias)
    return UserConfigV1Alpha1.current(), False


def _named(options: LoginOptions) -> str | None:
    return options.client or options.client_config or options.exporter or options.exporter_config


def _where(lab: LabInfo | None, options: LoginOptions) -> str | None:
    return options.endpoint or (lab.endpoint if lab else None)


def _same_lab(config: Config | None, *, named: bool, where: str | None) -> Config | None:
    """The configuration, if it is meant: the current client is not when it is of another lab. A named one moves."""
    if config is None or not config.endpoint or where is None or config.endpoint == where:
        return config
    if not named:
        return None
    click.echo(f'Note: "{config.alias}" was of {config.endpoint}; it is of {where} from now on', err=True)
    return config


def _client(alias: str) -> tuple[Config, bool]:
    if ClientConfigV1Alpha1.exists(alias):
        return ClientConfigV1Alpha1.load(alias), False
    return ClientConfigV1Alpha1(alias=alias, path=ClientConfigV1Alpha1.user_path(alias)), True


def _settle(config: Config, lab: LabInfo | None, name: str, options: LoginOptions, ca: bytes | None) -> None:
    """Where the controller is, who we are there, and what is trusted."""
    quiet = options.nointeractive
    namespace = options.namespace or (lab.namespace if lab else None) or config.metadata.namespace
    endpoint = options.endpoint or (lab.endpoint if lab else None) or config.endpoint
    config.endpoint = ask(endpoint, "Endpoint (host:port)", "--endpoint", quiet)
    config.metadata = ObjectMeta(namespace=ask(namespace, "Namespace", "--namespace", quiet), name=name)
    if options.insecure_tls:
        click.echo("Warning: certificates are not verified: anybody in between can take the token", err=True)
        config.tls = TLSConfigV1Alpha1(insecure=True)
    elif ca is not None:
        config.tls = TLSConfigV1Alpha1(ca=base64.b64encode(ca).decode())
    elif lab is not None:
        config.tls = TLSConfigV1Alpha1()
    if isinstance(config, ClientConfigV1Alpha1) and (options.allow is not None or options.unsafe):
        config.drivers = ClientConfigV1Alpha1Drivers.model_validate(
            {"allow": options.allow or "", "unsafe": options.unsafe}
        )


def _save(config: Config, is_new: bool, record: LoginRecord | None) -> None:
    assert config.path is not None
    if isinstance(config, ClientConfigV1Alpha1):
        path = ClientConfigV1Alpha1.save(config, config.path)
        if is_new and path == ClientConfigV1Alpha1.user_path(config.alias):
            UserConfigV1Alpha1.load_or_create().use_client(config.alias)
    else:
        path = ExporterConfigV1Alpha1.save(config, config.path)
    if record is not None:
        record.save(path)
    else:
        forget_login(path)


# --- trust -------------------------------------------------------------------------------------------------------


def _trust(options: LoginOptions) -> Trust:
    interactive = not options.nointeractive and sys.stdin.isatty()
    return Trust(
        ca=read_ca(options.ca) if options.ca else None,
        fingerprint=options.ca_fingerprint,
        insecure=options.insecure_tls,
        ask=_compare if interactive else None,
    )


def _compare(address: str, fingerprints: list[str]) -> bool:
    click.echo(
        f"The certificate authority of {address} is not known to this machine. Its SHA-256 fingerprint is", err=True
    )
    for fingerprint in fingerprints:
        click.echo(f"  {fingerprint}", err=True)
    return click.confirm("Compare it with what the lab's administrator says. Is it the same?", default=False, err=True)


def _authority(options: LoginOptions, lab: LabInfo | None, config: Config | None) -> bytes | None:
    """PEM of the authority of the controller, None for the system's."""
    if options.insecure_tls:
        return None
    if lab is not None:
        return lab.ca
    if options.ca:
        return read_ca(options.ca)
    return config.tls.ca_pem() if config is not None else None


# --- tokens ------------------------------------------------------------------------------------------------------


def _issuer_hint(config: Config, lab: LabInfo | None, options: LoginOptions) -> LoginRecord | None:
    """At which issuer to log in, if at any."""
    if options.issuer:
        return LoginRecord(options.issuer, options.client_id or DEFAULT_CLIENT_ID)
    if lab is not None and lab.issuers:
        first = lab.issuers[0]
        return LoginRecord(first.issuer, options.client_id or first.client_id or DEFAULT_CLIENT_ID)
    return LoginRecord.of(config) if lab is None else None


def _was_at_issuer(hint: LoginRecord | None, tokens: Tokens) -> bool:
    """Whether an access token is the issuer's, so that later logins go there."""
    try:
        return hint is not None and str(claims_of(tokens.access).get("iss", "")).rstrip("/") == hint.issuer.rstrip("/")
    except ValueError:
        return False


def _tokens(config: Config, hint: LoginRecord | None, options: LoginOptions, ca: bytes | None) -> Tokens:
    given = _given_token(options)
    if given is not None and not (options.issuer or options.connector_id):
        return Tokens(given)
    if hint is None:
        if options.username or options.device_flow or options.connector_id:
            raise click.UsageError("no issuer is known to log in at: give --issuer")
        return Tokens(ask(None, "Token", "--token-file", options.nointeractive, secret=True))
    insecure = options.insecure_tls or config.tls.insecure
    issuer = issuer_of(hint, ca, insecure=insecure, offline=options.offline_access)
    if given is not None:
        return issuer.exchange(given, options.connector_id)
    if options.username:
        return issuer.password(options.username, _password(options))
    if isinstance(config, ClientConfigV1Alpha1) and config.refresh_token and hint == LoginRecord.of(config):
        try:
            return issuer.refresh(config.refresh_token)
        except OidcError as error:
            click.echo(f"The stored refresh token is of no use any more ({error.code or error})", err=True)
    if options.nointeractive and not options.device_flow:
        raise click.UsageError(
            "--nointeractive needs --token-file, or --username with --password-file, or --device-flow"
        )
    return browser_tokens(issuer, options.device_flow, options.callback_port)


def issuer_of(record: LoginRecord, ca: bytes | None, *, insecure: bool, offline: bool = True) -> Issuer:
    """The issuer of a record. The lab's authority is trusted for it as well as the system's."""
    context = tls_context(ca, insecure=insecure)
    return Issuer(record.issuer, record.client_id, context, allow_http=insecure, offline=offline)


def browser_tokens(issuer: Issuer, device_flow: bool, port: int = 0) -> Tokens:
    """By a person with a browser, elsewhere or here."""
    if device_flow:
        return issuer.device(_show_device)
    return issuer.authorization_code(port, _show_url)


def _show_url(url: str) -> None:
    click.echo(f"Open this address in a browser on this machine to log in:\n\n  {url}\n", err=True)


def _show_device(code: DeviceCode) -> None:
    click.echo(f"Open {code.url} in any browser and enter the code\n\n  {code.code}\n", err=True)
    if code.complete_url:
        click.echo(f"or open {code.complete_url}\n", err=True)


def _given_token(options: LoginOptions) -> str | None:
    if options.token:
        warn_argv("--token", "--token-file")
        return options.token
    if options.token_file == "-":
        token = sys.stdin.readline().strip()
        if not token:
            raise click.UsageError("--token-file -: standard input is empty")
        return token
    return read_secret(options.token_file, "token file") if options.token_file else None


def _password(options: LoginOptions) -> str:
    if options.password:
        warn_argv("--password", "--password-file")
        return options.password
    if options.password_file:
        return read_secret(options.password_file, "password file")
    answer: str = ask(None, f"Password of {options.username}", "--password-file", options.nointeractive, secret=True)
    return answer


# --- the check ---------------------------------------------------------------------------------------------------


def _verify(config: Config) -> str:
    """Ask the controller who we are; a line that says so. Raises when it does not take the token."""
    from jumpstarter.client.admin import Identity, connect_admin

    async def whoami() -> Identity:
        async with connect_admin(config, timeout=10) as admin:
            return await admin.whoami()

    try:
        who = asyncio.run(whoami())
    except ControllerError as error:
        if error.code != "UNIMPLEMENTED":
            raise
        return f"Token of {config.endpoint} stored (a controller of Jumpstarter 0.9: not checked)"
    except JumpstarterException as error:
        from jumpstarter.common.exceptions import AuthenticationError

        if isinstance(error, AuthenticationError) or not isinstance(error, ConnectionError):
            raise
        click.echo(f"Warning: {error}; the token is stored without having been checked", err=True)
        return f"Token of {config.endpoint} stored"
    kind = "exporter" if isinstance(config, ExporterConfigV1Alpha1) else "client"
    if who.kind != kind:
        raise ConfigurationError(f"the token belongs to {who.kind} {who.name}: it cannot log in a {kind}")
    role = ", administrator" if who.administrator else ""
    until = f", token valid until {local(who.expiry)}" if who.expiry else ""
    return f"Logged in to {config.endpoint} as {who.kind} {who.namespace}/{who.name}{role}{until}"
