# SPDX-License-Identifier: Apache-2.0
"""ClientConfig: who the user is to a controller, and which driver code may be imported for it.

Which configuration is used, first match wins (`ClientConfigV1Alpha1.resolve`):

1. `--client-config PATH` or `--client ALIAS`. The file alone counts; no variable changes a value in it.
2. JMP_CLIENT_CONFIG (path) or JMP_CLIENT (alias).
3. JMP_NAMESPACE and JMP_NAME: a configuration from the environment alone.
4. The current client (`jmp config client use`).

In cases 2 and 4, JMP_ENDPOINT, JMP_TOKEN, JMP_REFRESH_TOKEN, JMP_DRIVERS_ALLOW and JMP_DRIVERS_UNSAFE replace the
file's values.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError
from jumpstarter.config import env
from jumpstarter.config.common import ConfigFile, Model, ObjectMeta
from jumpstarter.config.files import SUFFIX, aliases, check_alias, config_home, write_private
from jumpstarter.config.tls import TLSConfigV1Alpha1

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from jumpstarter.client.controller import ControllerClient
    from jumpstarter.client.leased import Lease, Seconds

__all__ = [
    "ClientConfigV1Alpha1",
    "ClientConfigV1Alpha1Drivers",
    "ClientConfigV1Alpha1Lease",
    "ClientConfigV1Alpha1Shell",
]


class ClientConfigV1Alpha1Drivers(Model):
    """Which client classes may be imported.

    allow: globs over dotted class paths; a comma separated string is split, empty entries are dropped. unsafe: import
    whatever the exporter names ("UNSAFE" within `allow` means the same).
    """

    allow: list[str] = Field(default_factory=list)
    unsafe: bool = False

    @field_validator("allow", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if value is None:
            return []
        if isinstance(value, str):
            value = value.split(",")
        if isinstance(value, list):
            return [item.strip() if isinstance(item, str) else item for item in value if item not in ("", None)]
        return value

    @model_validator(mode="after")
    def _unsafe_word(self) -> Self:
        if "UNSAFE" in self.allow:
            self.unsafe = True
        return self

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self | None:
        """From JMP_DRIVERS_ALLOW and JMP_DRIVERS_UNSAFE; None when neither is set."""
        environ = os.environ if environ is None else environ
        allow, unsafe = environ.get(env.JMP_DRIVERS_ALLOW), environ.get(env.JMP_DRIVERS_UNSAFE)
        if allow is None and unsafe is None:
            return None
        return cls.model_validate({"allow": allow or "", "unsafe": env.is_true(unsafe)})


class ClientConfigV1Alpha1Shell(Model):
    """use_profiles: `jmp shell` reads the user's shell profile."""

    use_profiles: bool = False


class ClientConfigV1Alpha1Lease(Model):
    """Timeouts in seconds.

    acquisition: to get a lease. dial: to reach its exporter. retry: to get a new one when it is lost (0: never).
    """

    acquisition_timeout: int = Field(default=7200, ge=5)
    dial_timeout: float = Field(default=60.0, ge=5)
    retry_timeout: float = Field(default=300.0, ge=0)


