# SPDX-License-Identifier: Apache-2.0
"""Client of the iSCSI target."""

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

__all__ = ["ISCSIServerClient"]

PathBuf = str | PathLike[str]

_MIB = 1 << 20
_ALGORITHMS = {".gz": "gz", ".xz": "xz", ".bz2": "bz2"}


@dataclass(kw_only=True)
class ISCSIServerClient(CompositeClient):
    """An iSCSI target on the exporter; ``storage`` holds the files it offers."""

    def start(self) -> None:
        """Start the target; nothing happens when it runs."""
        self.call("start")

    def stop(self) -> None:
        """Stop the target: its disks are gone for their users."""
        self.call("stop")

    def clear_all_luns(self) -> None:
        """Take all disks away; files stay."""
        self.call("clear_all_luns")

    def get_host(self) -> str:
        """The address that initiators connect to."""
        return str(self.call("get_host"))

    def get_port(self) -> int:
        """Its TCP port."""
        return int(self.call("get_port"))

    def get_target_iqn(self) -> str:
        """The target's name."""
        return str(self.call("get_target_iqn"))

    def get_credentials(self) -> dict[str, str] | None:
        """CHAP ``user`` and ``password`` that initiators must show; None when there are none."""
        found = self.call("get_credentials")
        return None if found is None else dict(found)

    def status(self) -> dict[str, Any]:
        """``running``, ``host``, ``port``, ``iqn``, ``chap`` and ``luns``."""
        return dict(self.call("status"))

    def add_lun(self, name: str, file_path: str, size_mb: int = 0, is_block: bool = False) -> str:
        """Offer a file of the storage, or an allowed block device; size_mb makes or grows a file (MiB)."""
        return str(self.call("add_lun", name, file_path, size_mb, is_block))

    def remove_lun(self, name: str) -> None:
        """Take a disk away; its file stays."""
        self.call("remove_lun", name)

    def list_luns(self) -> list[dict[str, Any]]:
        """The disks: ``name``, ``path``, ``size`` (bytes), ``lun_id``, ``is_block``."""
        return [{**lun, "size": int(lun["size"]), "lun_id": int(lun["lun_id"])} for lun in self.call("list_luns")]

    def decompress(self, src_path: str, dst_path: str, algo: str) -> None:
        """Unpack a file of the storage into another one; algo: "gz", "xz" or "bz2"."""
        self.call("decompress", src_path, dst_path, algo)

    def upload_image(
        self,
        dst_name: str,
        src: PathBuf,
        size_mb: int = 0,
        operator: Operator | None = None,
        force_upload: bool = False,
    ) -> str:
        """Put an image into the storage and offer it as the disk ``dst_name``; returns the target's name.

        src: local file, http(s) URL, or file of ``operator``; .gz, .xz and .bz2 are unpacked on the exporter. size_mb:
        at least so large. An image that is there already is not sent again, unless force_upload.
        """
        storage = self.children["storage"]
        assert isinstance(storage, OpendalClient)
        path = f"{dst_name}.img"
        suffix = os.path.splitext(_path_of(os.fspath(src)))[1]
        algorithm = _ALGORITHMS.get(suffix)
        sent = path if algorithm is None else f"{path}{suffix}"
        if operator is not None:
            storage.write_from_path(sent, src, operator)
        else:
            storage.put(sent, src, force=force_upload)
        if algorithm is not None:
            try:
                self.decompress(sent, path, algorithm)
            finally:
                storage.delete(sent)
        self.add_lun(dst_name, path, size_mb)
        return self.get_target_iqn()

    def cli(self) -> click.Group:
        """``serve``, ``start``, ``stop``, ``status``, ``luns``, ``remove``, and those of ``storage``."""
        import click

        base = super().cli()

        @base.command("serve")
        @click.argument("file")
        @click.option("--name", "-n", help="The disk's name; that of the file without its suffixes by default")
        @click.option("--size-mb", type=click.IntRange(min=0), default=0, help="At least so large, MiB")
        @click.option("--force-upload", is_flag=True, help="Send it even when it is there already")
        @click.option("--header", "headers", multiple=True, help="'Key: Value' for an http(s) URL; may be repeated")
        def serve(file: str, name: str | None, size_mb: int, force_upload: bool, headers: tuple[str, ...]) -> None:
            """Offer the image FILE (or URL) as the only disk and show where"""
            with _source(file, headers) as (source, operator):
                self.start()
                self.clear_all_luns()
                self.upload_image(name or _name_of(file), source, size_mb, operator, force_upload)
            click.echo(f"{self.get_host()}:{self.get_port()} {self.get_target_iqn()}")

        @base.command("start")
        def start() -> None:
            """Start the target and show where"""
            self.start()
            click.echo(f"{self.get_host()}:{self.get_port()} {self.get_target_iqn()}")

        @base.command("stop")
        def stop() -> None:
            """Stop the target"""
            self.stop()

        @base.command("status")
        def status() -> None:
            """Show whether and where it runs"""
            now = self.status()
            where = f"{now['host']}:{int(now['port'])} {now['iqn']}"
            click.echo(f"running at {where}" if now["running"] else "stopped")

        @base.command("credentials")
        def credentials() -> None:
            """Show the CHAP user and password of this session"""
            found = self.get_credentials()
            click.echo("none" if found is None else f"{found['user']} {found['password']}")

        @base.command("luns")
        def luns() -> None:
            """List the disks: number, size in bytes, name"""
            for lun in self.list_luns():
                click.echo(f"{lun['lun_id']} {lun['size']} {lun['name']}")

        @base.command("remove")
        @click.argument("name")
        def remove(name: str) -> None:
            """Take the disk NAME away"""
            self.remove_lun(name)

        return base


def _source(file: str, headers: tuple[str, ...]) -> Any:
    """Context: (what to upload, operator to read it with); a URL that needs headers is fetched here first."""
    from contextlib import contextmanager
    from tempfile import NamedTemporaryFile
    from urllib.request import Request, urlopen

    import click

    @contextmanager
    def opened() -> Any:
        if not headers:
            yield file, None
            return
        if not file.startswith(("http://", "https://")):
            raise click.ClickException("--header is for http(s) URLs only")
        request = Request(file)
        for header in headers:
            key, colon, value = header.partition(":")
            if not colon or not key.strip():
                raise click.ClickException("--header takes 'Key: Value'")
            request.add_header(key.strip(), value.strip())
        with NamedTemporaryFile(suffix=os.path.splitext(_path_of(file))[1]) as copy:
            with urlopen(request, timeout=60) as response:
                expected, got = response.headers.get("Content-Length"), 0
                while data := response.read(_MIB):
                    copy.write(data)
                    got += len(data)
            if expected is not None and got != int(expected):
                raise click.ClickException(f"{file}: {got} of {expected} bytes came")
            copy.flush()
            yield copy.name, None

    return opened()


def _path_of(file: str) -> str:
    from urllib.parse import unquote, urlsplit

    return unquote(urlsplit(file).path) if file.startswith(("http://", "https://")) else file


def _name_of(file: str) -> str:
    name = os.path.basename(_path_of(file))
    for suffix in (*_ALGORITHMS, ".img"):
        name = name.removesuffix(suffix)
    return name or "image"
