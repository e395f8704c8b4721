# SPDX-License-Identifier: Apache-2.0
"""Fake: rtslib-fb, by which the iSCSI driver of 0.9 talks to LIO, a target in the kernel that the test machine lacks.

Only what that driver uses. There is one kernel, so its state is this module's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_targets: list[Target] = []


@dataclass
class _Fabric:
    name: str


class RTSRoot:
    """The kernel's target."""

    fabric_modules = (_Fabric("iscsi"), _Fabric("loopback"))

    @property
    def targets(self) -> list[Target]:
        return _targets

    @property
    def storage_objects(self) -> list[Any]:
        return [lun.storage_object for target in _targets for group in target.tpgs for lun in group.luns]


class Target:
    """One with a name."""

    def __init__(self, fabric: _Fabric, wwn: str) -> None:
        self.wwn = wwn
        self.tpgs: list[TPG] = []
        _targets.append(self)

    def delete(self) -> None:
        _targets.remove(self)


class TPG:
    """A portal group."""

    def __init__(self, target: Target, tag: int) -> None:
        self.enable = False
        self.network_portals: list[NetworkPortal] = []
        self.luns: list[LUN] = []
        self.attributes: dict[str, str] = {}
        target.tpgs.append(self)

    def set_attribute(self, name: str, value: str) -> None:
        self.attributes[name] = value


class NetworkPortal:
    """Where it listens, if it did."""

    def __init__(self, group: TPG, ip_address: str, port: int) -> None:
        self.ip_address, self.port = ip_address, port
        group.network_portals.append(self)


@dataclass
class FileIOStorageObject:
    """A file behind a LUN."""

    name: str
    udev_path: str
    size: int = field(default=0)

    def delete(self) -> None:
        """It keeps its file."""


class BlockStorageObject(FileIOStorageObject):
    """A block device behind a LUN."""


class LUN:
    """A disk; its number must be free, as in the kernel."""

    def __init__(self, group: TPG, lun: int, storage_object: FileIOStorageObject) -> None:
        if any(other.lun == lun for other in group.luns):
            raise ValueError(f"LUN {lun} is taken")
        self.group, self.lun, self.storage_object = group, lun, storage_object
        group.luns.append(self)

    def delete(self) -> None:
        self.group.luns.remove(self)
