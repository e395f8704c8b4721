# SPDX-License-Identifier: Apache-2.0
"""What an exporter's configuration may say of a flasher, and whether it makes sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.storage import parse_size
from jumpstarter.driver.secret import check_secret
from jumpstarter_driver_flashers.bundle import check_bundle_name
from jumpstarter_driver_flashers.uboot_stage import BlockDevice
from jumpstarter_driver_flashers.wish import Wish
from jumpstarter_driver_storage.oci_flash import OciFlasher

__all__ = ["FlasherSettings"]

_POWER_STATES: Final = ("off", "on", "leave")
_LARGEST_CHUNK: Final = 1 << 30


@dataclass(kw_only=True)
class FlasherSettings(OciFlasher):
    """What a flasher may be told.

    Children ``serial`` and ``power`` are required. ``tftp``, ``http`` and ``uboot`` are made when they are not given;
    give ``tftp`` and ``http`` when the board reaches this host by another address than the default one.

    - flasher_bundle: folder, file:// URL or OCI reference of the bundle; None for a board that only has
      ``uboot_targets``. manifest: name of the manifest in it. variant: the device tree's.
    - default_target: flashed when the client names none; else the manifest's.
    - cache_dir: where bundles and images are kept; cache_size: bytes of images in it. tftp_dir, http_dir: roots of the
      children that are made here. cacert: file with CA certificates for boards that fetch images by https themselves.
    - insecure_registries: registries (``host:port``) that are spoken to by plain HTTP. oci_username, oci_password_file:
      login of the bundle's registry, if not that of the environment.
    - method: ``shell`` (the flasher system), ``uboot`` (U-Boot alone) or ``fls`` (needs fls_binary and fls_sha256).
      retries: attempts. retry_wait: seconds before the second one; twice as many before each further one.
    - power_after, power_after_failure: ``off``, ``on`` or ``leave``. power_wait: seconds between off and on.
    - uboot_targets: disks by target name, as U-Boot names them ("usb 0"). uboot_commands: run before. uboot_address:
      where free RAM begins; by default what U-Boot's kernel_addr_r or loadaddr says. uboot_chunk: bytes per write;
      three times as much RAM is used. tftp_windowsize: TFTP blocks that U-Boot takes between two acknowledgements.
    - Seconds: uboot_timeout (power on to prompt), network_timeout (DHCP in U-Boot), transfer_timeout (a file by TFTP),
      boot_timeout (start of the kernel to shell), device_timeout (until the disk is there), stall_timeout (nothing
      moves), flash_timeout (the write).
    """

    driver_type: ClassVar[str] = "storage"
    flasher_bundle: str | None = "quay.io/jumpstarter-dev/jumpstarter-flasher-test:latest"
    variant: str | None = None
    manifest: str = "manifest.yaml"
    default_target: str | None = None
    cache_dir: str = "/var/lib/jumpstarter/flasher"
    tftp_dir: str = "/var/lib/tftpboot"
    http_dir: str = "/var/www/html"
    cacert: str | None = None

    cache_size: int | str = "16G"
    oci_username: str | None = None
    oci_password: str | None = field(default=None, repr=False)
    oci_password_file: str | None = None

    method: str = "shell"
    retries: int = 3
    retry_wait: float = 2.0
    power_after: str = "off"
    power_after_failure: str = "off"
    power_wait: float = 2.0

    uboot_targets: dict[str, str] = field(default_factory=dict)
    uboot_commands: list[str] = field(default_factory=list)
    uboot_address: str | int | None = None
    uboot_chunk: int | str = "16M"

    tftp_windowsize: int = 1

    uboot_timeout: float = 60.0
    network_timeout: float = 60.0
    transfer_timeout: float = 300.0
    boot_timeout: float = 180.0
    device_timeout: float = 30.0
    stall_timeout: float = 120.0
    flash_timeout: float = 7200.0

    fls_binary: str | None = None
    fls_sha256: str | None = None

    def fls(self) -> tuple[Path, str]:
        """The ``fls`` program and its digest."""
        if self.fls_binary is None or self.fls_sha256 is None:
            raise ConfigurationError(
                "method fls: needs fls_binary and fls_sha256 in the exporter's configuration; or use method shell"
            )
        return Path(self.fls_binary).expanduser(), self.fls_sha256.lower()

    def uboot_base(self) -> int | None:
        """Where free RAM begins, None to ask U-Boot."""
        return None if self.uboot_address is None else int(str(self.uboot_address), 0)

    def chunk_bytes(self) -> int:
        """Bytes per write of U-Boot."""
        return parse_size(self.uboot_chunk)

    def cacert_text(self) -> str | None:
        """The configured CA certificates. Raises ConfigurationError when the file cannot be read."""
        if self.cacert is None:
            return None
        try:
            return Path(self.cacert).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"cacert: {self.cacert}: {getattr(error, 'strerror', None) or 'no text'}"
            ) from None

    def check_configuration(self) -> None:
        """Raise ConfigurationError for what is missing or wrong; touches neither hardware nor network."""
        for name in ("serial", "power"):
            if name not in self.children:
                raise ConfigurationError(f'children: "{name}" is missing (use {name}: {{ref: path.of.the.driver}})')
        check_secret("oci_password", self.oci_password, self.oci_password_file)
        if self.flasher_bundle is not None:
            checked_field("flasher_bundle", check_bundle_name, self.flasher_bundle)
        elif not self.uboot_targets:
            raise ConfigurationError("flasher_bundle: is required unless there are uboot_targets")
        for name, disk in self.uboot_targets.items():
            checked_field(f"uboot_targets.{name}", BlockDevice.parse, str(disk))
        for name in ("power_after", "power_after_failure"):
            if getattr(self, name) not in _POWER_STATES:
                raise ConfigurationError(f"{name}: {getattr(self, name)!r} is none of {', '.join(_POWER_STATES)}")
        for name in ("power_wait", "retry_wait"):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name}: {getattr(self, name):g} s is negative")
        for name in ("uboot", "network", "transfer", "boot", "device", "stall", "flash"):
            if getattr(self, f"{name}_timeout") <= 0:
                raise ConfigurationError(f"{name}_timeout: is not above zero")
        checked_field("options", Wish.parse, {"method": self.method, "retries": self.retries})
        checked_field("cache_size", parse_size, self.cache_size)
        if not 1 <= self.tftp_windowsize <= 1024:
            raise ConfigurationError(f"tftp_windowsize: {self.tftp_windowsize} is not between 1 and 1024")
        chunk = checked_field("uboot_chunk", parse_size, self.uboot_chunk)
        if not 0 < chunk <= _LARGEST_CHUNK or chunk % 4096:
            raise ConfigurationError(f"uboot_chunk: {self.uboot_chunk!r} is no multiple of 4096 bytes up to 1 GiB")
        checked_field("uboot_address", lambda _: self.uboot_base(), None)
        if (self.fls_binary is None) != (self.fls_sha256 is None):
            raise ConfigurationError("fls_binary and fls_sha256: give both or neither")
        if self.method == "fls":
            self.fls()
        if self.method == "uboot" and not self.uboot_targets:
            raise ConfigurationError("method: uboot needs uboot_targets")


def checked_field(field_name: str, check: Callable[[Any], Any], value: Any) -> Any:
    try:
        return check(value)
    except ValueError as error:
        prefix = "" if str(error).startswith(field_name) else f"{field_name}: "
        raise ConfigurationError(f"{prefix}{error}") from None
