# SPDX-License-Identifier: Apache-2.0
"""Client of the TFTP server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from jumpstarter_driver_composite.client import CompositeClient
from jumpstarter_driver_opendal.storage_client import OpendalClient

if TYPE_CHECKING:
    import click
    from opendal import Operator

__all__ = ["TftpServerClient"]

PathBuf = str | PathLike[str]


@dataclass(kw_only=True)
class TftpServerClient(CompositeClient):
    """A TFTP server on the exporter; ``storage`` holds its files."""

    def start(self) -> None:
        """Start to serve; nothing happens when it does already."""
        self.call("start")

    def stop(self) -> None:
        """Stop to serve."""
        self.call("stop")

    def get_host(self) -> str:
        """The address that devices reach it by."""
        return str(self.call("get_host"))

    def get_port(self) -> int:
        """Its UDP port."""
        return int(self.call("get_port"))

    def status(self) -> dict[str, Any]:
        """``running``, ``host``, ``port``, ``bind``."""
        return dict(self.call("status"))

    def put_file(self, dst: PathBuf, src: PathBuf, operator: Operator | None = None) -> str:
        """Make ``dst`` the local file, http(s) URL, or file of ``operator`` that ``src`` names; gives the path that
        devices ask for."""
        storage = self.children["storage"]
        assert isinstance(storage, OpendalClient)
        if operator is None:
            storage.put(dst, src)
        else:
            storage.write_from_path(dst, src, operator)
        return os.fspath(dst).lstrip("/")

    def cli(self) -> click.Group:
        """``start``, ``stop``, ``status``, ``put``, and those of ``storage``."""
        import click

        base = super().cli()
        if not self.description:
            base.help = "Serve files to the device by TFTP"

        @base.command("start")
        def start() -> None:
            """Start to serve and show where"""
            self.start()
            click.echo(f"{self.get_host()} port {self.get_port()}")

        @base.command("stop")
        def stop() -> None:
            """Stop to serve"""
            self.stop()

        @base.command("status")
        def status() -> None:
            """Show whether and where it serves"""
            now = self.status()
            click.echo(f"serving at {now['host']} port {int(now['port'])}" if now["running"] else "stopped")

        @base.command("put")
        @click.argument("dst")
        @click.argument("src")
        def put(dst: str, src: str) -> None:
            """Make DST the local file or URL SRC and show the path that devices ask for"""
            click.echo(self.put_file(dst, src))

        return base
