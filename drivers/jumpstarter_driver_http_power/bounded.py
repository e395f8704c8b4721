# SPDX-License-Identifier: Apache-2.0
"""A bound for a whole HTTP exchange. The timeout of requests starts anew with each byte that a device lets go of."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["BoundedAdapter"]


class BoundedAdapter(HTTPAdapter):
    """An adapter that knows its connections and can break them. expired: whether it had to."""

    def __init__(self) -> None:
        self._opened: list[Any] = []
        self.expired = False
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """As the base class does, with connections that are remembered."""
        super().init_poolmanager(*args, **kwargs)
        opened = self._opened

        class Plain(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self)

        class Secure(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                opened.append(self)

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}

    @contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """Break the connections when the block takes longer."""
        timer = threading.Timer(seconds, self._expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _expire(self) -> None:
        self.expired = True
        for connection in self._opened:
            if connection.sock is not None:
                try:
                    connection.sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it is gone already
