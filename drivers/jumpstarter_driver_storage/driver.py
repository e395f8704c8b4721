# SPDX-License-Identifier: Apache-2.0
"""Drivers that flash files and block devices the exporter's configuration declares, and storage switches over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import Any

from jumpstarter_driver_storage.flasher import ImageFlasher
from jumpstarter_driver_storage.mux import (
    StorageMux,
    StorageMuxFlasherInterface,
    StorageMuxInterface,
    TargetStorageMux,
    TargetStorageMuxFlasher,
)
from jumpstarter_driver_storage.target import Target

__all__ = [
    "BlockFlasher",
    "FileFlasher",
    "Flasher",
    "ImageFlasher",
    "StorageMux",
    "StorageMuxFlasherInterface",
    "StorageMuxInterface",
    "TargetStorageMux",
    "TargetStorageMuxFlasher",
]

_ONLY = "disk"


@dataclass(kw_only=True)
class Flasher(ImageFlasher):
    """Any number of targets.

    ``targets``: by name, the fields of `jumpstarter_driver_storage.target.Target`, or just a path.
    ``default_target``: flashed when the client names none; with a single target that one.
    """

    # The configuration's word for it is also the name of the exported method `targets`, which must stay: an InitVar
    # is a parameter without an attribute.
    targets: InitVar[dict[str, Any]]
    default_target: str | None = None
    _targets: dict[str, Target] = field(init=False, repr=False)

    def __post_init__(self, targets: dict[str, Any]) -> None:
        super().__post_init__()
        if not isinstance(targets, Mapping) or not targets:
            raise ValueError("field targets: at least one target is required, by name: {disk: {path: ...}}")
        self._targets = {str(name): Target.parse(str(name), value) for name, value in targets.items()}
        if self.default_target is not None and self.default_target not in self._targets:
            raise ValueError(
                f'field default_target: there is no target "{self.default_target}"; targets: {", ".join(self._targets)}'
            )

    def storage_targets(self) -> Mapping[str, Target]:
        """Those of the configuration."""
        return self._targets

    def default_target_name(self) -> str | None:
        """``default_target``, or the only one."""
        return self.default_target or super().default_target_name()


@dataclass(kw_only=True)
class FileFlasher(ImageFlasher):
    """One file, target ``disk``. ``size``: bytes (or ``96MiB``) it holds; without, it takes each image's size."""

    path: str
    size: int | str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._target = Target.parse(_ONLY, {"path": self.path, "size": self.size, "kind": "file"})

    def storage_targets(self) -> Mapping[str, Target]:
        """The one target."""
        return {_ONLY: self._target}


@dataclass(kw_only=True)
class BlockFlasher(ImageFlasher):
    """One block device, target ``disk``.

    ``size``, ``min_size``, ``identity``: what it must be, see `jumpstarter_driver_storage.target.Target`. Give at least
    one of them: device names move when something else is plugged in.
    """

    path: str
    size: int | str | None = None
    min_size: int | str | None = None
    identity: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        fields = {"path": self.path, "size": self.size, "min_size": self.min_size, "identity": self.identity}
        self._target = Target.parse(_ONLY, {**fields, "kind": "block"})

    def storage_targets(self) -> Mapping[str, Target]:
        """The one target."""
        return {_ONLY: self._target}
