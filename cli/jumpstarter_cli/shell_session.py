# SPDX-License-Identifier: Apache-2.0
"""What happens around the command of `jmp shell`: the exporter, the warm `j`, the environment, the end.

This process stays small and imports no gRPC: a local exporter is a child process (it gives the device back when this
one ends, however it ends), and what there is to ask an exporter is asked by the warm process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import click

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError, JumpstarterException
from jumpstarter.common.runtime import runtime_directory
from jumpstarter.config import env
from jumpstarter.config.files import exporter_paths
from jumpstarter_cli.launch import launch
from jumpstarter_cli.zygote import fork_zygote, listen

__all__ = ["Endpoint", "Surroundings", "direct", "local"]

#: Seconds an exporter has to switch off, run its drivers' close and end.
_END_SECONDS = 60.0


@dataclass(frozen=True)
class Endpoint:
    """An exporter's own port, as the command line named it."""

    address: str
    insecure: bool
    ca: str | None
    cert: str | None
    key: str | None
    passphrase: str | None = field(repr=False)
    passphrase_file: str | None

    def environment(self) -> dict[str, str]:
        """The variables that lead `j` and env() there."""
        from jumpstarter_cli.secrets import read_secret

        found = {env.JUMPSTARTER_HOST: self.address}
        if self.insecure:
            found[env.JMP_GRPC_INSECURE] = "1"
        for name, what, path in (
            (env.JMP_GRPC_TLS_CA, "TLS CA", self.ca),
            (env.JMP_GRPC_TLS_CERT, "TLS certificate", self.cert),
            (env.JMP_GRPC_TLS_KEY, "TLS key", self.key),
        ):
            if path:
                if not os.access(path, os.R_OK):
                    raise ConfigurationError(f"{what} {path} cannot be read")
                found[name] = os.path.abspath(path)
        file = self.passphrase_file or os.environ.get(env.JMP_GRPC_PASSPHRASE_FILE)
        if self.passphrase:
            found[env.JMP_GRPC_PASSPHRASE] = self.passphrase
        elif self.passphrase_file or (file and not os.environ.get(env.JMP_GRPC_PASSPHRASE)):
            found[env.JMP_GRPC_PASSPHRASE] = read_secret(str(file), "passphrase file")
        return found


def local(alias: str | None, path: str | None, command: Sequence[str], exporter_logs: bool) -> int:
    """Run an exporter here for as long as the command runs. Returns the command's exit code."""
    config = _find(alias) if alias is not None else Path(str(path))
    with Surroundings() as around, _exporter(config, around.directory, exporter_logs) as (name, host):
        around.set(
            {
                env.JUMPSTARTER_HOST: host,
                env.JMP_DRIVERS_ALLOW: "UNSAFE",  # the user's own configuration, on the user's own machine
                env.JMP_EXPORTER: name,
                env.JMP_EXPORTER_LABELS: f"jumpstarter.dev/name={name}",
            }
        )
        motd = "" if command else str(around.probe().get("motd", ""))
        return launch(command, around.environment, "local", motd)


def direct(endpoint: Endpoint, command: Sequence[str], exporter_logs: bool) -> int:
    """Run the command with an exporter that serves clients itself. Returns the command's exit code."""
    with Surroundings() as around:
        around.set({**endpoint.environment(), env.JMP_DRIVERS_ALLOW: _allowed()})
        about = around.probe()
        labels = about.get("labels") or {}
        assert isinstance(labels, dict)
        around.set(
            {
                env.JMP_EXPORTER: str(about.get("name", "")),
                env.JMP_EXPORTER_LABELS: ",".join(f"{key}={value}" for key, value in labels.items()),
            }
        )
        with around.logs() if exporter_logs else ExitStack():
            return launch(command, around.environment, endpoint.address, str(about.get("motd", "")))


def _find(alias: str) -> Path:
    candidates = exporter_paths(alias)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f'no exporter configuration "{alias}": neither {candidates[0]} nor {candidates[1]} exists '
        "(see `jmp config exporter list`)"
    )


def _allowed() -> str:
    """Which client classes the shell's programs may import: the user's choice, else the drivers installed here."""
    from jumpstarter.utils.env import drivers_from_env

    patterns, unsafe = drivers_from_env(os.environ)
    return "UNSAFE" if unsafe else ",".join(patterns)


