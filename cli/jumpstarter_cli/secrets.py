# SPDX-License-Identifier: Apache-2.0
"""Secrets on their way into a command: by file, variable or prompt; on the command line only with a warning."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import click

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["ask", "read_private", "read_secret", "warn_argv"]


def read_private(path: str | Path, what: str) -> bytes:
    """The content of a file that holds a secret.

    Raises `ConfigurationError` naming the file when it cannot be read, or when everybody on the machine can read it.
    """
    try:
        with Path(path).open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & stat.S_IROTH:
                raise ConfigurationError(
                    f"{what} {path} can be read by everybody (mode {stat.S_IMODE(mode):04o}); chmod 600 it"
                )
            return stream.read()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from None


def read_secret(path: str | Path, what: str) -> str:
    """The first line of a private file, without its line end."""
    try:
        text = read_private(path, what).decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{what} {path} is not UTF-8 text") from None
    line = text.split("\n", 1)[0].rstrip("\r")
    if not line:
        raise ConfigurationError(f"{what} {path}: its first line is empty")
    return line


def warn_argv(option: str, instead: str) -> None:
    """Say that a secret on the command line is visible to everybody on the machine."""
    click.echo(f"Warning: {option} on the command line shows in the process list; use {instead}", err=True)


def ask(value: Any, text: str, option: str, nointeractive: bool, *, secret: bool = False, default: Any = None) -> Any:
    """`value` if there is one, else ask for it; without a person to ask, a usage error that names the option."""
    if value:
        return value
    if nointeractive:
        if default is not None:
            return default
        raise click.UsageError(f"{option} is required with --nointeractive")
    return click.prompt(text, hide_input=secret, default=default, show_default=bool(default), err=True)
