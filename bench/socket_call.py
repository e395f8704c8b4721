# SPDX-License-Identifier: Apache-2.0
"""The floor of a command line: one request over a unix socket, answered. Run with ``python3 -I -S``."""

import socket
import sys

with socket.socket(socket.AF_UNIX) as peer:
    peer.connect(sys.argv[1])
    peer.sendall(b'{"op":"power","state":"on"}\n')
    if not peer.recv(100):
        raise SystemExit(1)
