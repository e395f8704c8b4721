# SPDX-License-Identifier: Apache-2.0
"""Client of a VNC server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from jumpstarter_driver_composite.client import CompositeClient

if TYPE_CHECKING:
    import click
    from PIL import Image

    from jumpstarter.client import DriverClient
    from jumpstarter.streams.blocking import BlockingStream
    from jumpstarter_driver_network.client import NetworkClient

__all__ = ["VNClient", "screen_commands", "screen_picture"]


@dataclass(kw_only=True)
class VNClient(CompositeClient):
    """The screen of a device: look at it in a browser, or take a picture of it."""

    @property
    def tcp(self) -> NetworkClient:
        """Client of the network driver that leads to the server."""
        child: Any = self.children["tcp"]
        return child  # type: ignore[no-any-return]

    @contextmanager
    def stream(self, method: str = "connect") -> Iterator[BlockingStream]:
        """A new connection to the VNC server."""
        with self.tcp.stream(method) as stream:
            yield stream

    @asynccontextmanager
    async def stream_async(self, method: str = "connect") -> AsyncIterator[Any]:
        """A new connection to the VNC server, in the event loop."""
        async with self.tcp.stream_async(method) as stream:
            yield stream

    @contextmanager
    def session(self, *, encrypt: bool = True) -> Iterator[str]:
        """Serve noVNC to a browser on this machine; gives the URL. encrypt: see `NovncAdapter`."""
        from jumpstarter_driver_network.adapters import NovncAdapter

        with NovncAdapter(client=self, encrypt=encrypt) as url:
            yield url

    def get_default_encrypt(self) -> bool:
        """The exporter's default_encrypt."""
        return bool(self.call("get_default_encrypt"))

    def snapshot(self, password: str | None = None) -> Image.Image:
        """A picture of the screen. password: for servers that want one."""
        return screen_picture(self, password)

    def cli(self) -> click.Group:
        """The child's commands, session and snapshot."""
        group = super().cli()
        screen_commands(self, group)
        return group


def screen_picture(client: DriverClient, password: str | None = None) -> Image.Image:
    """A picture of the screen at the end of a client's stream.

    Raises ConnectionError when no VNC server answers there, TimeoutError when it sends no picture.
    """
    from jumpstarter_driver_vnc.rfb import Framebuffer, snapshot

    async def take() -> Framebuffer:
        async with client.stream_async() as stream:
            return await snapshot(stream, password=password)

    return client.portal.call(take).image()


def screen_commands(client: DriverClient, group: click.Group) -> None:
    """Add the commands session and snapshot to a group. client: one whose stream leads to a VNC server."""
    import click

    from jumpstarter.client.picture_file import picture_file

    @group.command()
    @click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a web browser.")
    @click.option("--encrypt/--no-encrypt", default=None, help="Accepted for scripts; the page stays on this machine.")
    def session(browser: bool, encrypt: bool | None) -> None:
        """Show the screen in a browser until interrupted. The printed URL is a secret: it controls the device."""
        import signal
        import webbrowser

        from jumpstarter_driver_network.adapters import NovncAdapter

        with NovncAdapter(client=client, encrypt=bool(encrypt)) as url:
            click.echo(url)
            if browser:
                webbrowser.open(url)
            while True:
                signal.pause()  # Ctrl-C raises KeyboardInterrupt, which ends the page and then the command

    @group.command()
    @click.option("-o", "--output", type=picture_file(), default="snapshot.png", show_default=True)
    @click.option("--password-file", type=click.File(), help="File with the VNC server's password; - is the input.")
    def snapshot(output: str, password_file: TextIO | None) -> None:
        """Save a picture of the screen; the file's ending says the format."""
        password = None if password_file is None else password_file.readline().rstrip("\r\n")
        screen_picture(client, password).save(output)
        click.echo(output)
