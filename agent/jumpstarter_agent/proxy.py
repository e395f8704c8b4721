# SPDX-License-Identifier: Apache-2.0
"""ssh ProxyCommand: copies stdin and stdout to a driver stream of a leased device, through the agent.

Standard library only and no package imports, so that it starts in the time Python needs: run as
``python -m jumpstarter_agent.proxy`` or as a file. What goes wrong is one line on stderr and exit status 255.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import sys

__all__ = ["main"]

_CHUNK = 256 * 1024
_FAILED = 255
_STDIN = 0


def main(argv: list[str] | None = None) -> int:
    """Run the proxy; the exit status ssh sees."""
    parser = argparse.ArgumentParser(prog="jumpstarter_agent.proxy", description=__doc__)
    parser.add_argument("--socket", required=True, help="the agent's unix socket")
    parser.add_argument("--host", required=True, help="inventory name of the leased device")
    parser.add_argument("--driver", default="ssh", help="path of the driver (default: ssh)")
    parser.add_argument("--method", default="connect", help="its stream method (default: connect)")
    options = parser.parse_args(argv)
    try:
        return _run(options)
    except OSError as error:
        return _fail(f"{options.host}: {options.driver}: {options.socket}: {error.strerror or error}")


def _run(options: argparse.Namespace) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as agent:
        agent.connect(options.socket)
        request = {
            "v": 1,
            "op": "stream",
            "host": {"name": options.host},
            "args": {"driver": options.driver, "method": options.method},
        }
        body = json.dumps(request).encode()
        agent.sendall(len(body).to_bytes(4, "big") + body)
        refusal = _await_ready(agent)
        if refusal:
            return _fail(refusal)
        _pump(agent)
    return 0


def _await_ready(agent: socket.socket) -> str:
    """ "" once the stream is open, otherwise why it is not."""
    while True:
        header = _read(agent, 4)
        body = _read(agent, int.from_bytes(header, "big")) if len(header) == 4 else b""
        if not body:
            return "the agent closed the connection before the stream was open"
        frame = json.loads(body)
        if frame.get("type") == "ready":
            return ""
        if frame.get("type") == "error":
            return str(frame["error"]["message"])


def _read(agent: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = agent.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def _pump(agent: socket.socket) -> None:
    """Copy both ways until the device has closed its direction; the end of stdin is passed on as half-close."""
    with selectors.DefaultSelector() as selector:
        try:
            selector.register(_STDIN, selectors.EVENT_READ)
        except PermissionError as error:
            # epoll takes no regular files.
            raise OSError(error.errno, "stdin is a regular file, not a pipe, socket or terminal") from error
        selector.register(agent, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is agent:
                    data = agent.recv(_CHUNK)
                    if not data:
                        return
                    _write(data)
                elif not _forward(agent):
                    selector.unregister(_STDIN)


def _forward(agent: socket.socket) -> bool:
    """Pass on what stdin has; False at its end."""
    data = os.read(_STDIN, _CHUNK)
    if data:
        agent.sendall(data)
        return True
    agent.shutdown(socket.SHUT_WR)
    return False


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return _FAILED


if __name__ == "__main__":
    raise SystemExit(main())
