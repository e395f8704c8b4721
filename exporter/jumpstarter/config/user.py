# SPDX-License-Identifier: Apache-2.0
"""UserConfig: which client configuration is the current one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field

from jumpstarter.common.exceptions import FileNotFoundError
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter.config.common import ConfigFile, Model, written
from jumpstarter.config.files import check_alias, config_home, write_private

__all__ = ["UserConfigV1Alpha1", "UserConfigV1Alpha1Config"]


class UserConfigV1Alpha1Config(Model):
    """`current-client`: alias of the client configuration used when none is named, or None."""

    current_client_alias: str | None = Field(default=None, alias="current-client")


class UserConfigV1Alpha1(ConfigFile):
    """The user's choices: `<config home>/config.yaml`."""

    KIND: ClassVar[str] = "UserConfig"

    kind: Literal["UserConfig"] = "UserConfig"
    config: UserConfigV1Alpha1Config = Field(default_factory=UserConfigV1Alpha1Config)

    @staticmethod
    def file() -> Path:
        """The file this is kept in."""
        return config_home() / "config.yaml"

    @classmethod
    def exists(cls) -> bool:
        """Whether there is such a file."""
        return cls.file().is_file()

    @classmethod
    def load(cls) -> Self:
        """Read the file. Raises `FileNotFoundError`, `ConfigurationError`."""
        return cls.read(cls.file())

    @classmethod
    def load_or_create(cls) -> Self:
        """Read the file; without one, save and return an empty configuration."""
        if cls.exists():
            return cls.load()
        config = cls()
        cls.save(config)
        return config

    @classmethod
    def current(cls) -> ClientConfigV1Alpha1 | None:
        """The current client's configuration; None when there is none, or the alias leads nowhere.

        Creates no file.
        """
        return cls.load().current_client() if cls.exists() else None

    @classmethod
    def save(cls, config: Self, path: Path | None = None) -> Path:
        """Write the file (0600, atomically) and return its path."""
        target = path or cls.file()
        write_private(target, config.to_yaml())
        return target

    def to_dict(self) -> dict[str, Any]:
        """The file's content; `current-client` is always there, null when there is none."""
        return {**super().to_dict(), "config": {"current-client": None, **written(self.config)}}

    def current_client(self) -> ClientConfigV1Alpha1 | None:
        """The configuration `current-client` names; None when unset or gone."""
        alias = self.config.current_client_alias
        if not alias or not ClientConfigV1Alpha1.exists(check_alias(alias, "client")):
            return None
        return ClientConfigV1Alpha1.load(alias)

    def use_client(self, name: str | None) -> Path:
        """Make the client configuration `name` the current one (None: no current one) and save.

        Raises `FileNotFoundError` when there is no such configuration.
        """
        if name is not None and not ClientConfigV1Alpha1.exists(name):
            raise FileNotFoundError(
                f'no client configuration "{name}" ({ClientConfigV1Alpha1.user_path(name)}); '
                "see `jmp config client list`"
            )
        self.config.current_client_alias = name
        return self.save(self)