class Surroundings:
    """A private directory, the warm process in it, and the environment of the command."""

    def __init__(self) -> None:
        self.environment = dict(os.environ)
        self.environment[env.JMP_SUPPRESS_DRIVER_WARNINGS] = "1"
        # What an outer shell set says nothing about this exporter.
        for name in (
            env.JUMPSTARTER_HOST,
            env.JMP_EXPORTER,
            env.JMP_EXPORTER_LABELS,
            env.JMP_LEASE,
            env.JMP_GRPC_INSECURE,
            env.JUMPSTARTER_GRPC_INSECURE,
            env.JMP_GRPC_TLS_CA,
            env.JMP_GRPC_TLS_CERT,
            env.JMP_GRPC_TLS_KEY,
            env.JMP_DRIVERS_UNSAFE,
        ):
            self.environment.pop(name, None)
        self.directory = Path()
        self._stack = ExitStack()

    def __enter__(self) -> Surroundings:
        with ExitStack() as stack:
            self.directory = stack.enter_context(runtime_directory())
            address = str(self.directory / "j.sock")
            stack.enter_context(_zygote(address))
            self.environment[env.JMP_J_SOCKET] = address
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(None, None, None)

    def set(self, variables: dict[str, str]) -> None:
        """Add to the command's environment."""
        self.environment.update(variables)

    def probe(self) -> dict[str, object]:
        """Ask the exporter who it is: name, labels, motd. Ends this command when it cannot be reached."""
        result = subprocess.run(
            _entry(), env={**self.environment, "_JMP_J_ENTRY": "probe"}, stdout=subprocess.PIPE, check=False
        )
        if result.returncode:
            raise SystemExit(1)  # it said why
        about: dict[str, object] = json.loads(result.stdout)
        return about

    @contextmanager
    def logs(self) -> Iterator[None]:
        """Show the exporter's log lines on stderr while the context is open."""
        process = subprocess.Popen(
            _entry(), env={**self.environment, "_JMP_J_ENTRY": "logs"}, stdin=subprocess.DEVNULL, stdout=2
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def _entry() -> list[str]:
    return [sys.executable, "-m", "jumpstarter_cli.j"]


@contextmanager
def _zygote(address: str) -> Iterator[None]:
    with listen(address) as listener:
        pid, lifeline = fork_zygote(listener)
    try:
        yield
    finally:
        os.close(lifeline)
        os.waitpid(pid, 0)


@contextmanager
def _exporter(config: Path, directory: Path, show_logs: bool) -> Iterator[tuple[str, str]]:
    """A local exporter; yields its name and its socket. At the end it has given the device back."""
    if not config.is_file():
        raise FileNotFoundError(f"{config}: no such file")
    reading, writing = os.pipe()
    log = directory / "exporter.log"
    address = str(directory / "exporter.sock")
    arguments = ["--config", str(config), "--listen", f"unix:{address}", "--lifeline", str(reading)]
    with ExitStack() as stack:
        try:
            stream = None if show_logs else stack.enter_context(log.open("wb"))
            process = subprocess.Popen(
                [sys.executable, "-m", "jumpstarter.exporter", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream,
                pass_fds=(reading,),
                start_new_session=True,  # Ctrl-C in the shell is for the command
            )
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        try:
            yield _ready(process, log), address
        except BaseException:
            _end(process, writing, log, quiet=True)
            raise
        _end(process, writing, log, quiet=False)


def _ready(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the exporter serves. Returns its name."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(b"READY "):
            _show_warnings(log)
            return str(json.loads(line[len(b"READY ") :]).get("name", ""))
    process.wait()
    raise JumpstarterException(_last_line(log) or f"the exporter ended at its start (exit code {process.returncode})")


def _show_warnings(log: Path) -> None:
    """What the exporter had to say about its configuration is for the user, also without --exporter-logs."""
    for line in _lines(log):
        _, found, text = line.partition(" WARNING ")
        if found:
            click.echo(click.style(f"Warning: {text.partition(': ')[2] or text}", fg="yellow"), err=True)


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def _last_line(log: Path) -> str:
    lines = [line for line in _lines(log) if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")


def _end(process: subprocess.Popen[bytes], lifeline: int, log: Path, quiet: bool) -> None:
    """End the exporter's session and wait for it. An exporter that failed is an error unless `quiet`."""
    early = process.poll() is not None
    os.close(lifeline)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        click.echo(click.style("Warning: the exporter did not end and was killed", fg="yellow"), err=True)
    if process.stdout is not None:
        process.stdout.close()
    if not quiet and (early or process.returncode):
        when = "while the command ran" if early else "at its end"
        raise JumpstarterException(
            f"the exporter failed {when} (exit code {process.returncode})" + _said(_last_line(log))
        )


def _said(line: str) -> str:
    return f": {line}" if line else ""
