# SPDX-License-Identifier: Apache-2.0
"""ExporterConfig: which drivers an exporter offers, and how it serves them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError
from jumpstarter.config.common import ConfigFile, Model, ObjectMeta
from jumpstarter.config.files import SYSTEM_DIRECTORY, aliases, config_home, exporter_paths, read_yaml, write_private
from jumpstarter.config.tls import TLSConfigV1Alpha1

if TYPE_CHECKING:
    from jumpstarter.driver import Driver

__all__ = [
    "ExporterConfigV1Alpha1",
    "ExporterConfigV1Alpha1DriverInstance",
    "FailureDetectionConfigV1Alpha1",
    "HookConfigV1Alpha1",
    "HookInstanceConfigV1Alpha1",
]


class HookInstanceConfigV1Alpha1(Model):
    """One hook: a script run before or after a lease.

    exec: interpreter (default: Python for a .py file, else /bin/sh). script: inline text or the path of a file.
    timeout: seconds. onFailure: "warn" carries on, "endLease" gives the lease back, "exit" stops the exporter.
    passEnv (ours): names or globs of the exporter's environment variables that the script may see; by default only the
    harmless ones of `jumpstarter.exporter.hooks`.
    """

    exec_: str | None = Field(default=None, alias="exec")
    script: str = Field(min_length=1)
    timeout: float = Field(default=120, gt=0)
    on_failure: Literal["warn", "endLease", "exit"] = Field(default="warn", alias="onFailure")
    pass_env: list[str] = Field(default_factory=list, alias="passEnv")


class HookConfigV1Alpha1(Model):
    """The two moments a hook can run at."""

    before_lease: HookInstanceConfigV1Alpha1 | None = Field(default=None, alias="beforeLease")
    after_lease: HookInstanceConfigV1Alpha1 | None = Field(default=None, alias="afterLease")


class FailureDetectionConfigV1Alpha1(Model):
    """When `jmp run` gives up restarting: `maxRapidFailures` failures within `rapidFailureWindow` seconds."""

    max_rapid_failures: int = Field(default=5, ge=1, alias="maxRapidFailures")
    rapid_failure_window: float = Field(default=60, gt=0, alias="rapidFailureWindow")


class ExporterConfigV1Alpha1DriverInstance(Model):
    """One node of the driver tree: `type` (a driver), `ref` (an alias of another node), or neither (a group)."""

    type: str | None = None
    ref: str | None = None
    description: str | None = None
    methods_description: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    children: dict[str, ExporterConfigV1Alpha1DriverInstance] = Field(default_factory=dict)

    @field_validator("config", "children", "methods_description", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value  # "config:" with nothing after it

    @field_validator("children")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_names(value)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read one node from a YAML file."""
        return cls.model_validate(read_yaml(Path(path)))

    @classmethod
    def from_str(cls, text: str) -> Self:
        """Read one node from YAML text."""
        import yaml

        return cls.model_validate(yaml.safe_load(text))

    def instantiate(self, *, owner: str = "default", where: str = "<exporter>") -> Driver:
        """Build this node and what is below it. `owner` makes the driver ids stable, `where` opens each error."""
        from jumpstarter.config.instantiate import build

        return build(self, owner=owner, where=where)


def check_names(children: dict[str, Any]) -> dict[str, Any]:
    """Names of drivers are parts of a dotted path, so they hold no dot and are not empty."""
    for name in children:
        if not name or "." in name:
            raise ValueError(f'"{name}" cannot name a driver: a name is not empty and has no dot')
    return children


