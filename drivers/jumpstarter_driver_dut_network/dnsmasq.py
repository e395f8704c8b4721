# SPDX-License-Identifier: Apache-2.0
"""dnsmasq for one interface: DHCP and DNS.

It reads its configuration before it gives up root's privileges, and nothing afterwards; so a change means a restart,
which takes some milliseconds and forgets no lease. Giving up privileges also makes it survive an exporter that is
killed (the kernel forgets the parent-death signal then): it is on the list of what the next one takes back.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any, Final

from jumpstarter.common.process import Process, spawn
from jumpstarter_driver_dut_network.host import HostError, end_daemons

__all__ = ["Dnsmasq", "leases"]

_START_SECONDS: Final = 10.0


class Dnsmasq:
    """A dnsmasq with its files in ``folder``."""

    def __init__(self, folder: Path, logger: logging.Logger) -> None:
        self.config = folder / "dnsmasq.conf"
        self.lease_file = folder / "dnsmasq.leases"
        self._logger = logger
        self._process: Process | None = None

    @property
    def mark(self) -> str:
        """The argument by which it is known among all processes."""
        return f"--conf-file={self.config}"

    @property
    def running(self) -> bool:
        """Whether it runs; False as well when it has died."""
        return self._process is not None and self._process.running

    def start(self, settings: list[str]) -> None:
        """Run it with these lines of configuration, in place of the one that runs. Raises HostError."""
        self.stop()
        lines = [*settings, f"dhcp-leasefile={self.lease_file}", "pid-file=", "log-facility=-"]
        self.config.write_text("".join(f"{line}\n" for line in lines))
        started = threading.Event()

        def said(line: str) -> None:
            self._logger.debug("%s", line)
            if "started, version" in line:
                started.set()

        command = ["dnsmasq", "--keep-in-foreground", self.mark]
        if os.geteuid() != 0:
            command = ["sudo", "-n", *command]
        try:
            process = spawn(command, name="dnsmasq", on_stderr=said)
        except FileNotFoundError as error:
            raise HostError(f"{error} (Debian: apt-get install dnsmasq-base)") from None
        self._process = process
        process.on_exit(lambda _: started.set())
        if not started.wait(_START_SECONDS):
            self.stop()
            raise HostError(f"dnsmasq does not start within {_START_SECONDS:g} s: {process.last_line}")
        if not process.running:
            raise HostError(f"dnsmasq does not start: {process.describe()}")

    def stop(self) -> None:
        """End it. Raises HostError when that cannot be done."""
        process = self._process
        if process is None:
            return
        if os.geteuid() == 0:
            process.stop(5)
        else:
            end_daemons(self.mark)  # root's: we may not send it a signal ourselves
            process.wait(5)
        self._process = None

    def complaint(self) -> str:
        """How it ended, when it should run."""
        return self._process.describe() if self._process is not None else "dnsmasq does not run"


def leases(path: Path) -> list[dict[str, Any]]:
    """The leases: ``mac``, ``ip``, ``hostname`` ("" for none) and ``expiry`` (seconds since 1970)."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) >= 4 and words[0].isdigit():
            name = "" if words[3] == "*" else words[3]
            found.append({"mac": words[1], "ip": words[2], "hostname": name, "expiry": int(words[0])})
    return found
