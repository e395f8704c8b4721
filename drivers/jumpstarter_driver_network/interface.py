# SPDX-License-Identifier: Apache-2.0
"""What every network driver offers."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar

__all__ = ["NetworkInterface"]


class NetworkInterface(metaclass=ABCMeta):
    """A service that can be connected to, any number of times."""

    driver_type: ClassVar[str] = "network"

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_network.client.NetworkClient"

    @abstractmethod
    def connect(self) -> AbstractAsyncContextManager[Any]:
        """Stream: a new connection to the service."""