class ExporterConfigV1Alpha1(ConfigFile):
    """An exporter: `<config home>/exporters/<alias>.yaml`, else /etc/jumpstarter/exporters/<alias>.yaml.

    `allowPresignedUrls` (ours, default none): globs over URLs that clients may have this exporter transfer itself.
    `powerOffOnEnd` (ours, default true): at the end of a session, power drivers that the session switched on are
    switched off again.
    """

    KIND: ClassVar[str] = "ExporterConfig"

    kind: Literal["ExporterConfig"] = "ExporterConfig"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    endpoint: str | None = None
    tls: TLSConfigV1Alpha1 = Field(default_factory=TLSConfigV1Alpha1)
    token: str | None = Field(default=None, repr=False)
    grpcOptions: dict[str, str | int] = Field(default_factory=dict)
    description: str | None = None
    motd: str | None = None
    export: dict[str, ExporterConfigV1Alpha1DriverInstance] = Field(default_factory=dict)
    hooks: HookConfigV1Alpha1 = Field(default_factory=HookConfigV1Alpha1)
    failure_detection: FailureDetectionConfigV1Alpha1 = Field(
        default_factory=FailureDetectionConfigV1Alpha1, alias="failureDetection"
    )
    exit_on_lease_end: bool = Field(default=False, alias="exitOnLeaseEnd")
    powerOffOnEnd: bool = True
    allowPresignedUrls: tuple[str, ...] = ()

    alias: str = Field(default="default", exclude=True)
    path: Path | None = Field(default=None, exclude=True)

    @field_validator("export", "tls", "hooks", "grpcOptions", "failure_detection", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("export")
    @classmethod
    def _names(cls, value: dict[str, Any]) -> dict[str, Any]:
        return check_names(value)

    # --- files -------------------------------------------------------------------------------------------------

    @staticmethod
    def user_path(alias: str) -> Path:
        """Where `save` writes the configuration `alias`."""
        return exporter_paths(alias)[0]

    @staticmethod
    def system_path(alias: str) -> Path:
        """Where the read-only system copy of `alias` would be."""
        return exporter_paths(alias)[1]

    @classmethod
    def find(cls, alias: str) -> Path | None:
        """The file of `alias` that `load` reads, None when there is none."""
        return next((path for path in exporter_paths(alias) if path.is_file()), None)

    @classmethod
    def exists(cls, alias: str) -> bool:
        """Whether a configuration `alias` exists, of the user or of the system."""
        return cls.find(alias) is not None

    @classmethod
    def load(cls, alias: str) -> Self:
        """Read the configuration `alias`. Raises `FileNotFoundError`, `ConfigurationError`."""
        path = cls.find(alias)
        if path is None:
            raise FileNotFoundError(
                f'no exporter configuration "{alias}": neither {cls.user_path(alias)} nor {cls.system_path(alias)} '
                "exists (see `jmp config exporter list`)"
            )
        return cls.read(path, alias=alias, path=path)

    @classmethod
    def load_path(cls, path: str | os.PathLike[str]) -> Self:
        """Read the file at `path`. Raises `FileNotFoundError`, `ConfigurationError`."""
        return cls.read(Path(path), alias="default", path=Path(path))

    @classmethod
    def list(cls) -> list[Self]:
        """All configurations, sorted by alias; one of the user hides one of the system with the same alias."""
        names = {*aliases(config_home() / "exporters"), *aliases(SYSTEM_DIRECTORY)}
        return [cls.load(name) for name in sorted(names)]

    @classmethod
    def save(cls, config: Self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write `config` to `path`, or to the user's directory under its alias. Returns the file's path."""
        target = Path(path) if path is not None else cls.user_path(config.alias)
        write_private(target, config.to_yaml())
        config.path = target
        return target

    @classmethod
    def delete(cls, alias: str) -> Path:
        """Remove the user's configuration `alias` and return its path. The system's copy is never touched."""
        path = cls.user_path(alias)
        if path.is_file():
            path.unlink()
            return path
        if cls.system_path(alias).is_file():
            raise ConfigurationError(
                f'exporter configuration "{alias}" is installed system-wide ({cls.system_path(alias)}); '
                "remove that file as an administrator"
            )
        raise FileNotFoundError(f'no exporter configuration "{alias}" ({path})')

    # --- drivers -----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """Name of the exporter: metadata.name."""
        return self.metadata.name

    @property
    def where(self) -> str:
        """What errors about this configuration begin with: its file, or its name."""
        return str(self.path) if self.path else f"exporter {self.name}"

    def instantiate(self) -> Driver:
        """Check the whole driver tree, then build it. Returns the root, a Composite of `export`.

        Nothing is constructed when any node is wrong. Ids are stable: uuid5 of the exporter's namespace and name, and
        the driver's path. Raises `ConfigurationError`, one line: file, driver path, what is wrong, what to do.
        """
        root = ExporterConfigV1Alpha1DriverInstance(description=self.description, children=self.export)
        owner = f"{self.metadata.namespace or ''}/{self.metadata.name}"
        return root.instantiate(owner=owner, where=self.where)

    def device_factory(self) -> Callable[[], Driver]:
        """A function that builds a fresh driver tree, as a session wants it."""
        return self.instantiate
