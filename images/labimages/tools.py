# SPDX-License-Identifier: Apache-2.0
"""Running host programs, with errors that say which Debian package to install."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import BuildError

#: Debian package that holds each host program the builders use.
DEBIAN_PACKAGES: Mapping[str, str] = {
    "apt-get": "apt",
    "dpkg": "dpkg",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mmd": "mtools",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "ssh-keygen": "openssh-client",
    "syslinux": "syslinux",
}

# Debian keeps administration tools here, and a user's PATH often leaves it out.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH with the sbin directories appended."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])


def require(*programs: str) -> None:
    """Raise BuildError with the exact apt command when any of *programs* is not installed."""
    missing = [name for name in programs if shutil.which(name, path=search_path()) is None]
    if missing:
        packages = sorted({DEBIAN_PACKAGES.get(name, name) for name in missing})
        raise BuildError(f"missing {', '.join(missing)}: run 'apt-get install {' '.join(packages)}' as root")


def run(argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run *argv* without standard input and return its standard output; BuildError carries the tail of what it said."""
    words = [str(word) for word in argv]
    require(words[0])
    merged = {**os.environ, "LC_ALL": "C.UTF-8", "PATH": search_path(), **(env or {})}
    done = subprocess.run(words, env=merged, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:]
        tail = " | ".join(said) or "no output"
        raise BuildError(f"{' '.join(words[:3])}... ended with code {done.returncode}: {tail}")
    return done.stdout
