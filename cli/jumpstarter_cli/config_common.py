# SPDX-License-Identifier: Apache-2.0
"""What the two kinds of configuration commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jumpstarter.common.exceptions import JumpstarterException

if TYPE_CHECKING:
    from jumpstarter.config.tls import TLSConfigV1Alpha1

__all__ = ["SECRETS", "opt_nointeractive", "public", "readable", "tls_config"]

T = TypeVar("T")

#: Never printed by a command.
SECRETS = ("token", "refresh_token")

opt_nointeractive = click.option("--nointeractive", is_flag=True, help="Ask nothing: fail when something is missing.")


def public(config: Any) -> dict[str, Any]:
    """The content of a configuration without its secrets, with where it is from."""
    data = {key: value for key, value in config.to_dict().items() if key not in SECRETS}
    return {**data, "alias": config.alias, "path": str(config.path)}


def readable(names: Iterable[str], load: Callable[[str], T]) -> Iterator[T]:
    """Load each configuration; one that is broken is reported on stderr and does not hide the others."""
    for name in names:
        try:
            yield load(name)
        except JumpstarterException as error:
            click.echo(click.style(f"Warning: {error}", fg="yellow"), err=True)


def tls_config(ca: str | None, insecure: bool) -> TLSConfigV1Alpha1:
    """The `tls` block for the options --ca (a PEM file) and --insecure-tls. Raises `ConfigurationError`."""
    from jumpstarter.config.tls import TLSConfigV1Alpha1

    if ca is None:
        return TLSConfigV1Alpha1(insecure=insecure)
    if insecure:
        raise click.UsageError("--ca and --insecure-tls exclude each other")
    import base64

    from jumpstarter_cli.lab_info import read_ca

    return TLSConfigV1Alpha1(ca=base64.b64encode(read_ca(ca)).decode())
