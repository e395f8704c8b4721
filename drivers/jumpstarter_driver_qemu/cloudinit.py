# SPDX-License-Identifier: Apache-2.0
"""The NoCloud data by which a distribution image learns its host name and login."""

from __future__ import annotations

import json
import os
from pathlib import Path

__all__ = ["write_cidata"]


def write_cidata(directory: Path, *, instance_id: str, hostname: str, username: str, password: str) -> Path:
    """Write meta-data and user-data (owner-only: there is a password in it) and return the directory."""
    directory.mkdir(mode=0o700, exist_ok=True)
    user = {
        "name": username,
        "plain_text_passwd": password,
        "lock_passwd": False,
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "shell": "/bin/bash",
    }
    # JSON is YAML; it needs no library and quotes every password correctly.
    _write(directory / "meta-data", json.dumps({"instance-id": instance_id, "local-hostname": hostname}))
    _write(directory / "user-data", "#cloud-config\n" + json.dumps({"ssh_pwauth": True, "users": [user]}))
    return directory


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text + "\n")
