# SPDX-License-Identifier: Apache-2.0
"""What a flash needs of a flasher: its bundle, the board's console and power, and the servers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver
from jumpstarter.driver.calls import call_to_end
from jumpstarter.driver.secret import read_secret
from jumpstarter_driver_flashers.bundle import Bundle, BundleStore
from jumpstarter_driver_flashers.settings import FlasherSettings
from jumpstarter_driver_pyserial.hub import ConsoleHub
from jumpstarter_driver_storage.errors import StorageRefused

__all__ = ["BoardAccess"]


@dataclass(kw_only=True)
class BoardAccess(FlasherSettings):
    """A flasher's bundle and children."""

    _guard: threading.RLock = field(init=False, repr=False, default_factory=threading.RLock)
    _bundle: Bundle | None = field(init=False, repr=False, default=None)
    _forced: str | None = field(init=False, repr=False, default=None)
    _variant: str | None = field(init=False, repr=False, default=None)

    def bundle(self) -> Bundle:
        """The bundle that is in use. Blocking.

        Raises ConfigurationError for a wrong one, OSError subclasses when it cannot be had.
        """
        with self._guard:
            source = self._forced or self.flasher_bundle
            if source is None:
                raise ConfigurationError("flasher_bundle: is not set; this board can only be flashed by method uboot")
            if self._bundle is None or self._bundle.source != source:
                store = BundleStore(
                    Path(self.cache_dir).expanduser(),
                    insecure_registries=self.insecure_registries,
                    username=self.oci_username,
                    password=read_secret("oci_password", self.oci_password, self.oci_password_file),
                    home=self.flasher_bundle,
                )
                bundle = store.open(source, self.manifest)
                self._bundle = bundle
                if bundle.digest:
                    self.logger.info("flasher bundle %s is %s", source, bundle.digest)
            return self._bundle

    def dtb_variant(self) -> str | None:
        """The variant of this session."""
        return self._variant

    def console(self) -> ConsoleHub:
        """The board's console. Raises StorageRefused when it is of a kind that cannot be shared."""
        hub = getattr(self.children["serial"], "hub", None)
        if not isinstance(hub, ConsoleHub):
            raise StorageRefused(
                'the driver "serial" shares no console log: a flasher needs a PySerial console', code="refused"
            )
        return hub

    def uboot_prompt(self) -> str:
        """What U-Boot's command line begins with."""
        return str(getattr(self.children["uboot"], "prompt", "\n=>"))

    async def power(self, state: str) -> None:
        """Switch the board."""
        await _call(self.children["power"], state)

    async def ask(self, child: str, method: str) -> Any:
        """Call a method of a child."""
        return await _call(self.children[child], method)

    def tftp_root(self) -> Path:
        """Folder of the TFTP server."""
        return Path(getattr(self.children["tftp"], "root_dir", self.tftp_dir))

    def http_root(self) -> Path:
        """Folder of the HTTP server."""
        return Path(getattr(self.children["http"], "root_dir", self.http_dir))

    async def http_url(self, name: str) -> str:
        """URL of a file on the HTTP server, as the board sees it."""
        return f"{str(await self.ask('http', 'get_url')).rstrip('/')}/{name}"


async def _call(driver: Driver, name: str) -> Any:
    """Call a driver's method of either colour."""
    return await call_to_end(getattr(driver, name))
