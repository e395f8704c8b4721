# SPDX-License-Identifier: Apache-2.0
"""Byte streams over WebSockets."""

from jumpstarter_driver_network.streams.websocket import WebsocketClientStream, WebsocketServerStream

__all__ = ["WebsocketClientStream", "WebsocketServerStream"]
