# SPDX-License-Identifier: Apache-2.0
"""Drivers that group other drivers, or stand for one elsewhere in the tree."""

from __future__ import annotations

from abc import ABCMeta
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver

if TYPE_CHECKING:
    from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["Composite", "CompositeInterface", "Proxy"]


class CompositeInterface(metaclass=ABCMeta):  # noqa: B024  asks for nothing but has a client
    """A driver whose client gives its children as attributes."""

    driver_type: ClassVar[str] = "composite"

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_composite.client.CompositeClient"


@dataclass(kw_only=True)
class Composite(CompositeInterface, Driver):
    """A group of drivers, without any behaviour of its own."""


@dataclass(kw_only=True)
class Proxy(Driver):
    """Another name for a driver that is defined elsewhere in the same exporter.

    Clients see the target under the proxy's name and with the target's identity; code on the exporter that holds the
    proxy as a child (``self.children["serial"].connect()``) reaches the target's methods. A proxy owns nothing:
    resetting and closing it leaves the target alone, which is reset and closed once, where it is defined.

    ref: dotted path of the target from the root of the exporter's tree ("qemu.power"). It may lead through other
    proxies. The whole tree must exist before it can be resolved, so a wrong path shows when the tree is enumerated.
    """

    ref: str
    _target: Driver | None = field(init=False, default=None, repr=False, compare=False)
    _busy: bool = field(init=False, default=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ref, str) or not self.ref or not all(self.ref.split(".")):
            raise ConfigurationError(f'proxy: ref "{self.ref}" is not a dotted path like "qemu.power"')
        if self.children:
            raise ConfigurationError(f'proxy: ref "{self.ref}" cannot have children of its own')

    @classmethod
    def of(cls, driver: Driver) -> Proxy:
        """A proxy for a driver object, for drivers that lend a child to another child."""
        if isinstance(driver, Proxy):
            return driver
        proxy = cls(ref=type(driver).__name__)
        proxy._target = driver
        return proxy

    @classmethod
    def client(cls) -> str:
        """Path of a client class; never seen by clients, who get the target's."""
        return "jumpstarter_driver_composite.client.CompositeClient"

    def target(self, root: Driver | None = None, *, name: str | None = None) -> Driver:
        """The driver this proxy stands for. The root of the tree is needed only the first time.

        name: what the proxy is called, for the error message.

        Raises `ConfigurationError` when the path does not exist, or leads in a circle.
        """
        if self._target is not None:
            return self._target
        label = f'proxy driver "{name}" (ref "{self.ref}")' if name else f'proxy driver with ref "{self.ref}"'
        if root is None:
            raise ConfigurationError(f"{label} was used before the exporter's driver tree was complete")
        if self._busy:
            raise ConfigurationError(f"{label} leads back to itself")
        self._busy = True
        try:
            node = root
            walked: list[str] = []
            for part in self.ref.split("."):
                where = f'"{".".join(walked)}"' if walked else "the exporter"
                child = node.children.get(part)
                walked.append(part)
                if child is None:
                    known = ", ".join(sorted(node.children)) or "nothing"
                    raise ConfigurationError(
                        f'{label} references a nonexistent driver: {where} has no "{part}" (it has {known})'
                    )
                node = child.target(root, name=".".join(walked)) if isinstance(child, Proxy) else child
        finally:
            self._busy = False
        self._target = node
        return node

    def enumerate(
        self, *, root: Driver | None = None, parent: Driver | None = None, name: str | None = None
    ) -> list[Any]:
        """The target and what is below it, under this proxy's parent and name."""
        target = self.target(root, name=name)
        if self._busy:
            raise ConfigurationError(f'proxy driver "{name}" (ref "{self.ref}") leads to a driver that contains it')
        self._busy = True
        try:
            return target.enumerate(root=root, parent=parent, name=name)
        finally:
            self._busy = False

    def report(
        self, *, root: Driver | None = None, parent: Driver | None = None, name: str | None = None
    ) -> jumpstarter_pb2.DriverInstanceReport:
        """The target's report, under this proxy's parent and name."""
        return self.target(root, name=name).report(root=root, parent=parent, name=name)

    def reset(self) -> None:
        """Do nothing: the target is reset where it is defined."""

    def close(self) -> None:
        """Do nothing: the target is closed where it is defined."""

    def __getattr__(self, name: str) -> Any:
        # Only called for what a proxy does not have itself. Private names never are the target's: a half-built
        # proxy (copy, pickle) must not look for `_target` through `_target`.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.target(), name)
