# SPDX-License-Identifier: Apache-2.0
"""Changes to the exporter's host, each written down before it is made, so that all can be taken back.

The list is a file: an exporter that was killed leaves it, and the next one takes the changes back first. Two exporters
may share the interface of the way out: who finds forwarding on there takes over what it was before from the other's
nftables table, and only the last one switches it off.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

__all__ = ["Host", "HostError", "end_daemons", "run"]

_SECONDS: Final = 15.0
_END_SECONDS: Final = 5.0
_TABLE: Final = "jumpstarter_"
_WAS: Final = re.compile(r"forwarding-(\d)-on-(.+)")
"""Name of an empty chain in our table: what forwarding of an interface was before."""


class HostError(OSError):
    """A command on the exporter's host failed."""


def run(*argv: str, text: str | None = None) -> str:
    """Run a command as root (with ``sudo -n`` unless we are); its output. Raises HostError with what it said."""
    command = list(argv) if os.geteuid() == 0 else ["sudo", "-n", *argv]
    try:
        done = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            env={**os.environ, "LC_ALL": "C"},  # we read what they say
        )
    except FileNotFoundError:
        if command[0] == "sudo":
            raise HostError("a DUT network needs root: run the exporter as root, or install sudo") from None
        raise HostError(
            f"{command[0]} is not installed on the exporter (Debian: apt-get install iproute2 nftables dnsmasq-base)"
        ) from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{argv[0]} did not end within {_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()[0]
        if said.startswith("sudo:"):
            raise HostError(f"a DUT network needs root, or sudo without password, for {argv[0]}: {said}")
        raise HostError(f"{' '.join(argv[:4])}: {said}")
    return done.stdout


class Host:
    """The changes of one DUT network. folder: where their list is kept. interface: that leads to the device."""

    def __init__(self, folder: Path, interface: str, logger: logging.Logger) -> None:
        self._path = folder / "undo.json"
        self._interface = interface
        self._logger = logger
        self._lock: int | None = None
        self._claim: socket.socket | None = None

    def take(self) -> None:
        """Have folder and interface for ourselves until `release` or our end. HostError: another exporter has one."""
        if self._lock is not None:
            return
        folder = self._path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            said = error.strerror or error
            raise HostError(f"field state_dir: {folder} cannot be used: {said}; name a writable one") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise HostError(f"field state_dir: {folder} is in use by another exporter: each needs its own") from None
        claim = socket.socket(socket.AF_UNIX)
        try:
            # A name without a file: every network namespace has its own, and the kernel forgets it with us.
            claim.bind(f"\0jumpstarter-dut-network-{self._interface}")
        except OSError:
            claim.close()
            os.close(lock)
            raise HostError(f"field interface: {self._interface} is in use by another exporter") from None
        self._lock, self._claim = lock, claim

    def release(self) -> None:
        """Give them back."""
        if (claim := self._claim) is not None:
            self._claim = None
            claim.close()
        if (lock := self._lock) is not None:
            self._lock = None
            os.close(lock)

    @property
    def taken(self) -> bool:
        """Whether the folder is ours."""
        return self._lock is not None

    # --- changes ------------------------------------------------------------------------------------------------

    def address(self, interface: str, address: str) -> None:
        """Give an interface an address (with prefix length), unless it has it."""
        link = self.link(interface)
        have = {f"{found['local']}/{found['prefixlen']}" for found in link.get("addr_info", [])}
        if address not in have:
            self._note("address", interface, address)
            run("ip", "address", "add", address, "dev", interface)

    def keep_addresses(self, interface: str, addresses: set[str]) -> None:
        """Take back those of `address` on this interface that are none of these."""
        for entry in self._read():
            if entry[:2] == ["address", interface] and entry[2] not in addresses:
                self._undo(*entry)
                self._write([other for other in self._read() if other != entry])

    def up(self, interface: str) -> None:
        """Switch an interface on."""
        if "UP" not in self.link(interface).get("flags", []):
            self._note("link", interface)
            run("ip", "link", "set", interface, "up")

    def forward(self, interface: str) -> str:
        """Let packets that come in through an interface pass on. What to write into our table, for other exporters."""
        path = f"/proc/sys/net/ipv4/conf/{interface}/forwarding"
        try:
            before = Path(path).read_text().strip()
        except FileNotFoundError:
            raise HostError(f"there is no network interface {interface} (upstream_interface)") from None
        before = next((was for was, other in _forwarded() if other == interface), before)
        self._note("forwarding", interface, before)
        run("tee", path, text="1\n")
        return f"chain forwarding-{before}-on-{interface} {{ }}"

    def unmanage(self, interface: str) -> None:
        """Where NetworkManager runs: keep it from giving the interface addresses of its own."""
        if shutil.which("nmcli") is None:
            return
        try:
            managed = run("nmcli", "-g", "GENERAL.NM-MANAGED", "device", "show", interface).strip()
        except HostError as error:
            self._logger.debug("NetworkManager: %s", error)  # it does not run
            return
        if managed == "yes":
            self._note("managed", interface)
            run("nmcli", "device", "set", interface, "managed", "no")

    def table(self, name: str, rules: str) -> None:
        """An nftables table (family ip) with these rules, in place of one of that name, in one step."""
        self._note("table", name)
        run("nft", "-f", "-", text=f"table ip {name}\ndelete table ip {name}\ntable ip {name} {{\n{rules}\n}}\n")

    def pass_forward_policy(self, interface: str, comment: str) -> None:
        """Where another program (Docker, say) drops what is forwarded, except the interface's packets from that."""
        try:
            listed = json.loads(run("nft", "-j", "list", "chain", "ip", "filter", "FORWARD"))["nftables"]
        except HostError:
            return  # there is no such chain
        if any(item.get("chain", {}).get("policy") == "drop" for item in listed):
            self._note("passing", comment)
            for key in ("iifname", "oifname"):
                words = ["insert", "rule", "ip", "filter", "FORWARD", key, interface, "accept"]
                run("nft", *words, "comment", f'"{comment}"')

    def daemon(self, mark: str) -> None:
        """A daemon is going to be started; ``mark`` is one of its arguments."""
        self._note("daemon", mark)

    # --- and back -----------------------------------------------------------------------------------------------

    def undo(self) -> None:
        """Take all changes back, the last one first. Raises HostError when some could not be; they stay on the list."""
        failed: list[list[Any]] = []
        said = []
        for entry in reversed(entries := self._read()):
            try:
                self._undo(*entry)
            except HostError as error:
                if not _gone(str(error)):
                    failed.insert(0, entry)
                    said.append(str(error))
        if failed:
            self._write(failed)
            raise HostError(f"could not be taken back: {'; '.join(said)}")
        if entries:
            self._path.unlink(missing_ok=True)

    def link(self, interface: str) -> dict[str, Any]:
        """What the kernel says of an interface. Raises HostError when there is none of that name."""
        found: list[dict[str, Any]] = json.loads(run("ip", "-json", "-4", "address", "show", "dev", interface))
        return next((link for link in found if link), {})

    def _undo(self, kind: str, *what: Any) -> None:
        self._logger.debug("taking back: %s %s", kind, what)
        match kind, what:
            case "address", (interface, address):
                run("ip", "address", "del", str(address), "dev", str(interface))
            case "link", (interface,):
                run("ip", "link", "set", str(interface), "down")
            case "forwarding", (interface, before):
                path = Path(f"/proc/sys/net/ipv4/conf/{interface}/forwarding")
                if path.exists() and all(other != interface for _, other in _forwarded()):
                    run("tee", str(path), text=f"{before}\n")
            case "table", (name,):
                run("nft", "delete", "table", "ip", str(name))
            case "passing", (comment,):
                listed = json.loads(run("nft", "-j", "-a", "list", "chain", "ip", "filter", "FORWARD"))["nftables"]
                for item in listed:
                    if (rule := item.get("rule", {})).get("comment") == comment:
                        run("nft", "delete", "rule", "ip", "filter", "FORWARD", "handle", str(rule["handle"]))
            case "managed", (interface,):
                run("nmcli", "device", "set", str(interface), "managed", "yes")
            case "daemon", (mark,):
                end_daemons(str(mark))

    def _note(self, *entry: Any) -> None:
        entries = self._read()
        if list(entry) not in entries:
            self._write([*entries, list(entry)])

    def _read(self) -> list[list[Any]]:
        try:
            found: list[list[Any]] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return []
        except ValueError:
            # Only a host that lost power leaves a part of it; such a host has forgotten the changes, too.
            self._logger.warning("%s is damaged: nothing is taken back", self._path)
            return []
        return found

    def _write(self, entries: list[list[Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(entries))
        os.replace(fresh, self._path)


def _gone(said: str) -> bool:
    """Whether a change could not be taken back because nothing of it is left."""
    return any(text in said for text in ("No such file", "Cannot assign", "Cannot find device", "does not exist"))


def _forwarded() -> list[tuple[str, str]]:
    """By what is in our tables, those of other exporters too: what forwarding was before, and of which interface."""
    found = []
    for item in json.loads(run("nft", "-j", "list", "chains", "ip"))["nftables"]:
        chain = item.get("chain", {})
        if str(chain.get("table", "")).startswith(_TABLE) and (match := _WAS.fullmatch(chain["name"])):
            found.append((match[1], match[2]))
    return found


def end_daemons(mark: str) -> None:
    """End the daemons that have this argument, and wait for it; those of an exporter that was killed, too.

    Found by argument: with sudo, the process that we started is not the daemon, and a number may be another's by now.
    """
    deadline = time.monotonic() + _END_SECONDS
    signum = signal.SIGTERM
    while pids := _with_argument(mark.encode()):
        if time.monotonic() > deadline:
            if signum == signal.SIGKILL:
                raise HostError(f"{mark}: processes {', '.join(pids)} do not end")
            signum, deadline = signal.SIGKILL, time.monotonic() + _END_SECONDS
        for pid in pids:
            _signal(pid, signum)
        time.sleep(0.01)  # not our children: nobody tells us


def _signal(pid: str, signum: int) -> None:
    if os.geteuid() == 0:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signum)
        return
    try:
        run("kill", f"-{signum:d}", pid)
    except HostError as error:
        if "No such process" not in str(error):
            raise


def _with_argument(mark: bytes) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has just ended
        if mark in words[1:]:
            found.append(path.parent.name)
    return found
