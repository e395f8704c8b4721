# SPDX-License-Identifier: Apache-2.0
"""How Ansible's own ssh connection reaches a leased device: through the agent's socket, without secrets in argv."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from .lease import HostLease
from .paths import SOCKET_NAME, safe_name

__all__ = ["SSH_DRIVER", "ssh_facts"]

SSH_DRIVER = "ssh"
_SSH_PORT = 22


def ssh_facts(lease: HostLease) -> dict[str, Any]:
    """``{"ssh": {ansible_host, ...}}`` for an exporter that has a driver `ssh` at its root, else ``{}``.

    ansible_host is unique per lease, so that a control master of an earlier lease is never reused.
    """
    if SSH_DRIVER not in lease.connection.session.nodes:
        return {}
    proxy = [
        sys.executable,
        "-I",
        "-S",
        str(Path(__file__).with_name("proxy.py")),
        "--socket",
        str(lease.place.directory / SOCKET_NAME),
        "--host",
        lease.host,
        "--driver",
        SSH_DRIVER,
    ]
    # ssh hands the command to a shell after expanding %-tokens: quoted for the shell, percent signs doubled.
    command = shlex.join(proxy).replace("%", "%%")
    options = [
        f"ProxyCommand={command}",
        f"UserKnownHostsFile={_quote(lease.known_hosts)}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=accept-new",
    ]
    arguments = " ".join(f"-o {shlex.quote(option)}" for option in options)
    facts = {
        "ansible_host": f"{safe_name(lease.host)}.{lease.id}.jumpstarter",
        "ansible_port": _SSH_PORT,
        "ansible_ssh_common_args": arguments,
    }
    return {"ssh": facts}


def _quote(path: Path) -> str:
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text
