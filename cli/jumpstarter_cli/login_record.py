# SPDX-License-Identifier: Apache-2.0
"""Which issuer a configuration was logged in at.

Kept in a file of its own beside the configuration, `.NAME.login` for NAME.yaml: the original refuses configurations
with keys it does not know. A refresh token is only ever sent to the issuer in this record, never to the one that an
(unverified) token names.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.config.files import dump_yaml, read_yaml, write_private

__all__ = ["LoginRecord", "forget_login"]


def _file(path: Path) -> Path:
    return path.with_name(f".{path.stem}.login")


@dataclass(frozen=True)
class LoginRecord:
    """Issuer and client id of a login."""

    issuer: str
    client_id: str

    @classmethod
    def of(cls, config: Any) -> Self | None:
        """The record of a configuration; None when it was not logged in at an issuer, or has no file."""
        if config.path is None or not _file(config.path).is_file():
            return None
        path = _file(config.path)
        data = read_yaml(path)
        issuer, client_id = data.get("issuer"), data.get("clientId")
        if not isinstance(issuer, str) or not isinstance(client_id, str):
            raise ConfigurationError(f"{path}: issuer and clientId must be texts; delete it and log in again")
        return cls(issuer, client_id)

    @contextmanager
    def locked(self, path: Path | None) -> Iterator[None]:
        """Context: no other process of this user is in it for the configuration at `path`."""
        if path is None or not _file(path).is_file():
            yield
            return
        with _file(path).open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def save(self, path: Path) -> None:
        """Write the record beside the configuration at `path`."""
        write_private(_file(path), dump_yaml({"issuer": self.issuer, "clientId": self.client_id}))


def forget_login(path: Path) -> None:
    """Remove the record of the configuration at `path`, if there is one."""
    _file(path).unlink(missing_ok=True)
