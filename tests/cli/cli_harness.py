# SPDX-License-Identifier: Apache-2.0
"""Run the real commands in an environment of their own."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BIN = Path(sys.executable).parent
POWER = "jumpstarter_driver_power.driver.MockPower"
#: Seconds; it only ends a hang.
TIMEOUT = 120


@dataclass
class Cli:
    """The commands, with a home and a configuration below `directory`, and a runtime directory with a short name."""

    directory: Path
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # pytest's directories leave no room for a socket's name.
        self.runtime = Path(tempfile.mkdtemp(prefix="jlcli-", dir="/tmp"))
        weakref.finalize(self, shutil.rmtree, self.runtime, ignore_errors=True)
        for name in ("home", "xdg"):
            (self.directory / name).mkdir(mode=0o700, exist_ok=True)
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("JMP_", "JUMPSTARTER_", "_JMP", "XDG_", "GRPC_", "GLOG_", "COVERAGE"))
        }
        self.environ = {
            **clean,
            "HOME": str(self.directory / "home"),
            "XDG_CONFIG_HOME": str(self.directory / "xdg"),
            "XDG_RUNTIME_DIR": str(self.runtime),
            "PATH": os.pathsep.join([str(BIN), os.environ.get("PATH", os.defpath)]),
            **self.environ,
        }

    def run(
        self, *args: str | Path, env: Mapping[str, str] | None = None, input: str | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [str(arg) for arg in args],
            env={**self.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
            input=input if input is not None else "",
            **options,
        )

    def jmp(self, *args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `jmp`."""
        return self.run(BIN / "jmp", *args, **options)

    def leftovers(self) -> list[str]:
        """What is left in the runtime directory."""
        return sorted(os.listdir(self.runtime))

    def config(self, name: str = "board", **more: Any) -> Path:
        """An exporter file with two power drivers."""
        data = {
            "metadata": {"namespace": "ns", "name": name},
            "export": {"power": {"type": POWER}, "group": {"children": {"aux": {"type": POWER}}}},
            **more,
        }
        path = self.directory / f"{name}.yaml"
        path.write_text(yaml.safe_dump(data))
        return path

    @contextmanager
    def exporter(self, *args: str | Path, env: Mapping[str, str] | None = None) -> Iterator[RunningExporter]:
        """`jmp run` with these options; ended by SIGTERM at the end."""
        process = subprocess.Popen(
            [str(BIN / "jmp"), "--log-format", "text", "run", *map(str, args)],
            env={**self.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running = RunningExporter(process)
        try:
            running.address = running.wait_for(r"serves (\S+) ")
            yield running
        finally:
            running.end()


class RunningExporter:
    """A `jmp run` and what it logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = ""
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self.lines.append("(end)")
            self._changed.notify_all()

    def wait_for(self, pattern: str) -> str:
        """Wait for a log line; returns its first group."""

        def found() -> re.Match[str] | None:
            return next((m for m in (re.search(pattern, line) for line in self.lines) if m), None)

        with self._changed:
            self._changed.wait_for(lambda: found() or "(end)" in self.lines, TIMEOUT)
            match = found()
        assert match, f"no log line matches {pattern!r}: {self.lines}"
        return match.group(1) if match.groups() else match.group(0)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def end(self) -> None:
        """Make sure that it has ended."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
        if self.process.stdout:
            self.process.stdout.close()
        if self.process.stderr:
            self.process.stderr.close()


class Authority:
    """A certificate authority of the lab, writing PEM files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test lab CA")])
        certificate = self._sign(self._name, self._key.public_key(), ca=True)
        self.ca = self._write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(self, name: x509.Name, key: Any, ca: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, data: bytes) -> Path:
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key for `name`, for localhost."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._sign(subject, key.public_key()).public_bytes(serialization.Encoding.PEM)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return self._write(f"{name}.pem", certificate), self._write(f"{name}.key", pem)


def secret_file(path: Path, text: str) -> Path:
    """A file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(f"{text}\n")
    return path


def only_error(result: subprocess.CompletedProcess[str]) -> str:
    """The one error line of a command that failed."""
    assert result.returncode == 1, result
    lines: Sequence[str] = [line for line in result.stderr.splitlines() if not line.startswith("Warning: ")]
    assert len(lines) == 1, result
    assert lines[0].startswith("Error: "), result
    assert "Traceback" not in result.stderr
    return lines[0]
