# SPDX-License-Identifier: Apache-2.0
"""Client of flashers for blocking code, and its commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar

import click

from jumpstarter.client.base import DriverClient
from jumpstarter.client.decorators import driver_click_group
from jumpstarter.common.exceptions import ArgumentError
from jumpstarter.driver.flasher import FlasherInterface

if TYPE_CHECKING:
    from jumpstarter.client.aio import AsyncNode
    from jumpstarter.client.imaging import DumpResult, FlashResult, FlashTarget, Progress, ProgressCallback

__all__ = ["FlasherClient", "FlasherClientInterface", "add_flasher_commands", "node_of"]

PathBuf = str | PathLike[str]


class FlasherClientInterface:
    """What every flasher's client offers."""

    def flash(self, path: PathBuf | Mapping[str, PathBuf], *, target: str | None = None) -> Any:
        """Write an image to the device."""
        raise NotImplementedError

    def dump(self, path: PathBuf, *, target: str | None = None) -> Any:
        """Read the device into a file."""
        raise NotImplementedError


@dataclass(kw_only=True)
class FlasherClient(FlasherClientInterface, DriverClient):
    """Flashes and dumps. See `jumpstarter.client.imaging.flash` for what is checked and what is skipped."""

    interface: ClassVar[type | None] = FlasherInterface

    def flash(
        self,
        path: PathBuf | Mapping[str, PathBuf],
        *,
        target: str | None = None,
        compression: str | None = None,
        operator: Any = None,
        verify: bool = True,
        force: bool = False,
        check: bool = False,
        checksum: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> FlashResult | dict[str, FlashResult]:
        """Write the image at ``path`` (or URL) to ``target``; a mapping of target to image writes several in turn.

        ``compression``: how the file is packed; None looks at it. The other arguments are those of
        `jumpstarter.client.imaging.flash`; ``operator`` is accepted for compatibility and must be None.
        Raises ImagingError; ArgumentError for a mapping with ``target``.
        """
        if operator is not None:
            raise ArgumentError("flash: operator is not supported here; give a path or an http(s) URL")
        if isinstance(path, Mapping):
            if target is not None:
                raise ArgumentError("flash: give either a mapping of targets to images, or one image and target")
            return {
                name: self._flash(image, name, compression, verify, force, check, checksum, progress)
                for name, image in path.items()
            }
        return self._flash(path, target, compression, verify, force, check, checksum, progress)

    def dump(
        self,
        path: PathBuf,
        *,
        target: str | None = None,
        compression: str | None = None,
        operator: Any = None,
        progress: ProgressCallback | None = None,
    ) -> DumpResult:
        """Write what ``target`` holds to the file ``path``, packed with ``compression`` if given."""
        from jumpstarter.client import imaging

        if operator is not None:
            raise ArgumentError("dump: operator is not supported here; give a path")
        node = node_of(self)
        return self.portal.call(
            lambda: imaging.dump(node, path, target=target, compression=compression, progress=progress)
        )

    def targets(self) -> list[FlashTarget]:
        """What can be flashed; empty for an exporter that does not tell."""
        from jumpstarter.client import imaging

        node = node_of(self)
        return self.portal.call(lambda: imaging.list_targets(node))

    def _flash(
        self, path: PathBuf, target: str | None, compression: str | None, verify: bool, force: bool, check: bool,
        checksum: str | None, progress: ProgressCallback | None,
    ) -> FlashResult:  # fmt: skip
        from jumpstarter.client import imaging

        node = node_of(self)
        return self.portal.call(
            lambda: imaging.flash(
                node, path, target=target, verify=verify, force=force, check=check, checksum=checksum,
                compression=compression or "auto", progress=progress,
            )
        )  # fmt: skip

    def cli(self) -> click.Group:
        """Commands ``flash`` and ``dump``."""

        @driver_click_group(self)
        def base() -> None:
            """Write images to the device and read them back"""

        add_flasher_commands(base, self)
        return base


def node_of(client: DriverClient) -> AsyncNode:
    """The driver behind a blocking client, for code in the event loop."""
    from jumpstarter.client.aio import AsyncNode

    return AsyncNode(
        path=client.path, name=client.name or "", uuid=str(client.uuid), labels=client.labels,
        description=client.description or "", rpc=client.rpc, methods=client.methods,
    )  # fmt: skip


_COMPRESSIONS = click.Choice(["gzip", "xz", "bz2", "zstd"])


def add_flasher_commands(group: click.Group, client: FlasherClient) -> None:
    """Add ``flash`` and ``dump`` to a command group."""

    @group.command("flash")
    @click.argument("file", required=False)
    @click.option(
        "--target", "-t", "targets", multiple=True, metavar="[NAME:]FILE|NAME",
        help="NAME:FILE (repeatable), or the target's NAME together with FILE",
    )  # fmt: skip
    @click.option("--compression", type=_COMPRESSIONS, help="how FILE is packed; found out by default")
    @click.option("--verify/--no-verify", default=True, help="read back and compare")
    @click.option("--force", is_flag=True, help="write even what the target already holds")
    @click.option("--checksum", help="sha256:... FILE must have")
    def flash(
        file: str | None, targets: tuple[str, ...], compression: str | None, verify: bool, force: bool,
        checksum: str | None,
    ) -> None:  # fmt: skip
        """Write image FILE to the device"""
        for name, image in _what(file, targets):
            result = client._flash(image, name, compression, verify, force, False, checksum, _Bar())
            what = f"{result.target or 'device'}: "
            if not result.changed:
                click.echo(f"{what}nothing to do, {result.reason}")
                continue
            click.echo(
                f"{what}{result.written_bytes} bytes written, {result.skipped_bytes} zero bytes skipped, "
                f"sha256 {result.sha256}{', verified' if result.verified else ''} in {result.seconds:.1f} s"
            )

    @group.command("dump")
    @click.argument("file")
    @click.option("--target", help="target to read; the default one otherwise")
    @click.option("--compression", type=_COMPRESSIONS, help="pack FILE")
    def dump(file: str, target: str | None, compression: str | None) -> None:
        """Read the device into FILE"""
        result = client.dump(file, target=target, compression=compression, progress=_Bar())
        click.echo(f"{result.path}: {result.size} bytes, sha256 {result.sha256} in {result.seconds:.1f} s")


def _what(file: str | None, targets: tuple[str, ...]) -> list[tuple[str | None, str]]:
    if file is not None:
        if not targets:
            return [(None, file)]
        if len(targets) == 1 and ":" not in targets[0]:
            return [(targets[0], file)]
        raise click.UsageError("give FILE with at most one --target NAME, or --target NAME:FILE without FILE")
    pairs = [target.partition(":") for target in targets]
    if not pairs or not all(name and image for name, _, image in pairs):
        raise click.UsageError("give FILE, or --target NAME:FILE")
    return [(name, image) for name, _, image in pairs]


class _Bar:
    """Progress on a terminal: one line that is written over; nothing when stderr is no terminal."""

    def __init__(self) -> None:
        self._show = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        if self._show:
            last = progress.total is not None and progress.done >= progress.total
            click.echo(f"\r\x1b[K{progress.text}", nl=last, err=True)
