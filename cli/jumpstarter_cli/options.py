# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["join_selectors", "opt_client", "opt_pairs", "opt_selector", "pairs"]

F = TypeVar("F", bound=Callable[..., Any])


def opt_client(command: F) -> F:
    """The options --client and --client-config, as `client` and `client_config`."""
    command = click.option("--client-config", type=click.Path(), help="Be the client of this configuration file.")(
        command
    )
    return click.option("--client", metavar="ALIAS", help="Be this client (default: the current one).")(command)


def opt_selector(text: str) -> Callable[[F], F]:
    """The option -l/--selector, repeatable, as `selector` (joined by commas)."""
    return click.option("-l", "--selector", multiple=True, callback=join_selectors, metavar="SELECTOR", help=text)


def join_selectors(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str:
    """One selector, checked, of several that must all hold."""
    text = ",".join(value for value in values if value.strip())
    if text:
        from jumpstarter.common.selectors import SelectorError, parse_selector

        try:
            parse_selector(text)
        except SelectorError as error:
            raise click.BadParameter(str(error)) from None
    return text


def opt_pairs(*names: str, help: str) -> Callable[[F], F]:
    """A repeatable option KEY=VALUE, as a dict."""
    return click.option(*names, multiple=True, callback=pairs, metavar="KEY=VALUE", help=help)


def pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """The dict of several KEY=VALUE. The same key twice is an error."""
    found: dict[str, str] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f'"{text}" is not KEY=VALUE')
        if found.setdefault(key, value) != value:
            raise click.BadParameter(f'"{key}" is given twice')
    return found
