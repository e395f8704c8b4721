# SPDX-License-Identifier: Apache-2.0
"""Flasher bundles: a folder, or an artifact in an OCI registry that is kept by its digest."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_flashers.manifest import FlasherBundleManifest
from jumpstarter_driver_storage.oci import Reference, Registry, find_credentials, is_insecure

__all__ = ["Bundle", "BundleStore", "check_bundle_name"]

_COMPLETE = ".complete"


@dataclass(frozen=True)
class Bundle:
    """A bundle on this host. source: as configured. digest: of an artifact, empty for a folder."""

    source: str
    folder: Path
    digest: str
    manifest: FlasherBundleManifest
    manifest_path: Path

    def file(self, name: str, field: str) -> Path:
        """The path of one of its files. Raises ConfigurationError that names the manifest's field."""
        path = self.folder / name
        if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
            raise ConfigurationError(
                f"flasher manifest {self.manifest_path}: field {field}: the bundle {self.source} has no file {name}"
            )
        return path


def check_bundle_name(source: str) -> None:
    """Raise ValueError for what is neither a folder's path, a file:// URL nor an OCI reference; looks at no disk."""
    if _folder_of(source) is None:
        Reference.parse(source)


class BundleStore:
    """Bundles below ``folder``, one folder per digest."""

    def __init__(
        self,
        folder: Path,
        *,
        insecure_registries: Sequence[str] = (),
        username: str | None = None,
        password: str | None = None,
        home: str | None = None,
    ) -> None:
        """home: the bundle that the configuration names. The login is for its registry, and for no other that a client
        may name."""
        self._folder = folder / "bundles"
        self._insecure = tuple(insecure_registries)
        self._login = (username, password)
        self._home = home

    def open(self, source: str, manifest: str) -> Bundle:
        """The bundle, downloaded if need be. Blocking.

        manifest: name of the manifest in it. Raises ConfigurationError for a bundle that is not whole or has a wrong
        manifest, OSError subclasses when the registry has it not or is not there.
        """
        folder, digest = _folder_of(source), ""
        if folder is None:
            folder, digest = self._pull(Reference.parse(source))
        elif not folder.is_dir():
            raise ConfigurationError(f"flasher_bundle: folder {folder} does not exist on the exporter host")
        path = folder / manifest
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in folder.glob("*.y*ml"))) or "no YAML file"
            raise ConfigurationError(f"flasher bundle {source}: there is no manifest {manifest}; it has {there}")
        return Bundle(source, folder, digest, FlasherBundleManifest.load(path), path)

    def _pull(self, reference: Reference) -> tuple[Path, str]:
        if reference.digest is not None and (kept := self._kept(reference.digest)) is not None:
            return kept, reference.digest  # a digest says what it is: no registry needed
        ours = self._is_home(reference)
        login = find_credentials(reference, *(self._login if ours else (None, None)), trusted=ours)
        registry = Registry(reference, login, insecure=is_insecure(reference, self._insecure))
        try:
            artifact = registry.artifact()
        except ValueError as error:
            raise ConfigurationError(f"flasher bundle {error}") from None
        if (kept := self._kept(artifact.digest)) is not None:
            return kept, artifact.digest
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._sweep()
        partial, held = self._new_partial()
        try:
            for layer in artifact.layers:
                if layer.title is None:
                    continue  # a configuration, or what is not meant to be a file
                try:
                    path = partial / _relative(layer.title)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    registry.download(layer, path)
                except (FileExistsError, NotADirectoryError):
                    raise ConfigurationError(
                        f"flasher bundle {reference}: its file name {layer.title!r} is there twice"
                    ) from None
                except ValueError as error:
                    raise ConfigurationError(f"flasher bundle {reference}: {error}") from None
            (partial / _COMPLETE).write_text(f"{reference}\n")
            place = self._place(artifact.digest)
            try:
                os.replace(partial, place)
            except OSError:
                if self._kept(artifact.digest) is None:  # else somebody else was quicker
                    raise
            return place, artifact.digest
        finally:
            os.close(held)
            shutil.rmtree(partial, ignore_errors=True)

    def _new_partial(self) -> tuple[Path, int]:
        """A new folder, and a descriptor of it that holds its lock."""
        while True:
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._folder))
            try:
                held = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # somebody who was sweeping took it for a left-over before it was locked
            try:
                fcntl.flock(held, fcntl.LOCK_EX)
                if partial.exists():
                    return partial, held
            except BaseException:
                os.close(held)
                raise
            os.close(held)

    def _sweep(self) -> None:
        """Remove what a killed exporter was downloading; who downloads holds a lock."""
        for path in self._folder.glob(".partial-*"):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # gone meanwhile
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except OSError:
                pass  # somebody is at it
            finally:
                os.close(fd)

    def _is_home(self, reference: Reference) -> bool:
        if self._home is None or _folder_of(self._home) is not None:
            return False
        return Reference.parse(self._home).registry == reference.registry

    def _place(self, digest: str) -> Path:
        return self._folder / digest.replace(":", "-")

    def _kept(self, digest: str) -> Path | None:
        place = self._place(digest)
        return place if (place / _COMPLETE).is_file() else None


def _folder_of(source: str) -> Path | None:
    """The folder that a bundle's name means; None for an OCI reference."""
    if source.startswith("file://"):
        parts = urlsplit(source)
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ValueError(f"flasher_bundle: {source!r} names another host; use file:///path")
        return Path(unquote(parts.path))
    if source.startswith(("/", "./", "../", "~")):
        return Path(source).expanduser().absolute()
    return None


def _relative(title: str) -> PurePosixPath:
    path = PurePosixPath(title)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in title:
        raise ValueError(f"its file name {title!r} leads out of the bundle")
    return path
