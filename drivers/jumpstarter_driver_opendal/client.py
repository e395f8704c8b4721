# SPDX-License-Identifier: Apache-2.0
"""Clients of storages, flashers and storage switches under the names Jumpstarter's drivers use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import click

from jumpstarter.client.base import DriverClient
from jumpstarter.client.decorators import driver_click_group
from jumpstarter.client.flasher import FlasherClient as _FlasherClient
from jumpstarter.client.flasher import FlasherClientInterface, add_flasher_commands, node_of
from jumpstarter.common.exceptions import ArgumentError
from jumpstarter_driver_opendal.storage_client import OpendalClient, OpendalFile
from jumpstarter_driver_storage.interface import StorageMuxInterface

if TYPE_CHECKING:
    from jumpstarter.client.imaging import DumpResult, FlashResult, ProgressCallback

__all__ = [
    "FlasherClient",
    "FlasherClientInterface",
    "OpendalClient",
    "OpendalFile",
    "StorageMuxClient",
    "StorageMuxFlasherClient",
]

PathBuf = str | PathLike[str]


@dataclass(kw_only=True)
class FlasherClient(_FlasherClient):
    """`jumpstarter.client.FlasherClient`."""


@dataclass(kw_only=True)
class StorageMuxClient(DriverClient):
    """A storage switch: `host`, `dut`, `off`, and the storage's content while it is connected to the host."""

    interface: ClassVar[type | None] = StorageMuxInterface

    def host(self) -> None:
        """Connect the storage to the exporter host."""
        self.call("host")

    def dut(self) -> None:
        """Connect the storage to the device under test."""
        self.call("dut")

    def off(self) -> None:
        """Connect the storage to neither."""
        self.call("off")

    def state(self) -> str:
        """``host``, ``dut``, ``off`` or ``unknown``; ``unknown`` from an exporter that cannot tell."""
        return str(self.call("state")) if self.has_method("state") else "unknown"

    def write(self, handle: Any) -> Any:
        """Write what the resource handle gives."""
        return self.call("write", handle)

    def read(self, handle: Any) -> Any:
        """Send the content to the resource handle."""
        return self.call("read", handle)

    def write_local_file(self, filepath: PathBuf) -> FlashResult:
        """Write a local image. Raises ImagingError."""
        from jumpstarter.client import imaging

        node = node_of(self)
        return self.portal.call(lambda: imaging.flash(node, filepath, method="write"))

    def read_local_file(self, filepath: PathBuf) -> DumpResult:
        """Read the content into a local file. Raises ImagingError."""
        from jumpstarter.client import imaging

        node = node_of(self)
        return self.portal.call(lambda: imaging.dump(node, filepath, method="read"))

    def write_file(self, operator: Any, path: str) -> FlashResult:
        """Write an image; ``operator`` must be None (a local path or an http(s) URL)."""
        _no_operator(operator)
        return self.write_local_file(path)

    def read_file(self, operator: Any, path: str) -> DumpResult:
        """Read the content into ``path``; ``operator`` must be None."""
        _no_operator(operator)
        return self.read_local_file(path)

    def cli(self) -> click.Group:
        """Commands ``host``, ``dut``, ``off``, ``write-local-file``, ``read-local-file``."""

        @driver_click_group(self)
        def base() -> None:
            """Connect storage to the exporter host or to the device"""

        add_mux_commands(base, self)
        return base


@dataclass(kw_only=True)
class StorageMuxFlasherClient(_FlasherClient, StorageMuxClient):
    """A storage switch used like a flasher: connect to the host, write or read, connect to the DUT."""

    interface: ClassVar[type | None] = StorageMuxInterface

    def flash(
        self,
        path: PathBuf | Mapping[str, PathBuf],
        *,
        target: str | None = None,
        compression: str | None = None,
        operator: Any = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> FlashResult:
        """Write the image; a storage switch has one storage, so ``target`` must be None. Raises ArgumentError."""
        if target is not None or isinstance(path, Mapping):
            raise ArgumentError("flash: a storage switch has no targets, give one image")
        _no_operator(operator)
        if self.has_method("flash_image"):  # the exporter switches, whatever becomes of this client
            result = super().flash(path, compression=compression, progress=progress, **options)
            assert not isinstance(result, dict)
            return result
        self.host()
        try:
            return self.write_local_file(path)
        finally:
            self.dut()

    def dump(
        self, path: PathBuf, *, target: str | None = None, compression: str | None = None, operator: Any = None,
        progress: ProgressCallback | None = None,
    ) -> DumpResult:  # fmt: skip
        """Read the content into a local file; ``target`` must be None."""
        if target is not None:
            raise ArgumentError("dump: a storage switch has no targets")
        _no_operator(operator)
        if self.has_method("dump"):
            return super().dump(path, compression=compression, progress=progress)
        self.host()
        try:
            return self.read_local_file(path)
        finally:
            self.dut()

    def cli(self) -> click.Group:
        """The commands of both."""

        @driver_click_group(self)
        def base() -> None:
            """Write images to switched storage and read them back"""

        add_mux_commands(base, self)
        add_flasher_commands(base, self)
        return base


def add_mux_commands(group: click.Group, client: StorageMuxClient) -> None:
    """Add the switch's commands to a command group."""

    @group.command("host")
    def host() -> None:
        """Connect the storage to the exporter host"""
        client.host()

    @group.command("dut")
    def dut() -> None:
        """Connect the storage to the device"""
        client.dut()

    @group.command("off")
    def off() -> None:
        """Disconnect the storage"""
        client.off()

    @group.command("write-local-file")
    @click.argument("file")
    def write_local_file(file: str) -> None:
        """Write FILE to the storage"""
        client.write_local_file(file)

    @group.command("read-local-file")
    @click.argument("file")
    def read_local_file(file: str) -> None:
        """Read the storage into FILE"""
        client.read_local_file(file)


def _no_operator(operator: Any) -> None:
    if operator is not None:
        raise ArgumentError("operator is not supported here; give a path or an http(s) URL")
