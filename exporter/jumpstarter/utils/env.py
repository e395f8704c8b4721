# SPDX-License-Identifier: Apache-2.0
"""The exporter of the surrounding `jmp shell`, lease or hook, as the environment describes it.

from jumpstarter.utils.env import env

with env() as client:
    client.power.on()
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jumpstarter.common.exceptions import EnvironmentVariableNotSetError
from jumpstarter.config import env as names

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from jumpstarter.client.rpc import Connection

__all__ = ["ExporterMetadata", "Reach", "drivers_from_env", "env", "env_async", "env_with_metadata"]


@dataclass(frozen=True)
class ExporterMetadata:
    """What is known about the exporter behind `env()`.

    name: of the exporter, "" when unknown. labels: of the exporter. lease: name of the lease, None without one.
    """

    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    lease: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ExporterMetadata:
        """From JMP_EXPORTER, JMP_EXPORTER_LABELS ("k=v,k=v") and JMP_LEASE."""
        environ = os.environ if environ is None else environ
        pairs = (item.partition("=") for item in environ.get(names.JMP_EXPORTER_LABELS, "").split(",") if item)
        return cls(
            name=environ.get(names.JMP_EXPORTER, ""),
            labels={key: value for key, _, value in pairs},
            lease=environ.get(names.JMP_LEASE) or None,
        )


@dataclass(frozen=True)
class Reach:
    """Everything needed to connect to the exporter of the environment, and which client classes to trust."""

    host: str
    insecure: bool
    passphrase: str | None = field(repr=False)
    tls_files: tuple[str | None, str | None, str | None]
    allow: tuple[str, ...]
    unsafe: bool

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Reach:
        """Read the environment. Raises `EnvironmentVariableNotSetError` without JUMPSTARTER_HOST."""
        environ = os.environ if environ is None else environ
        host = environ.get(names.JUMPSTARTER_HOST)
        if not host:
            raise EnvironmentVariableNotSetError(
                f"{names.JUMPSTARTER_HOST} is not set: run this inside a `jmp shell` (or a lease that provides it)"
            )
        allow, unsafe = drivers_from_env(environ)
        return cls(
            host=host,
            insecure=any(
                names.is_true(environ.get(name)) for name in (names.JMP_GRPC_INSECURE, names.JUMPSTARTER_GRPC_INSECURE)
            ),
            passphrase=environ.get(names.JMP_GRPC_PASSPHRASE) or None,
            tls_files=(
                environ.get(names.JMP_GRPC_TLS_CA) or None,
                environ.get(names.JMP_GRPC_TLS_CERT) or None,
                environ.get(names.JMP_GRPC_TLS_KEY) or None,
            ),
            allow=allow,
            unsafe=unsafe,
        )

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `jumpstarter.client.aio.connect` and `client_from_path`.

        TLS files are read now. Raises `ConfigurationError` naming one that cannot be read.
        """
        from jumpstarter.common.grpc import TLS

        tls = None if self.insecure else TLS.from_files(*self.tls_files)
        return {"tls": tls, "insecure": self.insecure, "passphrase": self.passphrase}

    def open(self) -> Connection:
        """A connection; nothing is sent yet. Needs a running event loop."""
        from jumpstarter.client.aio import open_connection

        return open_connection(self.host, **self.options())


def drivers_from_env(environ: Mapping[str, str]) -> tuple[tuple[str, ...], bool]:
    """Allow list and unsafe: the variables, else the current client's configuration, else what is registered here."""
    listed, unsafe = environ.get(names.JMP_DRIVERS_ALLOW), environ.get(names.JMP_DRIVERS_UNSAFE)
    if listed is not None or unsafe is not None:
        patterns = tuple(item.strip() for item in (listed or "").split(",") if item.strip())
        return patterns, names.is_true(unsafe) or "UNSAFE" in patterns
    from jumpstarter.config.user import UserConfigV1Alpha1

    current = UserConfigV1Alpha1.current()
    if current is not None:
        return tuple(current.drivers.allow), current.drivers.unsafe
    from jumpstarter.common.importlib import registered_patterns

    return registered_patterns(), False


@asynccontextmanager
async def env_async(portal: BlockingPortal, stack: ExitStack) -> AsyncIterator[Any]:
    """`env` for code in the event loop of `portal`. What is registered on `stack` is closed by the caller, before."""
    from jumpstarter.client.client import client_from_path

    reach = Reach.from_env()
    async with client_from_path(
        reach.host, portal, stack, list(reach.allow), reach.unsafe, **reach.options()
    ) as client:
        yield client


@contextmanager
def env() -> Iterator[Any]:
    """Connect to the exporter of the environment; yields the client of its root driver.

    Raises `EnvironmentVariableNotSetError` outside of a shell or lease, `ExporterUnreachableError` when the exporter
    does not answer.
    """
    reach = Reach.from_env()
    from jumpstarter.utils.quick import quick_client

    with quick_client(reach) as client:
        yield client


@contextmanager
def env_with_metadata() -> Iterator[tuple[Any, ExporterMetadata]]:
    """`env`, with what the environment tells about the exporter."""
    with env() as client:
        yield client, ExporterMetadata.from_env()
