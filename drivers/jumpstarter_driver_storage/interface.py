# SPDX-License-Identifier: Apache-2.0
"""What storage switches look like to their clients. Imports nothing that only an exporter has."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar

__all__ = ["StorageMuxFlasherInterface", "StorageMuxInterface"]


class StorageMuxInterface(metaclass=ABCMeta):
    """What every storage switch has; mix it in before `Driver` and export the methods."""

    driver_type: ClassVar[str] = "storage"

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.StorageMuxClient"

    @abstractmethod
    def host(self) -> Any:
        """Connect the storage to the exporter host."""

    @abstractmethod
    def dut(self) -> Any:
        """Connect the storage to the device under test."""

    @abstractmethod
    def off(self) -> Any:
        """Connect the storage to neither."""

    @abstractmethod
    def write(self, src: str) -> Any:
        """Write the image behind the resource handle ``src``; the storage must be connected to the host."""

    @abstractmethod
    def read(self, dst: str) -> Any:
        """Send the storage's content to the resource handle ``dst``; it must be connected to the host."""


class StorageMuxFlasherInterface(StorageMuxInterface):
    """A storage switch that clients use like a flasher: connect to the host, write or read, connect to the DUT."""

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.StorageMuxFlasherClient"
