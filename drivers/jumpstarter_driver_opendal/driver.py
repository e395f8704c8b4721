# SPDX-License-Identifier: Apache-2.0
"""The storage driver, and the flasher and storage switch interfaces under the names Jumpstarter's drivers import."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field

from jumpstarter.driver.flasher import FlasherInterface as _FlasherInterface
from jumpstarter_driver_opendal.storage import Opendal
from jumpstarter_driver_storage.flasher import ImageFlasher
from jumpstarter_driver_storage.mux import Side, StorageMux, StorageMuxFlasherInterface, StorageMuxInterface
from jumpstarter_driver_storage.target import Target

__all__ = [
    "FlasherInterface",
    "MockFlasher",
    "MockStorageMux",
    "MockStorageMuxFlasher",
    "Opendal",
    "StorageMuxFlasherInterface",
    "StorageMuxInterface",
]


class FlasherInterface(_FlasherInterface):
    """`jumpstarter.driver.FlasherInterface` with the client of this package."""

    @classmethod
    def client(cls) -> str:
        """Import path of the client class."""
        return "jumpstarter_driver_opendal.client.FlasherClient"


class _Folder:
    """A temporary folder, owner only, that is made when it is first needed."""

    def __init__(self) -> None:
        self._path: str | None = None

    def file(self, name: str) -> str:
        """Path of a file in it."""
        if self._path is None:
            self._path = tempfile.mkdtemp(prefix="jumpstarter-mock-")
        return os.path.join(self._path, name)

    def remove(self) -> None:
        """Remove it with all that is in it."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None


@dataclass(kw_only=True)
class MockFlasher(FlasherInterface, ImageFlasher):
    """A flasher whose targets are temporary files: any name is a target, each image is stored as it comes."""

    _folder: _Folder = field(init=False, repr=False, default_factory=_Folder)
    _names: dict[str, Target] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_dir is None:
            self.keep_records_in(self._folder.file("records"))
        self._target("default")

    def storage_targets(self) -> Mapping[str, Target]:
        """Those that were named so far."""
        return self._names

    def default_target_name(self) -> str | None:
        """The unnamed target."""
        return "default"

    def find_target(self, name: str | None) -> tuple[str, Target]:
        """The target of that name, new if need be."""
        wanted = name or "default"
        return wanted, self._target(wanted)

    def close(self) -> None:
        """The files go with the driver."""
        super().close()
        self._folder.remove()

    def _target(self, name: str) -> Target:
        if name not in self._names:
            if not name or set(name) & set("/\0") or name.startswith("."):
                raise ValueError(f"target {name!r}: a plain name is required")
            path = self._folder.file(f"target-{name}")
            self._names[name] = Target.parse(name, {"path": path, "kind": "file", "decompress": "never"})
        return self._names[name]


@dataclass(kw_only=True)
class MockStorageMux(StorageMux):
    """A storage switch over a temporary file."""

    _folder: _Folder = field(init=False, repr=False, default_factory=_Folder)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_dir is None:
            self.keep_records_in(self._folder.file("records"))
        path = self._folder.file("storage")
        self._file = Target.parse("storage", {"path": path, "kind": "file", "decompress": "never"})

    def storage_targets(self) -> Mapping[str, Target]:
        """The one file."""
        return {"storage": self._file}

    async def connect_to(self, side: Side) -> None:
        """Nothing to switch."""

    async def _must_be_reachable(self, what: str) -> None:
        """A mock takes data on either side, as Jumpstarter's does."""

    def close(self) -> None:
        """The file goes with the driver."""
        super().close()
        self._folder.remove()


@dataclass(kw_only=True)
class MockStorageMuxFlasher(StorageMuxFlasherInterface, MockStorageMux):
    """`MockStorageMux` whose client is used like a flasher."""
