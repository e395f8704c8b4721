# SPDX-License-Identifier: Apache-2.0
"""Protects the throughput of a forward in both directions at once, as iperf3 sees it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

from jumpstarter.common.utils import serve
from jumpstarter_driver_network.adapters import TcpPortforwardAdapter
from jumpstarter_driver_network.driver import TcpNetwork

#: MB/s in each direction, far below what it is (hundreds) and far above what a stream that collapsed gives.
LEAST = 20e6


def test_iperf3_both_ways_at_once_through_a_forward() -> None:
    program = shutil.which("iperf3")
    assert program, "iperf3 is needed for this test (apt install iperf3)"
    argv = [program, "--server", "--one-off", "--bind", "127.0.0.1", "--forceflush", "--port"]
    server, port = _start_server(argv)
    with server:
        try:
            with (
                serve(TcpNetwork(host="127.0.0.1", port=port)) as client,
                TcpPortforwardAdapter(client) as (host, local),
            ):
                done = subprocess.run(
                    [program, "--client", host, "--port", str(local), "--bidir", "--time", "1", "--json"],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
            report = json.loads(done.stdout)
            assert "error" not in report, report["error"]
            sent, back = report["end"]["sum_received"], report["end"]["sum_received_bidir_reverse"]
            assert sent["bits_per_second"] / 8 > LEAST and back["bits_per_second"] / 8 > LEAST, (sent, back)
        finally:
            server.kill()


def _start_server(argv: list[str]) -> tuple[subprocess.Popen[str], int]:
    """iperf3 cannot say which port it took: give it one that is free, and another when somebody was faster."""
    import socket

    for _ in range(10):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        server = subprocess.Popen([*argv, str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert server.stdout is not None
        for line in server.stdout:
            if re.search(rf"listening on {port}\b", line):
                return server, port
        server.wait(10)
    raise AssertionError("iperf3 found no free port ten times")
