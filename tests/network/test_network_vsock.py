# SPDX-License-Identifier: Apache-2.0
"""Protects the configuration of vsock, and what it says where the kernel has none; see test_guest_network_video.py."""

from __future__ import annotations

import socket

import pytest

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter.common.utils import serve
from jumpstarter_driver_network.driver import VsockNetwork


@pytest.mark.parametrize(("cid", "port"), [(-1, 1), (0xFFFFFFFF, 1), (3, -1), (3, 1 << 32)])
def test_wrong_numbers_show_when_the_exporter_starts(cid: int, port: int) -> None:
    with pytest.raises(ConfigurationError, match="vsock network: (cid|port) is"):
        VsockNetwork(cid=cid, port=port)


def test_a_kernel_without_vsock_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without(family: int = -1, *args: object, **kwargs: object) -> socket.socket:
        if family == socket.AF_VSOCK:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *args, **kwargs)  # type: ignore[arg-type]

    with serve(VsockNetwork(cid=3, port=22)) as client:
        monkeypatch.setattr(socket, "socket", without)
        with pytest.raises(DriverError, match="vsock 3:22: .*not supported.*no vsock"), client.stream():
            pass
