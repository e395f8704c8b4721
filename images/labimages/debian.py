# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any architecture, fetched without root and without touching the machine's own apt state."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError
from .tools import require, run

SUITE = "bookworm"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def mirrors() -> tuple[str, str]:
    """Addresses of the Debian archive and of its security archive; the environment may name nearer ones."""
    return (
        os.environ.get("JUMPSTARTER_DEBIAN_MIRROR", "http://deb.debian.org/debian"),
        os.environ.get("JUMPSTARTER_DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security"),
    )


def sources(architecture: str) -> list[str]:
    """Lines of a sources.list for *architecture*, security updates included."""
    if not _KEYRING.exists():
        raise BuildError(f"missing {_KEYRING}: run 'apt-get install debian-archive-keyring' as root")
    archive, security = mirrors()
    options = f"[arch={architecture} signed-by={_KEYRING}]"
    return [
        f"deb {options} {archive} {SUITE} main",
        f"deb {options} {archive} {SUITE}-updates main",
        f"deb {options} {security} {SUITE}-security main",
    ]


@dataclass
class PackageCache:
    """A private package index and download directory for one architecture.

    directory: where index, state and .deb files are kept between builds; architecture: Debian's name, as arm64.
    """

    directory: Path
    architecture: str

    def __post_init__(self) -> None:
        require("apt-get", "dpkg")
        self.directory = self.directory.resolve() / self.architecture
        for name in ("lists/partial", "archives/partial", "state", "debs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        (self.directory / "status").touch()
        (self.directory / "sources.list").write_text("\n".join(sources(self.architecture)) + "\n")

    def _options(self) -> list[str]:
        here = self.directory
        settings = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "Dir::Etc::SourceList": here / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": here / "state",
            "Dir::State::Lists": here / "lists",
            "Dir::State::status": here / "status",
            "Dir::Cache": here,
            "Acquire::Languages": "none",
            "Acquire::Retries": 3,
        }
        if os.geteuid() == 0:
            # The directories are ours alone, so the unprivileged user apt drops to could not write in them.
            settings["APT::Sandbox::User"] = "root"
        return [f"-o{key}={value}" for key, value in settings.items()]

    def update(self) -> None:
        """Fetch the package index."""
        run(["apt-get", *self._options(), "update"])

    def _have_index(self) -> bool:
        return any(self.directory.glob("lists/*_Packages*"))

    def dependency(self, package: str, pattern: str) -> str:
        """Name of the one package *package* depends on that matches *pattern*: what is behind a metapackage."""
        if not self._have_index():
            self.update()
        shown = run(["apt-cache", *self._options(), "depends", package])
        names = sorted(set(re.findall(rf"^\s+Depends: ({pattern})$", shown, re.MULTILINE)))
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise BuildError(f"{package} ({self.architecture}): expected one dependency like {pattern}, found {found}")
        return str(names[0])

    def download(self, *packages: str) -> list[Path]:
        """The .deb files of *packages*, downloaded once."""
        return [self._download(package) for package in packages]

    def _download(self, package: str) -> Path:
        debs = self.directory / "debs"
        held = sorted(debs.glob(f"{package}_*.deb"))
        if not held:
            if not self._have_index():
                self.update()
            try:
                run(["apt-get", *self._options(), "download", package], cwd=debs)
            except BuildError:
                # An index from before the archive's last change names files that are gone.
                self.update()
                run(["apt-get", *self._options(), "download", package], cwd=debs)
            held = sorted(debs.glob(f"{package}_*.deb"))
        if not held:
            raise BuildError(f"{package} ({self.architecture}): apt-get download left no file in {debs}")
        return held[-1]

    def unpack(self, destination: Path, *packages: str) -> None:
        """Lay the files of *packages* out under *destination*; no maintainer script runs."""
        for deb in self.download(*packages):
            run(["dpkg", "-x", deb, destination])
