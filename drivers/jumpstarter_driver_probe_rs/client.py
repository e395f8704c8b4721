# SPDX-License-Identifier: Apache-2.0
"""Client of `ProbeRs`."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from jumpstarter.client.flasher import FlasherClient
from jumpstarter.common.exceptions import ArgumentError

if TYPE_CHECKING:
    import click

__all__ = ["ProbeRsClient"]

_WIDTHS = (8, 16, 32, 64)


@dataclass(kw_only=True)
class ProbeRsClient(FlasherClient):
    """A chip behind a debug probe."""

    def info(self) -> str:
        """What probe-rs tells of the chip."""
        return str(self.call("info"))

    def reset(self) -> str:
        """Reset the chip."""
        return str(self.call("reset_target"))

    def erase(self) -> str:
        """Erase the chip's flash."""
        return str(self.call("erase"))

    def download(self, operator: Any, path: str | os.PathLike[str]) -> str:
        """`download_file`; operator must be None."""
        if operator is not None:
            raise ArgumentError("download: operator is not supported here; give a path")
        return self.download_file(path)

    def download_file(self, filepath: str | os.PathLike[str]) -> str:
        """Write a program (ELF, Intel HEX, UF2, or a binary where the exporter says the address) into the chip."""
        from jumpstarter.client.imaging.sender import send_all

        async def send(file: BinaryIO) -> str:
            async with self.rpc.resource_stream() as (stream, handle):
                sending = asyncio.create_task(send_all(stream, iter(lambda: file.read(1 << 16), b"")))
                try:
                    return str(await self.call_async("download", handle))
                finally:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

        with open(filepath, "rb") as opened:
            return self.portal.call(send, opened)

    def read(self, width: int, address: int, words: int) -> list[int]:
        """Read memory: ``words`` words of ``width`` (8, 16, 32 or 64) bits."""
        if width not in _WIDTHS:
            raise ArgumentError(f"read: width is {width}, must be one of {', '.join(map(str, _WIDTHS))}")
        if address < 0 or words < 1:
            raise ArgumentError(f"read: {words} words at {address}: needs an address from 0 on and at least one word")
        return [int(value, 16) for value in self.call("read", f"b{int(width)}", f"0x{int(address):x}", str(int(words)))]

    def cli(self) -> click.Group:
        """Commands: info, reset, erase, download, read, flash."""
        import click

        group = super().cli()
        group.commands.pop("dump")

        @group.command("info")
        def info() -> None:
            """Print what probe-rs tells of the chip."""
            click.echo(self.info().rstrip())

        @group.command("reset")
        def reset() -> None:
            """Reset the chip."""
            self.reset()

        @group.command("erase")
        def erase() -> None:
            """Erase the chip's flash."""
            self.erase()

        @group.command("download")
        @click.argument("file", type=click.Path(exists=True, dir_okay=False))
        def download(file: str) -> None:
            """Write the program FILE into the chip."""
            click.echo(self.download_file(file).rstrip())

        @group.command("read")
        @click.argument("width", type=click.Choice([str(width) for width in _WIDTHS]))
        @click.argument("address")
        @click.argument("words")
        def read(width: str, address: str, words: str) -> None:
            """Read WORDS words of WIDTH bits at ADDRESS (0x20000000)."""
            digits = int(width) // 4
            values = self.read(int(width), _number(address, "ADDRESS"), _number(words, "WORDS"))
            click.echo(" ".join(f"{value:0{digits}x}" for value in values))

        return group


def _number(text: str, what: str) -> int:
    import click

    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no whole number", param_hint=what) from None
