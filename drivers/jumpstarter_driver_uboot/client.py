# SPDX-License-Identifier: Apache-2.0
"""Client of a board's U-Boot command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jumpstarter_driver_composite.client import CompositeClient
from jumpstarter_driver_uboot.common import (
    DEFAULT_NETMASK,
    DhcpInfo,
    check_command,
    check_name,
    parse_dhcp,
    parse_printenv,
    quotings,
)
from jumpstarter_driver_uboot.shells import ExporterShell, PexpectShell, Shell

if TYPE_CHECKING:
    import click

__all__ = ["DhcpInfo", "UbootConsoleClient"]

_DHCP_ATTEMPTS = 3
#: Seconds that one of the ``retries`` of `reboot_to_console` stands for.
_RETRY_SECONDS = 0.1


@dataclass(kw_only=True)
class UbootConsoleClient(CompositeClient):
    """U-Boot of a board; children ``power`` and ``serial``.

    The conversation runs on the exporter where that can do it, and over the ``serial`` stream with exporters that only
    know the prompt.
    """

    _shell: Shell | None = field(init=False, default=None, repr=False)

    @property
    def prompt(self) -> str:
        """What the command line begins with."""
        return str(self.call("get_prompt"))

    @contextmanager
    def reboot_to_console(self, *, debug: bool = False, retries: int = 100) -> Iterator[None]:
        """Power-cycle the board and stop it at U-Boot's prompt; commands can be run while the context lasts.

        debug: show the console on stdout. retries: how often, every 0.1 s, to try to stop the boot.

        Raises RuntimeError when the prompt does not come.
        """
        if retries < 1:
            raise RuntimeError(f"Failed to get U-Boot prompt: retries is {retries}")
        with self._open(debug) as shell:
            shell.reboot(retries * _RETRY_SECONDS)
            self._shell = shell
            try:
                yield
            finally:
                self._shell = None

    def run_command(self, cmd: str, timeout: float = 60) -> bytes:
        """Run a command and return its output.

        Raises RuntimeError outside of `reboot_to_console`, TimeoutError when it does not end.
        """
        _, lines = self._run(cmd, timeout)
        return "\r\n".join(lines).encode()

    def run_command_checked(self, cmd: str, timeout: float = 60, check: bool = True, tries: int = 1) -> list[str]:
        """Run a command, up to ``tries`` times until it succeeds, and return its output lines.

        Raises RuntimeError with exit status and output when it fails (unless check is false).
        """
        if tries < 1:
            raise ValueError(f"tries: {tries} is not above zero")
        for _ in range(tries):
            rc, lines = self._run(cmd, timeout)
            if rc == 0:
                break
        if rc != 0 and check:
            how = "left U-Boot" if rc is None else f"failed with exit status {rc}"
            raise RuntimeError(f"U-Boot command {cmd!r} {how}: {' / '.join(lines) or 'no output'}")
        return lines

    def setup_dhcp(self, timeout: float = 60) -> DhcpInfo:
        """Get an address for the board and leave its other settings as they were.

        Raises RuntimeError when there is no answer, ValueError when address or gateway are missing from it.
        """
        autoload = self.get_env("autoload")
        self.set_env("autoload", "no")  # an address is asked for, not a file
        try:
            lines = self.run_command_checked("dhcp", timeout=timeout, tries=_DHCP_ATTEMPTS)
        finally:
            self.set_env("autoload", autoload)
        address = parse_dhcp(lines) or self.get_env("ipaddr")
        gateway = self.get_env("gatewayip")
        netmask = self.get_env("netmask") or DEFAULT_NETMASK
        if not address or not gateway:
            missing = "address" if not address else "gateway"
            raise ValueError(f"the DHCP server gave no {missing}: {' / '.join(lines)}")
        return DhcpInfo(ip_address=address, gateway=gateway, netmask=netmask)

    def get_env(self, key: str, timeout: float = 5) -> str | None:
        """The value of a variable, None when it is not defined. Raises TimeoutError when U-Boot does not answer."""
        rc, lines = self._run(f"printenv {check_name(key)}", timeout)
        return parse_printenv(key, rc, lines)

    def set_env(self, key: str, value: str | None, timeout: float = 5) -> None:
        """Set a variable, or delete it with None. Raises RuntimeError when U-Boot refuses or changes it."""
        words = [f" {word}" for word in quotings(value)] if value else [""]
        for word in words:
            self.run_command_checked(f"setenv {check_name(key)}{word}", timeout=timeout)
            present = self.get_env(key, timeout)
            if present == (value or None):
                return
        raise RuntimeError(f"setenv {key}: it is {present!r} now, not {value!r}")

    def set_env_dict(self, env: Mapping[str, str | None]) -> None:
        """Set (or with None, delete) several variables."""
        for key, value in env.items():
            self.set_env(key, value)

    def interrupt(self, timeout: float = 30.0) -> dict[str, Any]:
        """Come to the prompt without a power cycle; see `UbootConsole.interrupt`. Needs an exporter that can do it."""
        result: dict[str, Any] = self.call("interrupt", timeout)
        return result

    def version(self) -> str:
        """U-Boot's version line. Needs an exporter that can ask for it."""
        return str(self.call("version"))

    def _run(self, cmd: str, timeout: float) -> tuple[int | None, list[str]]:
        if self._shell is None:
            raise RuntimeError("not at U-Boot's prompt: use this inside `with client.reboot_to_console():`")
        return self._shell.run(check_command(cmd), timeout)

    @contextmanager
    def _open(self, debug: bool) -> Iterator[Shell]:
        if self.has_method("reboot_to_prompt"):
            with ExporterShell.open(self, debug) as shell:
                yield shell
        else:
            with PexpectShell.open(self.children["power"], self.children["serial"], self.prompt, debug) as other:
                yield other

    def cli(self) -> click.Group:
        """The children's commands, and ``run``, ``version``, ``interrupt``, ``env``."""
        import sys

        import click

        group = super().cli()

        @group.command()
        @click.argument("cmd")
        @click.option("--timeout", type=float, default=60.0, show_default=True, help="Seconds it may take.")
        def run(cmd: str, timeout: float) -> None:
            """Run a command at the prompt; ends with its exit status."""
            result = self.call("run", cmd, timeout)
            for line in result["lines"]:
                click.echo(line)
            sys.exit(int(result["rc"] or 0))

        @group.command()
        def version() -> None:
            """Show U-Boot's version."""
            click.echo(self.version())

        @group.command()
        @click.option("--timeout", type=float, default=30.0, show_default=True, help="Seconds it may take.")
        def interrupt(timeout: float) -> None:
            """Stop the boot at the prompt."""
            click.echo(self.interrupt(timeout)["version"] or "at the prompt")

        @group.command()
        @click.argument("name")
        @click.argument("value", required=False)
        def env(name: str, value: str | None) -> None:
            """Show a variable, or set it to VALUE."""
            if value is not None:
                self.call("env_set", name, value)
                return
            found = self.call("env_get", name)
            if found is None:
                raise click.ClickException(f"{name} is not defined")
            click.echo(found)

        return group
