# SPDX-License-Identifier: Apache-2.0
"""Client of `SSHWrapper`: runs the local ssh, scp or sftp so that it ends at the device."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jumpstarter.client.adapters import PortforwardAdapter, UnixPortforwardAdapter
from jumpstarter.common.exceptions import DriverError
from jumpstarter_driver_composite.client import CompositeClient
from jumpstarter_driver_ssh.arguments import option_set, split_arguments

if TYPE_CHECKING:
    import click

    from jumpstarter.streams.router import RouterStream

__all__ = ["SSHCommandRunOptions", "SSHCommandRunResult", "SSHWrapperClient"]

Tool = Literal["ssh", "scp", "sftp"]

_NOT_INSTALLED = 127
_NOT_SHARED = "ControlPath=none"
"""All devices have one name here, so a shared connection (ControlMaster in ~/.ssh/config) may lead to another one."""


@dataclass
class SSHCommandRunResult:
    """What ssh returned: its exit status (127: ssh is not installed here) and, when captured, its output."""

    return_code: int
    stdout: str | bytes
    stderr: str | bytes

    @staticmethod
    def from_completed_process(result: subprocess.CompletedProcess[Any]) -> SSHCommandRunResult:
        """From what `subprocess.run` gives."""
        return SSHCommandRunResult(result.returncode, result.stdout or "", result.stderr or "")


@dataclass
class SSHCommandRunOptions:
    """direct: connect to the device's own address, not through the exporter. capture_output, capture_as_text: return
    the output (as text), instead of leaving it to the terminal."""

    direct: bool = False
    capture_output: bool = True
    capture_as_text: bool = True


@dataclass(kw_only=True)
class SSHWrapperClient(CompositeClient):
    """ssh to a device; child ``tcp``."""

    @property
    def command(self) -> str:
        """The ssh command of the exporter's configuration."""
        return str(self.call("get_ssh_command"))

    @property
    def identity(self) -> str | None:
        """The private key, from exporters that share it (all of 0.9 do)."""
        value = self.call("get_ssh_identity")
        return str(value) if value else None

    @property
    def username(self) -> str:
        """Whom to log in as; "" for one's own choice."""
        return str(self.call("get_default_username"))

    @asynccontextmanager
    async def stream_async(self, method: str = "connect") -> AsyncIterator[RouterStream]:
        """A stream of the driver; where the exporter's ssh driver has none (0.9), of its child ``tcp``."""
        owner: Any = super() if self.methods is not None else self.children["tcp"]
        async with owner.stream_async(method) as stream:
            yield stream

    def run(
        self, options: SSHCommandRunOptions | None = None, args: Sequence[str] = (), *, tool: Tool = "ssh"
    ) -> SSHCommandRunResult:
        """Run ssh with options of ssh and a remote command: ``run(SSHCommandRunOptions(), ["-v", "uname", "-a"])``.

        tool: scp or sftp take all their arguments in ``args``; the device's name is "dut".
        """
        options = options or SSHCommandRunOptions()
        with self._prepared(options.direct, tool, list(args)) as command:
            return _execute(command, options)

    def forget_host_keys(self) -> None:
        """Accept new host keys of the device, because it was flashed."""
        self.call("forget_host_keys")

    def cli(self) -> click.Command:  # type: ignore[override]  # one command, as in 0.9; not a group of children
        """The command ``ssh [--direct] ARGS...``."""
        import click

        from jumpstarter.client.decorators import driver_click_command

        @driver_click_command(self, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
        @click.option("--direct", is_flag=True, help="Connect to the device's own address, not through the exporter.")
        @click.option(
            "--tool", type=click.Choice(["ssh", "scp", "sftp"]), default="ssh", show_default=True,
            help='Program to run; for scp and sftp the device is called "dut".',
        )  # fmt: skip
        @click.option("--forget-host-keys", is_flag=True, help="First accept new host keys of the device.")
        @click.argument("args", nargs=-1, type=click.UNPROCESSED)
        def ssh(direct: bool, tool: Tool, forget_host_keys: bool, args: tuple[str, ...]) -> None:
            """Log in to the device, or run a command on it: options of ssh, then the command."""
            if forget_host_keys:
                self.forget_host_keys()
            try:
                result = self.run(SSHCommandRunOptions(direct=direct, capture_output=False), args, tool=tool)
            except DriverError:
                raise
            except ValueError as error:
                raise click.UsageError(str(error)) from None
            if result.stderr:
                click.echo(result.stderr, err=True)
            if result.return_code:
                code = result.return_code
                raise click.exceptions.Exit(code if code > 0 else 128 - code)

        return ssh

    @contextmanager
    def _prepared(self, direct: bool, tool: Tool, args: list[str]) -> Iterator[list[str]]:
        """The command to run, while everything it refers to exists."""
        with ExitStack() as stack:
            if not self.has_method("ssh_settings"):
                yield self._plain_command(stack, direct, tool, args)
                return
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jumpstarter-ssh-")))
            settings = self.call("ssh_settings")
            command = shlex.split(settings["command"])
            configured = split_arguments(command[1:])[0]
            words, remote = split_arguments(args, tool)
            given = _Given(configured, words, tool)
            alias = str(settings["alias"])
            wanted = [f"HostKeyAlias={alias}", f"ConnectTimeout={int(settings['connect_timeout'])}"]
            if not given.has("", "StrictHostKeyChecking"):
                known = folder / "known_hosts"
                known.write_text("".join(f"{line}\n" for line in settings["known_hosts"]))
                wanted += [
                    "StrictHostKeyChecking=yes", f"UserKnownHostsFile={_quoted(str(known))}",
                    "GlobalKnownHostsFile=/dev/null", "UpdateHostKeys=no",
                ]  # fmt: skip
            if settings["agent"] and not given.has("i", "IdentityFile"):
                wanted.append(f"IdentityAgent={_quoted(self._forward(stack, folder / 'agent', 'agent'))}")
            if settings["username"] and not given.has("l", "User"):
                wanted.append(f"User={settings['username']}")
            if not given.has("S", "ControlPath"):
                wanted.append(_NOT_SHARED)
            wanted += self._way(stack, folder, direct)
            options = [word for option in wanted for word in ("-o", option)]
            # ssh takes the first value of an option it gets: what the user gives now wins.
            end = ["--"] if remote and remote[0].startswith("-") else []
            if tool != "ssh":
                yield [tool, *words, *options, *_only_long(configured), *end, *remote]
                return
            yield [command[0], *words, *options, *command[1:], alias, *end, *remote]

    def _forward(self, stack: ExitStack, path: Path, method: str) -> str:
        return stack.enter_context(UnixPortforwardAdapter(client=self, path=path, method=method))

    def _way(self, stack: ExitStack, folder: Path, direct: bool) -> list[str]:
        """Options that lead to the device."""
        if direct:
            try:
                host, _, port = self.children["tcp"].call("address").partition("://")[2].rpartition(":")
                return [f"HostName={host.strip('[]')}", f"Port={port}"]
            except DriverError as error:
                self.logger.warning("the device's address is not known (%s), connecting through the exporter", error)
        socket = self._forward(stack, folder / "connect", "connect")
        program = Path(__file__).with_name("connect_fd.py")
        proxy = shlex.join([sys.executable, "-I", "-S", str(program), socket]).replace("%", "%%")
        return [f"ProxyCommand={proxy}", "ProxyUseFdpass=yes"]

    def _plain_command(self, stack: ExitStack, direct: bool, tool: Tool, args: list[str]) -> list[str]:
        """The command for an exporter of 0.9: it tells a command, a user and the key, and no host keys."""
        command = shlex.split(self.command)
        options = split_arguments(command[1:])[0]
        words, remote = split_arguments(args, tool)
        given = _Given(options, words, tool)
        tcp: Any = self.children["tcp"]
        host = port = ""
        if direct:
            try:
                host, _, port = tcp.call("address").partition("://")[2].rpartition(":")
            except DriverError as error:
                self.logger.warning("the device's address is not known (%s), connecting through the exporter", error)
        if not host:
            host, number = stack.enter_context(PortforwardAdapter(client=tcp))
            port = str(number)
        own = ["-o", f"HostName={host.strip('[]')}", "-o", f"Port={port}", "-o", "HostKeyAlias=dut"]
        if identity := self.identity:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jumpstarter-ssh-"))
            path = os.path.join(folder, "identity")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(identity if identity.endswith("\n") else f"{identity}\n")
            own += ["-o", f"IdentityFile={_quoted(path)}"]
        if (user := self.username) and not given.has("l", "User"):
            own += ["-o", f"User={user}"]
        if not given.has("S", "ControlPath"):
            own += ["-o", _NOT_SHARED]
        end = ["--"] if remote and remote[0].startswith("-") else []
        if tool != "ssh":
            return [tool, *words, *own, *_only_long(options), *end, *remote]
        return [command[0], *words, *own, *command[1:], "dut", *end, *remote]


@dataclass(frozen=True)
class _Given:
    """Options that are there already: ``configured`` are those of ssh, ``words`` those of the tool."""

    configured: list[str]
    words: list[str]
    tool: Tool

    def has(self, letter: str, keyword: str) -> bool:
        """Whether one of them is ``-letter`` or ``-o keyword=...``."""
        # Of the letters that matter here, only -i means the same to scp and sftp.
        own = letter if self.tool == "ssh" or letter == "i" else ""
        return option_set(self.configured, letter, keyword) or option_set(self.words, own, keyword, self.tool)


def _only_long(options: list[str]) -> list[str]:
    """The ``-o`` options among those of ssh: scp and sftp know them too."""
    found = []
    for index, word in enumerate(options):
        if word == "-o":
            found += options[index : index + 2]
        elif word.startswith("-o"):
            found.append(word)
    return found


def _quoted(path: str) -> str:
    """A path as ssh's configuration wants it."""
    text = path.replace("%", "%%")
    return f'"{text}"' if any(char.isspace() for char in text) else text


def _execute(command: list[str], options: SSHCommandRunOptions) -> SSHCommandRunResult:
    if shutil.which(command[0]) is None:
        text = f"{command[0]} is not installed on this machine (not found in PATH); the package is openssh-client"
        if options.capture_output and not options.capture_as_text:
            return SSHCommandRunResult(_NOT_INSTALLED, b"", text.encode())
        return SSHCommandRunResult(_NOT_INSTALLED, "", text)
    done = subprocess.run(
        command, capture_output=options.capture_output, text=options.capture_as_text,
        errors="replace" if options.capture_as_text else None, check=False,
    )  # fmt: skip
    return SSHCommandRunResult.from_completed_process(done)
