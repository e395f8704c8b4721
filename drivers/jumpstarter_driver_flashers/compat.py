# SPDX-License-Identifier: Apache-2.0
"""The calls by which clients of every Jumpstarter version prepare a flash and learn of the bundle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_flashers.access import BoardAccess
from jumpstarter_driver_storage.oci import Reference

__all__ = ["BundleCalls"]

_FLS_PLACES: Final = ("/usr/local/bin/fls-aarch64", "/usr/local/bin/fls")


@dataclass(kw_only=True)
class BundleCalls(BoardAccess):
    """A flasher whose bundle can be chosen, published and read."""

    _placed: list[Path] = field(init=False, repr=False, default_factory=list)

    @export(readonly=True)
    def get_default_target(self) -> str:
        """Target of a flash that names none, "" when the client must choose."""
        return self.default_target_name() or ""

    @export(readonly=True)
    def get_cacert(self) -> str | None:
        """CA certificates (PEM) for boards that fetch images by https, None when there are none."""
        return self.cacert_text()

    @export
    def setup_fls_binary(self) -> str:
        """Put the configured ``fls`` program (or the one in /usr/local/bin) where the HTTP server finds it; its name.

        Raises ConfigurationError when there is none.
        """
        place = self.fls_binary or next((name for name in _FLS_PLACES if Path(name).is_file()), None)
        if place is None:
            raise ConfigurationError(
                "fls_binary: is not set, and there is no fls in /usr/local/bin on the exporter host"
            )
        self._publish("http", Path(place), "fls")
        return "fls"

    @export
    def setup_flasher_bundle(self, force_flash_bundle: str | None = None) -> None:
        """Get the bundle (another one, until the next such call, with ``force_flash_bundle``) and put what it boots
        where the TFTP server finds it."""
        if force_flash_bundle:
            Reference.parse(force_flash_bundle)  # never a folder of the exporter host: those are not a client's to name
        with self._guard:
            self._forced = force_flash_bundle or None
            self._bundle = None  # a tag may mean something else by now
            bundle = self.bundle()
        spec = bundle.manifest.spec
        files = [(spec.kernel.file, "spec.kernel.file")]
        if spec.initram is not None:
            files.append((spec.initram.file, "spec.initram.file"))
        variant = bundle.manifest.variant(self._variant)
        if variant is not None and variant.file is not None:
            files.append((variant.file, "spec.dtb.variants"))
        for name, where in files:
            path = bundle.file(name, where)
            self._publish("tftp", path, path.name)

    @export
    def set_dtb(self, handle: Any) -> None:
        """Not offered: device trees come from the bundle."""
        raise NotImplementedError("set_dtb: device trees come from the bundle; put yours in one, or use_dtb_variant")

    @export
    def use_dtb_variant(self, variant: str) -> None:
        """Use another of the bundle's device trees for this session. Raises ValueError that lists them."""
        bundle = self.bundle()
        found = bundle.manifest.variant(variant)
        self._variant = variant
        if found is not None and found.file is not None:
            path = bundle.file(found.file, "spec.dtb.variants")
            self._publish("tftp", path, path.name)

    @export(readonly=True)
    def get_flasher_manifest_yaml(self) -> str:
        """The manifest's text."""
        return self.bundle().manifest_path.read_text()

    @export(readonly=True)
    def get_kernel_filename(self) -> str:
        """Name of the kernel on the TFTP server."""
        return Path(self.bundle().manifest.spec.kernel.file).name

    @export(readonly=True)
    def get_initram_filename(self) -> str:
        """Name of the initial RAM disk on the TFTP server, "" when there is none."""
        initram = self.bundle().manifest.spec.initram
        return Path(initram.file).name if initram is not None else ""

    @export(readonly=True)
    def get_dtb_filename(self) -> str:
        """Name of the variant's device tree on the TFTP server, "" when there is none."""
        variant = self.bundle().manifest.variant(self._variant)
        return Path(variant.file).name if variant is not None and variant.file else ""

    @export(readonly=True)
    def get_dtb_address(self) -> str:
        """Where the device tree belongs in RAM, "" when there is none."""
        dtb = self.bundle().manifest.spec.dtb
        return dtb.address if dtb is not None else ""

    @export(readonly=True)
    def get_kernel_address(self) -> str:
        """Where the kernel belongs in RAM."""
        return self.bundle().manifest.spec.kernel.address

    @export(readonly=True)
    def get_initram_address(self) -> str:
        """Where the initial RAM disk belongs in RAM, "" when there is none."""
        initram = self.bundle().manifest.spec.initram
        return initram.address if initram is not None else ""

    @export(readonly=True)
    def get_bootcmd(self) -> str:
        """The boot command, of the variant where that has its own."""
        return self.bundle().manifest.bootcmd(self._variant)

    def default_target_name(self) -> str | None:
        """The configured one, else the manifest's, else the only one of U-Boot."""
        if self.default_target is not None:
            return self.default_target
        if self.flasher_bundle is None and self._forced is None:
            return next(iter(self.uboot_targets)) if len(self.uboot_targets) == 1 else None
        return self.bundle().manifest.spec.default_target

    def _publish(self, child: str, source: Path, name: str) -> None:
        """Copy a file to a server's root, until the end of the session."""
        if not source.is_file():
            raise ConfigurationError(f"{source} does not exist on the exporter host")
        storage: Any = getattr(self.children[child], "storage")  # noqa: B009 - of Tftp and HttpServer only
        storage.put_exporter_file(source, name)
        root = self.tftp_root() if child == "tftp" else self.http_root()
        if (path := root / name) not in self._placed:
            self._placed.append(path)
