# SPDX-License-Identifier: Apache-2.0
"""Host keys of a device: from the configuration, or as they were when the device was first seen."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["KeyRecord", "default_folder", "parse_host_keys", "scan_host_keys"]

_SCAN_SECONDS: Final = 10


def parse_host_keys(text: str, where: str) -> list[str]:
    """Lines of a known_hosts file, or of host key files (``*.pub``), without host names: "[@marker ]type key".

    All of them are taken as keys of the one device, whatever host they name. Raises ValueError that names the line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        marker = f"{fields.pop(0)} " if fields[0].startswith("@") else ""
        if len(fields) > 1 and not _is_key(fields[0], fields[1]):
            fields.pop(0)  # the host names
        if len(fields) < 2 or not _is_key(fields[0], fields[1]):
            raise ValueError(f'{where}: line {number} is no host key ("name ssh-ed25519 AAAA...")')
        keys.append(f"{marker}{fields[0]} {fields[1]}")
    return keys


def _is_key(kind: str, data: str) -> bool:
    """A public key begins with the length and the text of its type (RFC 4253, 6.6)."""
    try:
        blob = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return False
    length = int.from_bytes(blob[:4], "big")
    return 0 < length < 64 and blob[4 : 4 + length] == kind.encode()


async def scan_host_keys(host: str, port: int) -> list[str]:
    """Ask the device for its keys, with ssh-keyscan. Raises ConnectionError when sshd does not answer."""
    from jumpstarter.common.commands import base_environment, run_command

    command = ["ssh-keyscan", "-T", str(_SCAN_SECONDS), "-p", str(port), host]
    done = await run_command(command, timeout=3 * _SCAN_SECONDS, env=base_environment())
    keys = parse_host_keys(done.stdout.decode(errors="replace"), f"ssh-keyscan {host} port {port}")
    if not keys:
        said = done.last_line
        raise ConnectionError(
            f"no host key from {host} port {port}: sshd does not answer{f' ({said})' if said else ''}"
        )
    return sorted(keys)


class KeyRecord:
    """The keys a device had when it was first seen, in a file of its own (0600)."""

    def __init__(self, folder: str | os.PathLike[str] | None, host: str, port: int) -> None:
        """folder: default is ``jumpstarter-lab/ssh`` below $XDG_STATE_HOME (~/.local/state)."""
        name = "".join(char if char.isalnum() or char in ".-" else "_" for char in host)
        self.path = (Path(folder).expanduser() if folder else default_folder()) / f"{name}_{port}.keys"

    def load(self) -> list[str]:
        """The keys; none when the device was not seen yet."""
        try:
            return parse_host_keys(self.path.read_text(), str(self.path))
        except FileNotFoundError:
            return []

    def save(self, keys: list[str]) -> None:
        """Remember these."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".new-")
        try:
            with os.fdopen(fd, "w") as file:
                file.write("".join(f"{key}\n" for key in keys))
            os.replace(temporary, self.path)
        except BaseException:
            os.unlink(temporary)
            raise

    def forget(self) -> None:
        """The next keys that are seen are the right ones."""
        self.path.unlink(missing_ok=True)


def default_folder() -> Path:
    """Where keys are remembered unless the configuration says otherwise."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "jumpstarter-lab" / "ssh"
