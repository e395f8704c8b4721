# SPDX-License-Identifier: Apache-2.0
"""A new token for a configuration whose old one is not accepted any more."""

from __future__ import annotations

import os
import sys

import click

from jumpstarter.common.exceptions import AuthenticationError, JumpstarterException, ReauthenticationFailed
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter.config.env import is_true
from jumpstarter_cli.login_flow import browser_tokens, issuer_of
from jumpstarter_cli.login_record import LoginRecord
from jumpstarter_cli.oidc import OidcError, Tokens

__all__ = ["refresh", "relogin", "store"]


def relogin(config: ClientConfigV1Alpha1, refused: AuthenticationError) -> bool:
    """Renew the token of `config`, in memory and in its file: by the refresh token, else by a browser on a terminal.

    False when it was not logged in at an issuer. Raises `ReauthenticationFailed`.
    """
    record = LoginRecord.of(config)
    if record is None:
        return False
    try:
        if config.refresh_token:
            try:
                refresh(config, record)
                return True
            except OidcError as error:
                click.echo(f"The refresh token is of no use any more ({error.code or error})", err=True)
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise ReauthenticationFailed(f"{refused}; there is nobody here to log in at {record.issuer}")
        click.echo(f"{refused.message}", err=True)
        issuer = issuer_of(record, config.tls.ca_pem(), insecure=config.tls.insecure)
        store(config, browser_tokens(issuer, is_true(os.environ.get("JMP_OIDC_DEVICE_FLOW"))))
    except ReauthenticationFailed:
        raise
    except JumpstarterException as error:
        raise ReauthenticationFailed(f"{refused.message}; {error}") from None
    return True


def refresh(config: ClientConfigV1Alpha1, record: LoginRecord) -> None:
    """Renew the token by the refresh token, unless another process just did. Raises `OidcError`, `ConnectionError`.

    One process at a time: most issuers take a refresh token once.
    """
    with record.locked(config.path):
        if _take_newer(config):
            return
        issuer = issuer_of(record, config.tls.ca_pem(), insecure=config.tls.insecure)
        store(config, issuer.refresh(config.refresh_token or ""))


def _take_newer(config: ClientConfigV1Alpha1) -> bool:
    """Take the token in the file if it is another one than ours, which was refused."""
    if config.path is None or not config.path.is_file():
        return False
    kept = ClientConfigV1Alpha1.from_file(config.path)
    if not kept.token or kept.token == config.token:
        return False
    config.token, config.refresh_token = kept.token, kept.refresh_token
    return True


def store(config: ClientConfigV1Alpha1, tokens: Tokens) -> None:
    """Put tokens into `config` and into its file; nothing else in the file changes."""
    config.token = tokens.access
    config.refresh_token = tokens.refresh or config.refresh_token
    if config.path is None:
        return
    kept = ClientConfigV1Alpha1.from_file(config.path)  # `config` may have values of the environment
    kept.token, kept.refresh_token = config.token, config.refresh_token
    ClientConfigV1Alpha1.save(kept, config.path)
