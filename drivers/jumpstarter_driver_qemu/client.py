# SPDX-License-Identifier: Apache-2.0
"""Client of the virtual board."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from jumpstarter_driver_composite.client import CompositeClient

if TYPE_CHECKING:
    import click
    from fabric import Connection
    from PIL import Image

    from jumpstarter.client import DriverClient

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

    def novnc(self) -> AbstractContextManager[str]:
        """Serve noVNC with the machine's screen to a browser on this machine; gives the URL to open, which is a secret.

        Raises FileNotFoundError when noVNC is not installed here.
        """
        from jumpstarter_driver_network.adapters import NovncAdapter

        adapter: AbstractContextManager[str] = NovncAdapter(client=self._screen())
        return adapter

    def snapshot(self) -> Image.Image:
        """A picture of the machine's screen. Needs the extra vnc."""
        from jumpstarter_driver_vnc.client import screen_picture

        return screen_picture(self._screen())

    def _screen(self) -> DriverClient:
        try:
            return self.children["vnc"]
        except KeyError:
            raise ValueError(
                'the virtual machine has no screen: "vnc" is off in the exporter\'s configuration'
            ) from None

    def cli(self) -> click.Group:
        """The children's commands, ``novnc``, ``screenshot [-o FILE]`` and ``resize disk|memory SIZE``."""
        import click

        from jumpstarter.client.picture_file import picture_file

        group = super().cli()

        @group.command()
        @click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a web browser.")
        def novnc(browser: bool) -> None:
            """Show the screen in a browser until interrupted. The printed URL is a secret: it controls the machine."""
            import signal
            import webbrowser

            with self.novnc() as url:
                click.echo(url)
                if browser:
                    webbrowser.open(url)
                while True:
                    signal.pause()

        @group.command()
        @click.option("-o", "--output", type=picture_file(), default="screenshot.png", show_default=True)
        def screenshot(output: str) -> None:
            """Save a picture of the screen; the file's ending says the format."""
            self.snapshot().save(output)
            click.echo(output)

        @group.command()
        @click.argument("what", type=click.Choice(["disk", "memory"]))
        @click.argument("size")
        def resize(what: str, size: str) -> None:
            """Change the size of disk or memory from the next power on, e.g. resize disk 20G."""
            (self.set_disk_size if what == "disk" else self.set_memory_size)(size)

        return group
