# SPDX-License-Identifier: Apache-2.0
"""Adapters for network drivers: local ports and sockets, pexpect, fabric, noVNC and D-Bus on top of a driver's stream.

They are those of `jumpstarter.client.adapters`, with the client as first argument:

    with TcpPortforwardAdapter(client.web) as (host, port):
        ...
"""

from jumpstarter_driver_network.adapters.dbus import DbusAdapter
from jumpstarter_driver_network.adapters.fabric import FabricAdapter
from jumpstarter_driver_network.adapters.novnc import NovncAdapter
from jumpstarter_driver_network.adapters.pexpect import PexpectAdapter
from jumpstarter_driver_network.adapters.portforward import TcpPortforwardAdapter, UnixPortforwardAdapter

__all__ = [
    "DbusAdapter",
    "FabricAdapter",
    "NovncAdapter",
    "PexpectAdapter",
    "TcpPortforwardAdapter",
    "UnixPortforwardAdapter",
]
