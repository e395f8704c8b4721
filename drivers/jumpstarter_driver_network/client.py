# SPDX-License-Identifier: Apache-2.0
"""Client of network drivers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jumpstarter.client import DriverClient
from jumpstarter.common.exceptions import DriverError

if TYPE_CHECKING:
    from typing import Self

    import click

__all__ = ["DbusNetworkClient", "NetworkClient"]


@dataclass(kw_only=True)
class NetworkClient(DriverClient):
    """Client of `NetworkInterface`: streams, and the address where the exporter reaches the service.

    To use the service from here see `jumpstarter_driver_network.adapters`.
    """

    def address(self) -> str:
        """Where the exporter reaches the service: "tcp://192.0.2.1:22".

        Raises `DriverError` when the exporter does not tell, by configuration or because it is too old.
        """
        return str(self.call("address"))

    def cli(self) -> click.Group:
        """Commands: forward-tcp, forward-unix, address."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def network() -> None:
            """Reach a network service next to the exporter."""

        @network.command("forward-tcp")
        @click.option("--address", default="localhost", show_default=True, help="Local address to listen on.")
        @click.argument("port", type=click.IntRange(0, 65535))
        def forward_tcp(address: str, port: int) -> None:
            """Listen on local TCP PORT (0: any) and pass connections on, until interrupted."""
            from jumpstarter_driver_network.adapters import TcpPortforwardAdapter

            with TcpPortforwardAdapter(self, local_host=address, local_port=port) as (host, bound):
                click.echo(f"{host}:{bound}")
                _wait_for_interrupt()

        @network.command("forward-unix")
        @click.argument("path", type=click.Path(), required=False)
        def forward_unix(path: str | None) -> None:
            """Listen on a unix socket (PATH, or a temporary one) and pass connections on, until interrupted."""
            from jumpstarter_driver_network.adapters import UnixPortforwardAdapter

            with UnixPortforwardAdapter(self, path=path) as bound:
                click.echo(bound)
                _wait_for_interrupt()

        @network.command("address")
        @click.option("--host", "part", flag_value="host", help="Print the host only.")
        @click.option("--port", "part", flag_value="port", help="Print the port only.")
        def address_command(part: str | None) -> None:
            """Print where the exporter reaches the service."""
            try:
                url = self.address()
            except DriverError as error:
                if error.code in ("NOT_FOUND", "UNIMPLEMENTED"):
                    raise click.ClickException(
                        "this service has no address to tell, or the exporter is older than 0.7.1"
                    ) from error
                raise click.ClickException(str(error)) from error
            if part is None:
                click.echo(url)
                return
            parts = urlsplit(url)
            # Not parts.port: the ports of a virtual machine's sockets (vsock) have 32 bits.
            _, digits, port = parts.netloc.rpartition("]" if parts.netloc.endswith("]") else ":")
            port = port if digits and port.isdecimal() else {"ws": "80", "wss": "443"}.get(parts.scheme, "")
            if not parts.hostname or not port:
                raise click.ClickException(f"{url} has no host and port")
            click.echo({"host": parts.hostname, "port": port}[part])

        return network


@dataclass(kw_only=True)
class DbusNetworkClient(NetworkClient):
    """Client of a message bus of the exporter.

    As a context manager it makes the bus this process's own: programs and libraries that use the system (or session)
    bus reach the exporter's while the ``with`` block runs.

        with client.bus:
            subprocess.run(["busctl", "list"])
    """

    _swapped: list[ExitStack] = field(init=False, default_factory=list, repr=False)

    @property
    def kind(self) -> str:
        """ "system" or "session"."""
        return self.labels["jumpstarter.dev/dbusnetwork/kind"]

    def __enter__(self) -> Self:
        from jumpstarter_driver_network.adapters import DbusAdapter

        with ExitStack() as stack:
            stack.enter_context(DbusAdapter(client=self))
            self._swapped.append(stack.pop_all())
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._swapped.pop().close()

    def cli(self) -> click.Group:
        """The commands of a network, and ``run COMMAND...``."""
        import click

        group = super().cli()

        @group.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
        @click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
        def run(command: tuple[str, ...]) -> int:
            """Run COMMAND with the exporter's bus in place of its own, e.g. run busctl list."""
            import subprocess

            with self:
                try:
                    return subprocess.run(command, check=False).returncode
                except OSError as error:
                    raise click.ClickException(f"{command[0]}: {(error.strerror or str(error)).lower()}") from error

        return group


def _wait_for_interrupt() -> None:
    """Return never; Ctrl-C raises KeyboardInterrupt, which ends the forward and then the command."""
    import signal

    while True:
        signal.pause()
