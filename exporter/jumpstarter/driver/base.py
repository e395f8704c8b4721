# SPDX-License-Identifier: Apache-2.0
"""The base class of drivers."""

from __future__ import annotations

import functools
import inspect
import logging
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from jumpstarter.common.metadata import Metadata
from jumpstarter.driver.decorators import mark_of

if TYPE_CHECKING:
    from jumpstarter.streams.resource import ResourceStream
    from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

__all__ = ["Driver", "Instance"]

#: uuid, parent or None, name or None, driver: one line of a driver tree.
Instance = tuple[UUID, "Driver | None", "str | None", "Driver"]

_SWITCHES = {"on": True, "off": False, "cycle": True}


@dataclass(kw_only=True)
class Driver(Metadata, metaclass=ABCMeta):
    """Base class for drivers.

    The dataclass fields of a subclass are its configuration (``config:`` in the exporter's YAML). Drivers should at
    the minimum implement the `client` method. Regular or streaming driver calls are marked with `export`, raw byte
    streams with `exportstream`.

    children: drivers below this one, by name. description: help of the driver's CLI group. methods_description: help
    by method. log_level: level of the driver's logger. resources: byte streams of clients, by the id their handles
    carry.
    """

    #: power, storage, serial, network, console, video, composite, ...: what the driver is to users and policies.
    driver_type: ClassVar[str] = "other"
    #: Importable modules of other distributions that the driver cannot do without and imports when it needs them.
    needs: ClassVar[tuple[str, ...]] = ()

    children: dict[str, Driver] = field(default_factory=dict)
    description: str | None = None
    methods_description: dict[str, str] = field(default_factory=dict)
    log_level: str = "INFO"

    resources: dict[UUID, Any] = field(default_factory=dict, init=False, repr=False)
    logger: logging.Logger = field(init=False, repr=False)
    #: True when the last successful switch of this power driver was "on"; the session uses it to give back.
    switched_on: bool = field(default=False, init=False, repr=False)
    #: Called with each new value of it, "on" before the switch is touched; must neither block for long nor raise.
    on_switched: Callable[[bool], None] | None = field(default=None, init=False, repr=False, compare=False)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.driver_type == "power":
            for name, state in _SWITCHES.items():
                function = cls.__dict__.get(name)
                if inspect.isfunction(function) and mark_of(function) is not None:
                    setattr(cls, name, _noting(function, state))

    def __post_init__(self) -> None:
        self.logger = logging.getLogger(f"driver.{type(self).__name__}")
        self.logger.setLevel(self.log_level)

    @classmethod
    @abstractmethod
    def client(cls) -> str:
        """Return full import path of the corresponding driver client class."""

    def note_switched(self, state: bool) -> None:
        """Remember which way this power driver was switched, and tell whoever wants to know."""
        self.switched_on = state
        if self.on_switched is not None:
            self.on_switched(state)

    def extra_labels(self) -> dict[str, str]:
        """Labels that a driver adds to those of its configuration."""
        return {}

    def reset(self) -> None:
        """Called at the start of a session, children first."""
        for child in self.children.values():
            child.reset()

    def close(self) -> None:
        """Called at the end of a session, children first. Must leave nothing behind and may be called twice."""
        for name, child in self.children.items():
            try:
                child.close()
            except Exception:  # one child's failure must not keep the others from closing
                self.logger.exception('closing the driver "%s" failed', name)

    def enumerate(
        self, *, root: Driver | None = None, parent: Driver | None = None, name: str | None = None
    ) -> list[Instance]:
        """This driver and all below it, parents before children."""
        root = root or self
        instances: list[Instance] = [(self.uuid, parent, name, self)]
        for child_name, child in self.children.items():
            instances.extend(child.enumerate(root=root, parent=self, name=child_name))
        return instances

    def report(
        self, *, root: Driver | None = None, parent: Driver | None = None, name: str | None = None
    ) -> jumpstarter_pb2.DriverInstanceReport:
        """What clients are told about this instance."""
        from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

        labels = {**self.labels, **self.extra_labels(), "jumpstarter.dev/client": self.client()}
        if name is not None:
            labels["jumpstarter.dev/name"] = name
        report: jumpstarter_pb2.DriverInstanceReport = jumpstarter_pb2.DriverInstanceReport(
            uuid=str(self.uuid),
            parent_uuid=str(parent.uuid) if parent else None,
            labels=labels,
            description=self.description or None,
            methods_description=self.methods_description,
        )
        return report

    def resource(self, handle: Any, timeout: float = 7200) -> AbstractAsyncContextManager[ResourceStream]:
        """The byte stream a client passed as ``handle``, as argument of a call.

        Iterate it (or ``receive()``) to read what the client sends, ``send()`` to write to it. The stream ends with
        `anyio.EndOfStream` only if the client said that it sent everything; a client that went away raises
        `anyio.BrokenResourceError`. timeout: seconds for the whole transfer of a presigned URL.

        Raises ValueError for a handle nobody opened, PermissionError for a URL the exporter's policy refuses.
        """
        from jumpstarter.streams.resource import open_resource

        return open_resource(self, handle, timeout)


def _noting(function: Callable[..., Any], state: bool) -> Callable[..., Any]:
    """Wrap a power driver's switch so that the instance remembers which way it went last."""
    mark = mark_of(function)
    if inspect.iscoroutinefunction(inspect.unwrap(function)):

        @functools.wraps(function)
        async def wrapper(self: Driver, *args: Any, **kwargs: Any) -> Any:
            if state:
                self.note_switched(True)  # before: a switch that fails halfway must be undone as well
            result = await function(self, *args, **kwargs)
            self.note_switched(state)
            return result
    else:

        @functools.wraps(function)
        def wrapper(self: Driver, *args: Any, **kwargs: Any) -> Any:
            if state:
                self.note_switched(True)
            result = function(self, *args, **kwargs)
            self.note_switched(state)
            return result

    assert mark_of(wrapper) == mark
    return wrapper
