# SPDX-License-Identifier: Apache-2.0
"""The test guest as tests use it: run and start commands in it, reach its ports, plug emulated hardware into it."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import select
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOST = "10.0.2.2"  # this machine as the guest sees it; what listens on this machine's loopback is reached there
AGENT_PORT = 5000


class GuestError(Exception):
    """A command of the guest could not be run, or ended otherwise than it must."""


class Qmp:
    """The guest's QEMU monitor. It serves one connection at a time, hence the lock among workers."""

    def __init__(self, folder: Path) -> None:
        self._lock = (folder / "qmp.lock").open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(folder / "qmp"))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()
        self._lock.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return what it returns."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise GuestError(f"QMP {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise GuestError(f"QMP {command}: QEMU closed the connection")

    def human(self, line: str) -> str:
        """Run a command of the human monitor and return its text."""
        return str(self.execute("human-monitor-command", **{"command-line": line}))


def forwarded_ports(qmp: Qmp) -> dict[int, int]:
    """Guest port -> port of this machine, of all forwards."""
    found = re.findall(r"TCP\[HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)", qmp.human("info usernet"))
    return {int(guest): int(host) for host, guest in found}


@dataclass
class Finished:
    """What a command left. stdout and stderr are text; the bytes are in stdout_bytes."""

    argv: list[str]
    rc: int
    stdout_bytes: bytes = field(repr=False)
    stderr_bytes: bytes = field(repr=False)

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")

    def __str__(self) -> str:
        return f"{self.argv} in the guest ended with {self.rc}\nstdout: {self.stdout}\nstderr: {self.stderr}"


class GuestProcess:
    """A command that runs in the guest; it and what it started are killed when this is closed or this process ends."""

    def __init__(
        self, port: int, argv: Sequence[str | os.PathLike[str]], env: Mapping[str, str] | None, cwd: str | None
    ) -> None:
        self.argv = [os.fspath(word) for word in argv]
        self.stdout = bytearray()
        self.stderr = bytearray()
        self.rc: int | None = None
        self.pid: int | None = None
        self._failure: str | None = None
        self._changed = threading.Condition()
        self._ended = False
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.settimeout(None)
        self._incoming = self._socket.makefile("rb")
        request = {"argv": self.argv, "env": dict(env or {}), "cwd": cwd}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        self._reader = threading.Thread(target=self._read, name=f"guest {self.argv[0]}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while len(header := self._incoming.read(5)) == 5:
                data = self._incoming.read(struct.unpack(">I", header[1:])[0])
                with self._changed:
                    match header[:1]:
                        case b"o":
                            self.stdout += data
                        case b"e":
                            self.stderr += data
                        case b"p":
                            self.pid = int(data)
                        case b"x":
                            self.rc = int(data)
                        case b"f":
                            self._failure = data.decode()
                    self._changed.notify_all()
        except OSError as error:
            self._failure = self._failure or str(error)
        with self._changed:
            self._ended = True
            if self.rc is None and self._failure is None:
                self._failure = "the connection to the guest ended"
            self._changed.notify_all()

    def _frame(self, kind: bytes, data: bytes) -> None:
        self._socket.sendall(kind + struct.pack(">I", len(data)) + data)

    def write(self, data: bytes | str) -> None:
        """Give it input."""
        data = data.encode() if isinstance(data, str) else data
        if data:
            self._frame(b"i", data)

    def close_stdin(self) -> None:
        """End its input."""
        self._frame(b"i", b"")

    def signal(self, number: int) -> None:
        """Send a signal to it and all it started."""
        self._frame(b"s", str(int(number)).encode())

    def wait(self, timeout: float = 60) -> int:
        """Its exit code (negative: the signal it died from)."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"{self}: not over after {timeout} s")
        if self.rc is None:
            raise GuestError(f"{self.argv}: {self._failure}")
        return self.rc

    def wait_for(self, pattern: str, timeout: float = 60) -> re.Match[str]:
        """Wait until its output (stdout, then stderr) has a match of the regular expression, and return that."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            for stream in (self.stdout, self.stderr):
                match = re.search(pattern, stream.decode(errors="replace"), re.MULTILINE)
                if match:
                    found.append(match)
                    return True
            return self._ended

        with self._changed:
            if not self._changed.wait_for(look, timeout):
                raise TimeoutError(f"{self}: no {pattern!r} within {timeout} s")
        if not found:
            raise GuestError(f"{self}: ended ({self._failure or self.rc}) without {pattern!r}")
        return found[0]

    def close(self) -> None:
        """Kill it unless it has ended, and wait until it has."""
        if not self._ended:
            try:
                self.signal(9)
            except OSError:
                pass  # ended at this moment
            self._reader.join(30)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)  # close alone would wait for the reader's file object
        except OSError:
            pass  # the guest has closed it first
        self._reader.join(5)
        self._incoming.close()
        self._socket.close()

    def __enter__(self) -> GuestProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __str__(self) -> str:
        return (
            f"{self.argv} in the guest\nstdout: {self.stdout.decode(errors='replace')}\n"
            f"stderr: {self.stderr.decode(errors='replace')}"
        )


@dataclass
class Guest:
    """The guest that all tests of a run share: whatever a test makes in it must have a name of its own.

    folder: the keeper's; port: of this machine, the agent's.
    """

    folder: Path
    port: int
    _names: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @classmethod
    def booted(cls, folder: Path, timeout: float = 900) -> Guest:
        """Wait until the keeper of *folder* says that the guest is up. It may have to fetch the kernel first."""
        state = folder / "state.json"
        deadline = time.monotonic() + timeout
        while not state.exists():
            if time.monotonic() > deadline:
                raise GuestError(f"no test guest after {timeout:.0f} s; see {folder / 'console.log'}")
            if has_ended(int((folder / "keeper.pid").read_text())) and not state.exists():
                raise GuestError(f"the keeper of the test guest has ended; see {folder / 'keeper.log'}")
            time.sleep(0.1)
        told = json.loads(state.read_text())
        if "error" in told:
            raise GuestError(told["error"])
        return cls(folder, told["port"])

    def name(self, prefix: str) -> str:
        """A name no other test of this run uses, for an interface, a folder or a device: 15 characters at most."""
        name = f"{prefix}{os.getpid() % 46656:x}n{next(self._names)}"
        assert len(name) <= 15, f"{name} is too long for a network interface: shorten the prefix"
        return name

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ) -> GuestProcess:
        """Start a command as root in the guest; use it in a `with` so that it ends with the test."""
        return GuestProcess(self.port, argv, env, cwd)

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float = 60,
        input: bytes | str = b"",
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        check: bool = True,
    ) -> Finished:
        """Run a command as root in the guest to its end. check: an exit code other than 0 raises."""
        with self.start(argv, env=env, cwd=cwd) as process:
            try:
                process.write(input)
                process.close_stdin()
            except OSError:
                pass  # it has ended already; wait() tells how
            process.wait(timeout)
            assert process.rc is not None
            done = Finished(process.argv, process.rc, bytes(process.stdout), bytes(process.stderr))
        if check and done.rc != 0:
            raise GuestError(str(done))
        return done

    def shell(self, script: str, **options: Any) -> str:
        """Run a shell script (`set -e`) in the guest and return what it prints."""
        return self.run(["sh", "-ec", script], **options).stdout

    def modprobe(self, *modules: str) -> None:
        """Load kernel modules with what they need."""
        self.run(["modprobe", "-a", *modules])

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command on the guest's QEMU: device_add, device_del, object_add, ..."""
        with Qmp(self.folder) as qmp:
            return qmp.execute(command, **arguments)

    @contextmanager
    def forward(self, port: int) -> Iterator[int]:
        """A port of this machine's loopback that leads to TCP *port* of the guest (its server must bind 0.0.0.0)."""
        with Qmp(self.folder) as qmp:
            answer = qmp.human(f"hostfwd_add net tcp:127.0.0.1:0-10.0.2.15:{port}")
            if answer.strip():
                raise GuestError(f"hostfwd_add for port {port}: {answer.strip()}")
            host = forwarded_ports(qmp)[port]
        try:
            yield host
        finally:
            with Qmp(self.folder) as qmp:
                qmp.human(f"hostfwd_remove net tcp:127.0.0.1:{host}")

    @staticmethod
    def live(path: Path) -> str:
        """Where the guest sees a file of this machine that was made or changed after boot (read-only)."""
        return f"/host{path}"

    def put(self, path: str, data: bytes | str) -> None:
        """Write a file in the guest, with its folders."""
        self.run(["sh", "-ec", 'mkdir -p "$(dirname "$1")"; cat > "$1"', "sh", path], input=data)


def has_ended(pid: int) -> bool:
    """Whether that process is over, be it that nobody has asked for its exit code yet."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 0)[0])
    finally:
        os.close(process)


def is_keeper(pid: int) -> bool:
    """Whether that process, started a while ago, is a keeper: its number alone may be somebody else's by now."""
    try:
        return b"guest_keeper.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@contextmanager
def running_keeper(folder: Path, pytest_pid: int) -> Iterator[subprocess.Popen[bytes]]:
    """A keeper that works for *pytest_pid*, with its own folder; it ends with this block."""
    keeper = start_keeper(folder, pytest_pid)
    try:
        yield keeper
    finally:
        keeper.terminate()
        keeper.wait(30)


def start_keeper(folder: Path, pytest_pid: int) -> subprocess.Popen[bytes]:
    """Start the guest's keeper in the background."""
    import sys

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "keeper.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("guest_keeper.py")), str(folder), str(pytest_pid)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
