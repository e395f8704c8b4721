# SPDX-License-Identifier: Apache-2.0
"""Client of network drivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter.client import DriverClient
from jumpstarter.common.exceptions import DriverError

if TYPE_CHECKING:
    import click

__all__ = ["NetworkClient"]


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
                    raise click.ClickException("the exporter is too old to tell the address") from error
                raise click.ClickException(str(error)) from error
            host, _, port = url.partition("://")[2].rpartition(":")
            if part is not None and not host:
                raise click.ClickException(f"{url} has no host and port")
            click.echo({"host": host.strip("[]"), "port": port}.get(part or "", url))

        return network


def _wait_for_interrupt() -> None:
    """Return never; Ctrl-C raises KeyboardInterrupt, which ends the forward and then the command."""
    import signal

    while True:
        signal.pause()
