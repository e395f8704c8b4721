# SPDX-License-Identifier: Apache-2.0
"""Client of video sources."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter.client import DriverClient
from jumpstarter_driver_video.common import VideoState

if TYPE_CHECKING:
    import click
    from PIL import Image

__all__ = ["VideoClient"]


@dataclass(kw_only=True)
class VideoClient(DriverClient):
    """Pictures of a camera or a grabber."""

    def snapshot(self) -> Image.Image:
        """The newest picture."""
        from PIL import Image

        # No other decoder: what a device sends must not choose it.
        return Image.open(io.BytesIO(self.snapshot_bytes()), formats=["JPEG"])

    def snapshot_bytes(self) -> bytes:
        """The newest picture as the JPEG it came as."""
        if self.has_method("snapshot_stream"):
            with self.stream("snapshot_stream") as stream:
                return b"".join(stream)
        return b64decode(self.call("snapshot"))

    def state(self) -> VideoState:
        """Whether the source delivers pictures, and which."""
        return VideoState.model_validate(self.call("state"))

    def stream_path(self) -> str:
        """Path of the stream of pictures on the HTTP server at the end of `stream`."""
        return str(self.call("stream_path"))

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        """Serve a page with the live picture to a browser on this machine; gives its URL, which is a secret.

        port: local port, 0 for any free one. Below the URL, ``stream`` is the stream alone (for a player) and
        ``snapshot`` one picture.
        """
        from jumpstarter.client.adapters import UnixPortforwardAdapter, listen_tcp
        from jumpstarter_driver_video.page import serve_video

        listener = listen_tcp("127.0.0.1", port)
        with listener, UnixPortforwardAdapter(client=self) as path:
            serving = serve_video(listener, path, self.stream_path(), self._picture)
            with self.portal.wrap_async_context_manager(serving) as url:
                yield url

    async def _picture(self) -> bytes:
        from anyio import to_thread

        return await to_thread.run_sync(self.snapshot_bytes)

    def describe_state(self, state: VideoState) -> list[str]:
        """Lines for people."""
        lines = [f"Online:     {state.online}"]
        if state.width is not None and state.height is not None:
            lines.append(f"Resolution: {state.width}x{state.height}")
        if state.fps is not None:
            lines.append(f"FPS:        {state.fps:g}")
        return lines + ([f"Problem:    {state.problem}"] if state.problem else [])

    def cli(self) -> click.Group:
        """Commands: state, snapshot, stream."""
        import click

        from jumpstarter.client.decorators import driver_click_group
        from jumpstarter.client.picture_file import picture_file

        @driver_click_group(self)
        def video() -> None:
            """Pictures of a camera or a grabber."""

        @video.command()
        def state() -> None:
            """Show whether pictures come, and which."""
            click.echo("\n".join(self.describe_state(self.state())))

        @video.command()
        @click.option("-o", "--output", type=picture_file(), default="snapshot.jpg", show_default=True)
        def snapshot(output: str) -> None:
            """Save a picture; the file's ending says the format."""
            data = self.snapshot_bytes()
            if output.lower().endswith((".jpg", ".jpeg")):
                with open(output, "wb") as file:
                    file.write(data)
            else:
                from PIL import Image

                Image.open(io.BytesIO(data)).save(output)
            click.echo(output)

        @video.command()
        @click.option("-p", "--port", type=click.IntRange(0, 65535), default=0, help="Local port, 0 for any free one.")
        @click.option("--browser/--no-browser", default=True, show_default=True, help="Open the page in a web browser.")
        @click.option("--player", help="Program to play the stream with instead, e.g. mpv.")
        def stream(port: int, browser: bool, player: str | None) -> None:
            """Show the live picture until interrupted. The printed URL is a secret: it shows the device."""
            import signal
            import subprocess
            import webbrowser

            with self.serve(port) as url:
                click.echo(f"{url}/")
                if player is not None:
                    subprocess.run([player, f"{url}/stream"], check=True)
                    return
                if browser:
                    webbrowser.open(f"{url}/")
                while True:
                    signal.pause()

        return video
