# SPDX-License-Identifier: Apache-2.0
"""Client of storages: files, and what is in folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

import click
from anyio import EndOfStream
from anyio.abc import ObjectStream

from jumpstarter.client.base import DriverClient
from jumpstarter.client.decorators import driver_click_group
from jumpstarter.client.flasher import node_of
from jumpstarter_driver_opendal.common import Capability, HashAlgo, Metadata, Mode, PathBuf, PresignedRequest

if TYPE_CHECKING:
    from opendal import Operator

    from jumpstarter.client.imaging import DumpResult, PutResult

__all__ = ["OpendalClient", "OpendalFile"]

_CHUNK = 1 << 20


@dataclass(eq=False)
class _Memory(ObjectStream[bytes]):
    """Bytes as the stream that is lent to the exporter."""

    buffer: BytesIO = field(default_factory=BytesIO)

    async def receive(self) -> bytes:
        data = self.buffer.read(_CHUNK)
        if not data:
            raise EndOfStream
        return data

    async def send(self, data: bytes) -> None:
        self.buffer.write(data)

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...


class _LocalStream(ObjectStream[bytes]):
    """A local file as the stream that is lent; read and written in threads."""

    def __init__(self, path: PathBuf, mode: Mode) -> None:
        self._file = open(path, mode, buffering=0)  # noqa: SIM115 (closed in aclose)

    async def receive(self) -> bytes:
        from anyio.to_thread import run_sync

        data = await run_sync(self._file.read, _CHUNK)
        if not data:
            raise EndOfStream
        return bytes(data)

    async def send(self, data: bytes) -> None:
        from anyio.to_thread import run_sync

        await run_sync(self._write, data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None:
        self._file.close()


@dataclass(kw_only=True)
class OpendalFile:
    """An open file of the storage. One that is written takes its place when it is closed."""

    client: OpendalClient
    fd: UUID

    def write_from_path(self, path: PathBuf, operator: Operator | None = None) -> None:
        """Append a local file, an http(s) URL, or a file of ``operator`` (an `opendal.Operator`)."""
        if operator is None and _is_url(path):
            self._write_url(str(path))
            return
        with self._lent(path, operator, "rb") as handle:
            self.client.call("file_write", self.fd, handle)

    def read_into_path(self, path: PathBuf, operator: Operator | None = None) -> None:
        """Write what follows the position to a local file, or a file of ``operator``."""
        with self._lent(path, operator, "wb") as handle:
            self.client.call("file_read", self.fd, handle)

    def write_bytes(self, data: bytes) -> None:
        """Append bytes."""
        with self.client.resource(_Memory(BytesIO(data))) as handle:
            self.client.call("file_write", self.fd, handle)

    def read_bytes(self) -> bytes:
        """What follows the position."""
        memory = _Memory()
        with self.client.resource(memory) as handle:
            self.client.call("file_read", self.fd, handle)
        return memory.buffer.getvalue()

    def seek(self, pos: int, whence: int = 0) -> int:
        """Move the position: from the start (0), from here (1) or from the end (2). Gives the new one."""
        return int(self.client.call("file_seek", self.fd, pos, whence))

    def tell(self) -> int:
        """The position."""
        return int(self.client.call("file_tell", self.fd))

    def close(self) -> None:
        """Close the file."""
        self.client.call("file_close", self.fd)

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return bool(self.client.call("file_closed", self.fd))

    def readable(self) -> bool:
        """Whether it can be read."""
        return bool(self.client.call("file_readable", self.fd))

    def seekable(self) -> bool:
        """Whether its position can be changed."""
        return bool(self.client.call("file_seekable", self.fd))

    def writable(self) -> bool:
        """Whether it can be written."""
        return bool(self.client.call("file_writable", self.fd))

    def _lent(self, path: PathBuf, operator: Operator | None, mode: Mode) -> Any:
        if operator is not None:
            from jumpstarter_driver_opendal.adapter import OpendalAdapter

            return OpendalAdapter(client=self.client, operator=operator, path=os.fspath(path), mode=mode)
        return self.client.resource(_LocalStream(path, mode))

    def _write_url(self, url: str) -> None:
        # downloaded here: an exporter that fetches what clients name reaches into the lab's network
        from jumpstarter.client.imaging.download import local_copy
        from jumpstarter.client.imaging.result import Meter

        with self.client.portal.wrap_async_context_manager(local_copy(url, Meter(None))) as (path, _):
            with self.client.resource(_LocalStream(path, "rb")) as handle:
                self.client.call("file_write", self.fd, handle)


@dataclass(kw_only=True)
class OpendalClient(DriverClient):
    """A storage of the exporter."""

    def put(
        self, dst: PathBuf, src: PathBuf, *, force: bool = False, check: bool = False, checksum: str | None = None
    ) -> PutResult:
        """Make ``dst`` the local file or http(s) URL ``src``; nothing is sent when it is that already.

        See `jumpstarter.client.imaging.put` for the arguments. Raises ImagingError.
        """
        from jumpstarter.client import imaging

        node, target = node_of(self), os.fspath(dst)
        return self.portal.call(lambda: imaging.put(node, src, target, force=force, check=check, checksum=checksum))

    def get(self, src: PathBuf, dst: PathBuf) -> DumpResult:
        """Copy the file ``src`` to the local file ``dst``, which appears when it is complete. Raises ImagingError."""
        from jumpstarter.client import imaging

        node, source = node_of(self), os.fspath(src)
        return self.portal.call(lambda: imaging.get(node, source, dst))

    def write_bytes(self, path: PathBuf, data: bytes) -> None:
        """Make the file ``path`` these bytes."""
        with closing(self.open(path, "wb")) as file:
            file.write_bytes(data)

    def read_bytes(self, path: PathBuf) -> bytes:
        """The content of a file."""
        with closing(self.open(path, "rb")) as file:
            return file.read_bytes()

    def write_from_path(self, dst: PathBuf, src: PathBuf, operator: Operator | None = None) -> None:
        """Make ``dst`` the local file, http(s) URL, or file of ``operator`` that ``src`` names."""
        if operator is None:
            self.put(dst, src, force=True)
            return
        with closing(self.open(dst, "wb")) as file:
            file.write_from_path(src, operator)

    def read_into_path(self, src: PathBuf, dst: PathBuf, operator: Operator | None = None) -> None:
        """Copy the file ``src`` to a local file, or one of ``operator``."""
        if operator is None:
            self.get(src, dst)
            return
        with closing(self.open(src, "rb")) as file:
            file.read_into_path(dst, operator)

    def open(self, path: PathBuf, mode: Mode) -> OpendalFile:
        """Open a file for reading (``rb``) or writing (``wb``)."""
        return OpendalFile(client=self, fd=UUID(str(self.call("open", os.fspath(path), mode))))

    def stat(self, path: PathBuf) -> Metadata:
        """What is known about a file or folder."""
        return Metadata.model_validate(self.call("stat", os.fspath(path)))

    def hash(self, path: PathBuf, algo: HashAlgo = "sha256") -> str:
        """Digest of a file's content, as hex digits."""
        return str(self.call("hash", os.fspath(path), algo))

    def copy(self, source: PathBuf, target: PathBuf) -> None:
        """Copy a file within the storage."""
        self.call("copy", os.fspath(source), os.fspath(target))

    def rename(self, source: PathBuf, target: PathBuf) -> None:
        """Move a file within the storage."""
        self.call("rename", os.fspath(source), os.fspath(target))

    def remove_all(self, path: PathBuf) -> None:
        """Remove a file, or a folder with all that is in it."""
        self.call("remove_all", os.fspath(path))

    def create_dir(self, path: PathBuf) -> None:
        """Make a folder and those above it; ``path`` ends with a slash."""
        self.call("create_dir", os.fspath(path))

    def delete(self, path: PathBuf) -> None:
        """Remove a file or an empty folder; nothing happens when there is none."""
        self.call("delete", os.fspath(path))

    def exists(self, path: PathBuf) -> bool:
        """Whether there is such a file or folder."""
        return bool(self.call("exists", os.fspath(path)))

    def list(self, path: PathBuf) -> Generator[str, None, None]:
        """A folder (``path`` with a slash at its end) and what is in it, or what begins with ``path``."""
        yield from self.streamingcall("list", os.fspath(path))

    def scan(self, path: PathBuf) -> Generator[str, None, None]:
        """Like `list`, with all that is below."""
        yield from self.streamingcall("scan", os.fspath(path))

    def presign_stat(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A HEAD request anybody may make for so many seconds."""
        return self._presign("stat", path, expire_second)

    def presign_read(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A GET request anybody may make for so many seconds."""
        return self._presign("read", path, expire_second)

    def presign_write(self, path: PathBuf, expire_second: int) -> PresignedRequest:
        """A PUT request anybody may make for so many seconds."""
        return self._presign("write", path, expire_second)

    def _presign(self, what: Literal["stat", "read", "write"], path: PathBuf, seconds: int) -> PresignedRequest:
        return PresignedRequest.model_validate(self.call(f"presign_{what}", os.fspath(path), seconds))

    def capability(self) -> Capability:
        """What the storage can do."""
        return Capability.model_validate(self.call("capability"))

    def get_created_resources(self) -> set[str]:
        """Paths that were made in this session."""
        return {str(path) for path in self.call("get_created_resources")}

    def register_path(self, path: PathBuf) -> None:
        """Count a path as made in this session, so that it goes with it."""
        self.call("register_path", os.fspath(path))

    def cli(self) -> click.Group:
        """One command per method."""

        @driver_click_group(self)
        def base() -> None:
            """Files in a storage of the exporter"""

        _add_transfer_commands(base, self)
        _add_file_commands(base, self)
        _add_presign_commands(base, self)
        return base


def _is_url(path: PathBuf) -> bool:
    return isinstance(path, str) and path.lower().startswith(("http://", "https://"))


def _add_transfer_commands(group: click.Group, client: OpendalClient) -> None:
    @group.command("put")
    @click.argument("dst")
    @click.argument("src")
    @click.option("--force", is_flag=True, help="send it even when it is there already")
    @click.option("--checksum", help="sha256:... SRC must have")
    def put(dst: str, src: str, force: bool, checksum: str | None) -> None:
        """Make DST the local file or URL SRC, unless it is that already"""
        result = client.put(dst, src, force=force, checksum=checksum)
        done = f"{result.size} bytes sent in {result.seconds:.1f} s" if result.changed else "nothing to do"
        click.echo(f"{result.path}: {done}, sha256 {result.sha256}")

    @group.command("write-bytes")
    @click.argument("path")
    def write_bytes(path: str) -> None:
        """Make PATH what comes on standard input"""
        client.write_bytes(path, sys.stdin.buffer.read())

    @group.command("read-bytes")
    @click.argument("path")
    def read_bytes(path: str) -> None:
        """Send PATH to standard output"""
        click.echo(client.read_bytes(path), nl=False)

    @group.command("write-from-path")
    @click.argument("dst")
    @click.argument("src")
    def write_from_path(dst: str, src: str) -> None:
        """Make DST the local file or URL SRC"""
        client.write_from_path(dst, src)

    @group.command("read-into-path")
    @click.argument("src")
    @click.argument("dst", type=click.Path())
    def read_into_path(src: str, dst: str) -> None:
        """Copy SRC to the local file DST"""
        client.read_into_path(src, dst)


def _add_file_commands(group: click.Group, client: OpendalClient) -> None:
    @group.command("stat")
    @click.argument("path")
    def stat(path: str) -> None:
        """Show what is known about PATH"""
        click.echo(client.stat(path).model_dump_json(indent=2, by_alias=True))

    @group.command("hash")
    @click.argument("path")
    @click.option("--algo", type=click.Choice(["md5", "sha256"]), default="sha256", show_default=True)
    def digest(path: str, algo: HashAlgo) -> None:
        """Show the digest of PATH"""
        click.echo(client.hash(path, algo))

    @group.command("copy")
    @click.argument("source")
    @click.argument("target")
    def copy(source: str, target: str) -> None:
        """Copy SOURCE to TARGET in the storage"""
        client.copy(source, target)

    @group.command("rename")
    @click.argument("source")
    @click.argument("target")
    def rename(source: str, target: str) -> None:
        """Move SOURCE to TARGET in the storage"""
        client.rename(source, target)

    @group.command("remove-all")
    @click.argument("path")
    def remove_all(path: str) -> None:
        """Remove PATH with all that is below it"""
        client.remove_all(path)

    @group.command("create-dir")
    @click.argument("path")
    def create_dir(path: str) -> None:
        """Make the folder PATH, which ends with a slash"""
        client.create_dir(path)

    @group.command("delete")
    @click.argument("path")
    def delete(path: str) -> None:
        """Remove PATH; nothing happens when it is not there"""
        client.delete(path)

    @group.command("exists")
    @click.argument("path")
    def exists(path: str) -> None:
        """Fail unless PATH is there"""
        if not client.exists(path):
            raise click.ClickException(f"path {path} does not exist")

    @group.command("list")
    @click.argument("path")
    def list_(path: str) -> None:
        """List the folder PATH (with a slash at its end), or what begins with PATH"""
        for entry in client.list(path):
            click.echo(entry)

    @group.command("scan")
    @click.argument("path")
    def scan(path: str) -> None:
        """Like list, with all that is below"""
        for entry in client.scan(path):
            click.echo(entry)

    @group.command("capability")
    def capability() -> None:
        """Show what the storage can do"""
        click.echo(client.capability().model_dump_json(indent=2))


def _add_presign_commands(group: click.Group, client: OpendalClient) -> None:
    expires = click.option("--expire-second", type=int, required=True, help="seconds the request is good for")

    @group.command("presign-stat")
    @click.argument("path")
    @expires
    def presign_stat(path: str, expire_second: int) -> None:
        """Show a request for what is known about PATH"""
        click.echo(client.presign_stat(path, expire_second).model_dump_json(indent=2))

    @group.command("presign-read")
    @click.argument("path")
    @expires
    def presign_read(path: str, expire_second: int) -> None:
        """Show a request that reads PATH"""
        click.echo(client.presign_read(path, expire_second).model_dump_json(indent=2))

    @group.command("presign-write")
    @click.argument("path")
    @expires
    def presign_write(path: str, expire_second: int) -> None:
        """Show a request that writes PATH"""
        click.echo(client.presign_write(path, expire_second).model_dump_json(indent=2))
