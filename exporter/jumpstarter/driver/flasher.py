# SPDX-License-Identifier: Apache-2.0
"""The interface of drivers that put an image onto a device."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from typing import Any, ClassVar

__all__ = ["FlasherInterface"]


class FlasherInterface(metaclass=ABCMeta):
    """What every flasher has; mix it in before `Driver` and export both methods.

    Flashers built on ``jumpstarter_driver_storage`` have more (`targets`, `flash_state`, `flash_image`,
    `verify_image`), which clients discover.
    """

    driver_type: ClassVar[str] = "storage"

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter.client.flasher.FlasherClient"

    @abstractmethod
    def flash(self, source: Any, target: str | None = None) -> Any:
        """Write the image behind the resource handle ``source`` to ``target`` (None: the driver's default)."""

    @abstractmethod
    def dump(self, target: Any, partition: str | None = None) -> Any:
        """Send what ``partition`` (None: the driver's default) holds to the resource handle ``target``."""
