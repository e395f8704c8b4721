# SPDX-License-Identifier: Apache-2.0
"""Adapters for network drivers: local ports and sockets, pexpect and fabric on top of a driver's stream.

They are those of `jumpstarter.client.adapters`, with the client as first argument:

    with TcpPortforwardAdapter(client.web) as (host, port):
        ...
"""

from jumpstarter_driver_network.adapters.fabric import FabricAdapter
from jumpstarter_driver_network.adapters.pexpect import PexpectAdapter
from jumpstarter_driver_network.adapters.portforward import TcpPortforwardAdapter, UnixPortforwardAdapter

__all__ = ["FabricAdapter", "PexpectAdapter", "TcpPortforwardAdapter", "UnixPortforwardAdapter"]