class ClientConfigV1Alpha1(ConfigFile):
    """A client identity: `<config home>/clients/<alias>.yaml`."""

    KIND: ClassVar[str] = "ClientConfig"

    kind: Literal["ClientConfig"] = "ClientConfig"
    metadata: ObjectMeta = Field(default_factory=ObjectMeta)
    endpoint: str | None = None
    tls: TLSConfigV1Alpha1 = Field(default_factory=TLSConfigV1Alpha1)
    token: str | None = Field(default=None, repr=False)
    refresh_token: str | None = Field(default=None, repr=False)
    grpcOptions: dict[str, str | int] = Field(default_factory=dict)
    drivers: ClientConfigV1Alpha1Drivers = Field(default_factory=ClientConfigV1Alpha1Drivers)
    shell: ClientConfigV1Alpha1Shell = Field(default_factory=ClientConfigV1Alpha1Shell)
    leases: ClientConfigV1Alpha1Lease = Field(default_factory=ClientConfigV1Alpha1Lease)

    alias: str = Field(default="default", exclude=True)
    path: Path | None = Field(default=None, exclude=True)

    @field_validator("tls", "grpcOptions", "drivers", "shell", "leases", mode="before")
    @classmethod
    def _nothing_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    # --- files -------------------------------------------------------------------------------------------------

    @staticmethod
    def user_path(alias: str) -> Path:
        """The file of `alias`. Raises `ConfigurationError` for an alias that would leave the directory."""
        return config_home() / "clients" / f"{check_alias(alias, 'client')}{SUFFIX}"

    @classmethod
    def exists(cls, alias: str) -> bool:
        """Whether there is a configuration `alias`."""
        return cls.user_path(alias).is_file()

    @classmethod
    def load(cls, alias: str) -> Self:
        """Read the configuration `alias`. Raises `FileNotFoundError`, `ConfigurationError`."""
        path = cls.user_path(alias)
        if not path.is_file():
            raise FileNotFoundError(f'no client configuration "{alias}" ({path}); see `jmp config client list`')
        return cls.read(path, alias=alias, path=path)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read the file at `path`; its alias is the file's name without suffix."""
        return cls.read(Path(path), alias=Path(path).stem, path=Path(path))

    @classmethod
    def list(cls) -> list[Self]:
        """All configurations, sorted by alias."""
        return [cls.load(alias) for alias in aliases(config_home() / "clients")]

    @classmethod
    def save(cls, config: Self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write `config` to `path`, or to the user's directory under its alias. Returns the file's path."""
        target = Path(path) if path is not None else cls.user_path(config.alias)
        write_private(target, config.to_yaml())
        config.path = target
        return target

    @classmethod
    def delete(cls, alias: str) -> Path:
        """Remove the configuration `alias` and return its path. Raises `FileNotFoundError`."""
        path = cls.user_path(alias)
        if not path.is_file():
            raise FileNotFoundError(f'no client configuration "{alias}" ({path})')
        path.unlink()
        return path

    # --- which one ---------------------------------------------------------------------------------------------

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self | None:
        """A configuration from JMP_NAMESPACE, JMP_NAME and the other JMP_ variables; None without these two."""
        environ = os.environ if environ is None else environ
        namespace, name = environ.get(env.JMP_NAMESPACE), environ.get(env.JMP_NAME)
        if not namespace or not name:
            return None
        config = cls(metadata=ObjectMeta(namespace=namespace, name=name))
        config.apply_env(environ)
        return config

    def apply_env(self, environ: Mapping[str, str] | None = None) -> None:
        """Let JMP_ENDPOINT, JMP_TOKEN, JMP_REFRESH_TOKEN, JMP_DRIVERS_* replace the values here."""
        environ = os.environ if environ is None else environ
        for name, field in (
            (env.JMP_ENDPOINT, "endpoint"),
            (env.JMP_TOKEN, "token"),
            (env.JMP_REFRESH_TOKEN, "refresh_token"),
        ):
            if environ.get(name):
                setattr(self, field, environ[name])
        drivers = ClientConfigV1Alpha1Drivers.from_env(environ)
        if drivers is not None:
            self.drivers = drivers

    @classmethod
    def resolve(cls, alias: str | None = None, path: str | os.PathLike[str] | None = None) -> Self | None:
        """The configuration to use, by the order at the top of this module; None when nothing is configured."""
        if alias is not None and path is not None:
            raise ConfigurationError("--client and --client-config exclude each other")
        if path is not None:
            return cls.from_file(path)
        if alias is not None:
            return cls.load(alias)
        config = cls._from_named_variable()
        if config is None:
            from_env = cls.from_env()
            if from_env is not None:
                return from_env
            config = cls._current()
        if config is not None:
            config.apply_env()
        return config

    @classmethod
    def _from_named_variable(cls) -> Self | None:
        path = os.environ.get(env.JMP_CLIENT_CONFIG)
        if path:
            return cls.from_file(path)
        alias = os.environ.get(env.JMP_CLIENT)
        return cls.load(alias) if alias else None

    @classmethod
    def _current(cls) -> Self | None:
        from jumpstarter.config.user import UserConfigV1Alpha1

        if not UserConfigV1Alpha1.exists():
            return None
        alias = UserConfigV1Alpha1.load().config.current_client_alias
        return cls.load(alias) if alias and cls.exists(alias) else None

    # --- leases ------------------------------------------------------------------------------------------------

    def lease(
        self,
        selector: str | None = None,
        exporter_name: str | None = None,
        lease_name: str | None = None,
        duration: Seconds | None = timedelta(minutes=30),
        **options: Any,
    ) -> AbstractContextManager[Lease]:
        """Context for blocking code: a leased exporter.

        selector, exporter_name: which one. lease_name (or JMP_LEASE): a lease that exists; it is not given back.
        duration: the most it may last, None for as long as the context. options: acquisition_timeout, dial_timeout
        (seconds; by default those of this configuration), tags, context. Raises LeaseError and others, as
        `jumpstarter.client.lease.hold_lease` does.

        with config.lease(selector="board=rpi4") as lease, lease.connect() as client:
            client.power.on()
        """
        from jumpstarter.client.leased import lease

        return lease(self, selector, exporter_name, lease_name, duration, **options)

    def lease_async(
        self,
        selector: str | None = None,
        exporter_name: str | None = None,
        lease_name: str | None = None,
        duration: Seconds | None = timedelta(minutes=30),
        portal: BlockingPortal | None = None,
        **options: Any,
    ) -> AbstractAsyncContextManager[Lease]:
        """As `lease`, for code in an event loop.

        portal: of this loop, for the blocking methods of driver clients.
        """
        from jumpstarter.client.leased import lease_async

        return lease_async(self, selector, exporter_name, lease_name, duration, portal, **options)

    # Each of these asks the controller. Blocking code gets the answer, code in an event loop a coroutine to await.

    def _ask(self, question: Callable[[ControllerClient], Awaitable[Any]]) -> Any:
        import asyncio  # most commands read configurations and ask nobody

        async def ask() -> Any:
            from jumpstarter.client.controller import connect_controller

            async with connect_controller(self) as controller:
                return await question(controller)

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return asyncio.run(ask())
        return ask()

    def get_exporter(self, name: str) -> Any:
        """An exporter (`ExporterInfo`)."""
        return self._ask(lambda controller: controller.get_exporter(name))

    def list_exporters(self, filter: str | None = None, *, show_hidden_labels: bool = False) -> Any:
        """The exporters whose labels match (list of `ExporterInfo`)."""
        return self._ask(
            lambda controller: controller.list_exporters(filter or "", show_hidden_labels=show_hidden_labels)
        )

    def create_lease(
        self,
        selector: str | None = None,
        duration: Seconds | None = None,
        *,
        exporter_name: str | None = None,
        begin_time: datetime | None = None,
        end_time: datetime | None = None,
        lease_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Create a lease that nobody holds: it lasts until its time is over or it is deleted (`LeaseInfo`).

        options: further fields of `LeaseWish`.
        """
        from jumpstarter.client.leased import seconds
        from jumpstarter.client.records import LeaseWish

        wish = LeaseWish(
            selector=selector or "",
            exporter_name=exporter_name,
            duration=seconds(duration),
            begin_time=begin_time,
            end_time=end_time,
            name=lease_id or "",
            **options,
        )
        return self._ask(lambda controller: controller.create_lease(wish))

    def delete_lease(self, name: str) -> Any:
        """Give a lease back."""
        return self._ask(lambda controller: controller.delete_lease(name))

    def list_leases(self, filter: str | None = None, *, only_active: bool = True, tag_filter: str | None = None) -> Any:
        """The leases that ask for these labels and bear these tags, of all clients (list of `LeaseInfo`)."""
        return self._ask(
            lambda controller: controller.list_leases(
                filter or "", only_active=only_active, tag_filter=tag_filter or ""
            )
        )

    def update_lease(
        self,
        name: str,
        duration: Seconds | None = None,
        begin_time: datetime | None = None,
        client: str | None = None,
        *,
        end_time: datetime | None = None,
    ) -> Any:
        """Change a lease's times, or hand it over to another client (`LeaseInfo`)."""
        from jumpstarter.client.leased import seconds

        return self._ask(
            lambda controller: controller.update_lease(
                name, duration=seconds(duration), begin_time=begin_time, end_time=end_time, client=client
            )
        )

    def rotate_token(self) -> Any:
        """A new token for this client and when it expires; this configuration and its file keep the old one."""
        return self._ask(lambda controller: controller.rotate_token())
