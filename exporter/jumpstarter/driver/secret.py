# SPDX-License-Identifier: Apache-2.0
"""Secrets of a driver's configuration: given inline, or as the name of a file that holds them."""

from __future__ import annotations

from pathlib import Path

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["check_secret", "read_secret"]


def check_secret(field: str, inline: str | None, path: str | None, *, required: bool = False) -> None:
    """Find at construction what is wrong with the pair of fields `field` and `field`_file.

    The file is not touched: it may be mounted later. Raises `ConfigurationError`.
    """
    if inline is not None and path is not None:
        raise ConfigurationError(f"{field} and {field}_file are both given; keep {field}_file")
    if required and inline is None and path is None:
        raise ConfigurationError(f"{field}_file (or {field}) is required")


def read_secret(field: str, inline: str | None, path: str | None) -> str | None:
    """The secret, without the line end that editors put at the end of a file; None when neither was given.

    Raises `ConfigurationError` when the file cannot be read or is empty. The text of the error never holds the secret.
    """
    if path is None:
        return inline
    try:
        secret = Path(path).expanduser().read_text(encoding="utf-8").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{field}_file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{field}_file: {path}: is no UTF-8 text") from None
    if not secret:
        raise ConfigurationError(f"{field}_file: {path}: is empty")
    return secret
