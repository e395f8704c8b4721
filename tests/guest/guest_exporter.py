# SPDX-License-Identifier: Apache-2.0
"""An exporter in the test guest, with its clients on this machine: drivers see the guest's kernel and udev."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from guest_machine import Guest, GuestProcess

from jumpstarter.client.client import client_from_path


@dataclass
class GuestExporter:
    """A running `jmp run` in the guest.

    address: host:port on this machine; environment: what `j` needs to find it; process: the exporter.
    """

    address: str
    process: GuestProcess = field(repr=False)

    @property
    def environment(self) -> dict[str, str]:
        return {"JUMPSTARTER_HOST": self.address, "JMP_GRPC_INSECURE": "1", "JMP_DRIVERS_ALLOW": "UNSAFE"}

    @contextmanager
    def client(self) -> Iterator[Any]:
        """The client of the root driver."""
        with start_blocking_portal() as portal, ExitStack() as stack:
            connecting = client_from_path(self.address, portal, stack, unsafe=True, insecure=True)
            with portal.wrap_async_context_manager(connecting) as client:
                try:
                    yield client
                finally:
                    stack.close()


@contextmanager
def guest_exporter(
    guest: Guest, export: Mapping[str, Any], *, env: Mapping[str, str] | None = None, timeout: float = 90
) -> Iterator[GuestExporter]:
    """Serve *export* (the section of an exporter's file) from the guest."""
    name = guest.name("ex")
    folder = f"/run/tmp/{name}"
    config = {"metadata": {"namespace": "guest", "name": name}, "export": dict(export)}
    guest.put(f"{folder}/exporter.yaml", json.dumps(config))  # JSON is YAML
    jmp = Path(sys.executable).with_name("jmp")
    argv = [os.fspath(jmp), "--log-format", "text", "run", "--exporter-config", f"{folder}/exporter.yaml"]
    argv += ["--tls-grpc-listener", "0.0.0.0:0", "--tls-grpc-insecure"]
    surroundings = {"XDG_RUNTIME_DIR": folder, "XDG_STATE_HOME": f"{folder}/state", **(env or {})}
    with guest.start(argv, env=surroundings) as process:
        port = int(process.wait_for(r"serves \S+:(\d+) ", timeout).group(1))
        with guest.forward(port) as forwarded:
            yield GuestExporter(f"127.0.0.1:{forwarded}", process)
