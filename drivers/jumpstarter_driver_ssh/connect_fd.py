# SPDX-License-Identifier: Apache-2.0
"""The ProxyCommand of ssh: connect to the unix socket argv[1] and hand the connection over (ProxyUseFdpass).

Run as a file of its own, with nothing but the standard library: after it nothing stands between ssh and the socket.
"""

import array
import socket
import sys


def main() -> None:
    """Connect, and pass the descriptor over standard output, which ssh made a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(sys.argv[1])
        except OSError as error:
            sys.exit(f"{sys.argv[1]}: {error.strerror}")
        with socket.socket(fileno=1) as back:
            back.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))])
            back.detach()


if __name__ == "__main__":
    main()
