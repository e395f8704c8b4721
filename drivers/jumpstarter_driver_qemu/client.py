# SPDX-License-Identifier: Apache-2.0
"""Client of the virtual board."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from jumpstarter_driver_composite.client import CompositeClient

if TYPE_CHECKING:
    import click
    from fabric import Connection

__all__ = ["QemuClient"]


class QemuClient(CompositeClient):
    """The machine: children ``power``, ``flasher``, ``console``, ``vnc``, ``ssh`` and one per forwarded port."""

    @property
    def hostname(self) -> str:
        """Host name the image was told."""
        return str(self.call("get_hostname"))

    @property
    def username(self) -> str:
        """Login name the image was told."""
        return str(self.call("get_username"))

    @property
    def password(self) -> str:
        """Password of that login."""
        return str(self.call("get_password"))

    def info(self) -> dict[str, Any]:
        """State and make-up of the machine; see `Qemu.info`."""
        result: dict[str, Any] = self.call("info")
        return result

    def set_disk_size(self, size: str) -> None:
        """Let the disk hold ``size`` ("20G") from the next power on. Raises ValueError when it would shrink."""
        self.call("set_disk_size", size)

    def set_memory_size(self, size: str) -> None:
        """Give the machine ``size`` memory ("2G") from the next power on."""
        self.call("set_memory_size", size)

    def shell(self, **kwargs: Any) -> AbstractContextManager[Connection]:
        """A fabric connection to the guest's ssh server, logged in as its user; kwargs as for `FabricAdapter`."""
        from jumpstarter_driver_network.adapters import FabricAdapter

        options = {"user": self.username, "connect_kwargs": {"password": self.password}, **kwargs}
        adapter: AbstractContextManager[Connection] = FabricAdapter(client=self.children["ssh"], **options)
        return adapter

    def cli(self) -> click.Group:
        """The children's commands, and ``resize disk|memory SIZE``."""
        import click

        group = super().cli()

        @group.command()
        @click.argument("what", type=click.Choice(["disk", "memory"]))
        @click.argument("size")
        def resize(what: str, size: str) -> None:
            """Change the size of disk or memory from the next power on, e.g. resize disk 20G."""
            (self.set_disk_size if what == "disk" else self.set_memory_size)(size)

        return group
