# SPDX-License-Identifier: Apache-2.0
"""ssh to a device: who to log in as, the key (which stays here), and the device's host keys."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export, exportstream
from jumpstarter_driver_ssh.agent import KeyAgent
from jumpstarter_driver_ssh.hostkeys import KeyRecord, parse_host_keys, scan_host_keys

__all__ = ["SSHWrapper"]

_PLAIN: Final = "ssh"
_ALIAS: Final = "dut"
"""The device's name in known_hosts lines and for scp and sftp; its address is the tunnel's business."""


@dataclass(kw_only=True)
class SSHWrapper(Driver):
    """ssh through the child ``tcp`` (a `TcpNetwork`) to a device.

    default_username: whom to log in as; by default who the client is. ssh_command: the client's ssh with options.
    ssh_identity, ssh_identity_file: the private key, or the file it is read from when it is used. It signs for clients
    and does not go to them; ``share_identity: true`` gives it away, which clients of 0.9 need.
    known_hosts, known_hosts_file: the device's host keys, and no other is accepted. Without, the keys the device has
    when it is first seen are taken: in each lease anew (trust ``lease``: an image that was flashed brings new ones), or
    once and for all (trust ``exporter``, kept in state_dir).
    connect_timeout: seconds until sshd has to answer.
    """

    driver_type: ClassVar[str] = "network"

    default_username: str = ""
    ssh_command: str = _PLAIN
    ssh_identity: str | None = field(default=None, repr=False)
    ssh_identity_file: str | None = None
    share_identity: bool = False
    known_hosts: str | None = None
    known_hosts_file: str | None = None
    trust: Literal["lease", "exporter"] = "lease"
    state_dir: str | None = None
    connect_timeout: int = 30
    _agent: KeyAgent = field(init=False, default_factory=KeyAgent, repr=False)
    _seen: list[str] = field(init=False, default_factory=list, repr=False)
    _scan: asyncio.Lock = field(init=False, default_factory=asyncio.Lock, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "tcp" not in self.children:
            raise ConfigurationError("ssh: the child tcp is missing: a TcpNetwork that leads to the device's sshd")
        if self.ssh_identity and self.ssh_identity_file:
            raise ConfigurationError("ssh: ssh_identity and ssh_identity_file are both given, one is enough")
        if self.known_hosts and self.known_hosts_file:
            raise ConfigurationError("ssh: known_hosts and known_hosts_file are both given, one is enough")
        if self.trust not in ("lease", "exporter"):
            raise ConfigurationError(f"ssh: trust is {self.trust!r}, must be lease or exporter")
        if self.connect_timeout < 1:
            raise ConfigurationError(f"ssh: connect_timeout is {self.connect_timeout}, must be at least 1 s")
        try:
            words = shlex.split(self.ssh_command)
            if self.known_hosts is not None and not parse_host_keys(self.known_hosts, "known_hosts"):
                raise ValueError("known_hosts: holds no key")
        except ValueError as error:
            raise ConfigurationError(f"ssh: {error}") from None
        if not words:
            raise ConfigurationError("ssh: ssh_command is empty")
        if self.default_username.startswith("-"):
            raise ConfigurationError(f"ssh: default_username {self.default_username!r} begins with a dash")

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_ssh.client.SSHWrapperClient"

    # --- streams ------------------------------------------------------------------------------------------------

    @exportstream
    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Any]:
        """Stream: a connection to the device's sshd."""
        tcp: Any = self.children["tcp"]
        async with tcp.connect() as stream:
            yield stream

    @exportstream
    @asynccontextmanager
    async def agent(self) -> AsyncIterator[Any]:
        """Stream: the ssh agent protocol; the configured key signs, and nothing else can be done with it."""
        identity = await asyncio.to_thread(self._identity)
        if identity is None:
            raise NotImplementedError("this ssh driver has no ssh_identity: authenticate with a key of your own")
        async with self._agent.connect(identity) as stream:
            yield stream

    # --- calls of 0.9 -------------------------------------------------------------------------------------------

    @export(readonly=True)
    def get_default_username(self) -> str:
        """Whom to log in as; "" for the client's own choice."""
        return self.default_username

    @export(readonly=True)
    async def get_ssh_command(self) -> str:
        """The ssh command with options that clients of 0.9 run; it accepts the device's host keys only."""
        if self.ssh_command != _PLAIN:
            return self.ssh_command
        # In single quotes for ssh, which splits the command without a shell; printf makes the line ends. The texts have
        # neither quotes nor percent signs: types and base64.
        lines = "".join(f"{_known_host(key)}\\n" for key in await self.host_keys())
        options = [
            f"HostKeyAlias={_ALIAS}", "StrictHostKeyChecking=yes", "UserKnownHostsFile=/dev/null",
            "GlobalKnownHostsFile=/dev/null", f"KnownHostsCommand=/usr/bin/printf '{lines}'", "LogLevel=ERROR",
        ]  # fmt: skip
        return shlex.join([_PLAIN, *(word for option in options for word in ("-o", option))])

    @export(readonly=True)
    def get_ssh_identity(self) -> str | None:
        """The private key, for clients that cannot use `agent`; only with ``share_identity: true``."""
        if not self.share_identity:
            if self.ssh_identity or self.ssh_identity_file:
                raise PermissionError(
                    "the private key stays on the exporter; clients of Jumpstarter 0.9 need "
                    '"share_identity: true" in the configuration of this ssh driver'
                )
            return None
        return self._identity()

    # --- additive calls -----------------------------------------------------------------------------------------

    @export(readonly=True)
    async def ssh_settings(self) -> dict[str, Any]:
        """What our client needs: command, username, alias, known_hosts lines, agent (whether there is one), timeout."""
        return {
            "command": self.ssh_command,
            "username": self.default_username,
            "alias": _ALIAS,
            "known_hosts": [_known_host(key) for key in await self.host_keys()],
            "agent": bool(self.ssh_identity or self.ssh_identity_file),
            "connect_timeout": self.connect_timeout,
        }

    @export(readonly=True)
    async def host_keys(self) -> list[str]:
        """The host keys that are accepted: "ssh-ed25519 AAAA..."."""
        if self.known_hosts is not None:
            return parse_host_keys(self.known_hosts, "known_hosts")
        if self.known_hosts_file is not None:
            path = Path(self.known_hosts_file).expanduser()
            if keys := parse_host_keys(await asyncio.to_thread(path.read_text), str(path)):
                return keys
            raise ValueError(f"field known_hosts_file: {path} holds no key")
        async with self._scan:
            if self.trust == "exporter":
                record = self._record()
                if not (keys := await asyncio.to_thread(record.load)):
                    keys = await scan_host_keys(*self._address())
                    await asyncio.to_thread(record.save, keys)
                return keys
            if not self._seen:
                self._seen = await scan_host_keys(*self._address())
            return self._seen

    @export
    def forget_host_keys(self) -> None:
        """Take the keys the device has next time, because it was flashed. Keys of the configuration stay."""
        if self.known_hosts is not None or self.known_hosts_file is not None:
            raise ValueError("the host keys are in the exporter's configuration; only there they can be changed")
        self._seen = []
        if self.trust == "exporter":
            self._record().forget()

    def reset(self) -> None:
        """Start of a session: what the one before has seen does not count."""
        super().reset()
        self._seen = []
        self._scan = asyncio.Lock()
        self._agent.allow()

    def close(self) -> None:
        """End of the session: the agent forgets the key."""
        self._agent.stop()
        super().close()

    def _identity(self) -> str | None:
        if self.ssh_identity_file:
            path = Path(self.ssh_identity_file).expanduser()
            try:
                return path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "is no text"
                raise OSError(f"field ssh_identity_file: {path}: {reason}") from None
        return self.ssh_identity or None

    def _address(self) -> tuple[str, int]:
        tcp: Any = self.children["tcp"]
        try:
            return str(tcp.host), int(tcp.port)
        except AttributeError:
            raise ValueError(
                "the child tcp is no TcpNetwork, so its host keys cannot be asked for: set known_hosts"
            ) from None

    def _record(self) -> KeyRecord:
        return KeyRecord(self.state_dir, *self._address())


def _known_host(key: str) -> str:
    """A known_hosts line of the device for "[@marker ]type key"."""
    if key.startswith("@"):
        marker, _, rest = key.partition(" ")
        return f"{marker} {_ALIAS} {rest}"
    return f"{_ALIAS} {key}"
