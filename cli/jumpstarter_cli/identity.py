# SPDX-License-Identifier: Apache-2.0
"""As whom a command talks to a controller, and what happens when its token has run out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from jumpstarter.common.exceptions import AuthenticationError, ConfigurationError

if TYPE_CHECKING:
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["authentication_error", "call_with_login", "client_config"]

T = TypeVar("T")


def client_config(alias: str | None, path: str | None) -> ClientConfigV1Alpha1:
    """The client configuration to use. Raises `ConfigurationError`, which says how to get one."""
    from jumpstarter.config.client import ClientConfigV1Alpha1

    config = ClientConfigV1Alpha1.resolve(alias, path)
    if config is None:
        raise ConfigurationError(
            "no client configuration: log in with `jmp login NAME@LAB`, or name one with --client or --client-config"
        )
    return config


def call_with_login(config: ClientConfigV1Alpha1, work: Callable[[], Awaitable[T]]) -> T:
    """Run `work` in an event loop of its own.

    When the controller does not take the token of `config` any more, it is renewed (`jumpstarter_cli.relogin`), saved,
    and `work` runs once more; it has to take the token from `config`.
    """

    async def run() -> T:
        return await work()

    try:
        return asyncio.run(run())
    except Exception as error:
        refused = authentication_error(error)
        if refused is None:
            raise
        from jumpstarter_cli.relogin import relogin

        if not relogin(config, refused):
            raise refused from None
    click.echo("Logged in again.", err=True)
    return asyncio.run(run())


def authentication_error(error: BaseException) -> AuthenticationError | None:
    """The refusal of our token that `error` is or contains."""
    if isinstance(error, BaseExceptionGroup):
        found = (authentication_error(inner) for inner in error.exceptions)
        return next((inner for inner in found if inner is not None), None)
    return error if isinstance(error, AuthenticationError) else None
