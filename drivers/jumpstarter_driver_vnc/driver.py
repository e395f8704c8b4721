# SPDX-License-Identifier: Apache-2.0
"""A VNC server next to the exporter."""

from __future__ import annotations

from dataclasses import dataclass

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_composite.driver import Composite

__all__ = ["Vnc"]


@dataclass(kw_only=True)
class Vnc(Composite):
    """A device's screen, keyboard and mouse, through a VNC server.

    children: `tcp` is the network driver that leads to the server (TcpNetwork, UnixNetwork, ...). default_encrypt: what
    `session` of a 0.9 client asks noVNC's web site for when its user does not say; ours needs no web site.
    """

    default_encrypt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if "tcp" not in self.children:
            raise ConfigurationError('VNC: needs a child "tcp", the network driver that leads to the VNC server')

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_vnc.client.VNClient"

    @export(readonly=True)
    async def get_default_encrypt(self) -> bool:
        """The configuration's default_encrypt."""
        return self.default_encrypt
