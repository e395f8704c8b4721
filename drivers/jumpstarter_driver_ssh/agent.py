# SPDX-License-Identifier: Apache-2.0
"""A key that signs for clients and never leaves the exporter: OpenSSH's ssh-agent behind a filter.

Protocol: draft-ietf-sshm-ssh-agent. A message is 4 bytes length (big endian), 1 byte type, contents; each request gets
one reply. Clients may list keys and have something signed. Everything else an agent can do (take other keys, load
libraries for smart cards, lock itself) is refused here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream, create_memory_object_stream
from anyio.abc import ObjectStream

if TYPE_CHECKING:
    from jumpstarter.common.process import Process

__all__ = ["KeyAgent"]

_FAILURE: Final = b"\x00\x00\x00\x01\x05"  # SSH_AGENT_FAILURE
_ALLOWED: Final = frozenset({11, 13})  # SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
_LONGEST: Final = 256 << 10
_WAITING: Final = 64
"""Answers that may wait for a client; one that only asks and never listens is made to wait."""
_SECONDS: Final = 10.0


class KeyAgent:
    """One ssh-agent with one private key, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: Process | None = None
        self._folder: str | None = None
        self._over = False

    @asynccontextmanager
    async def connect(self, identity: str) -> AsyncIterator[ObjectStream[bytes]]:
        """A filtered connection to the agent; ``identity``: the private key it shall hold."""
        path = await asyncio.to_thread(self.start, identity)
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_unix_connection(path)
        stream = _Filtered(reader, writer)
        try:
            yield stream
        finally:
            await stream.aclose()

    def start(self, identity: str) -> str:
        """Path of the socket of the running agent. Raises OSError or ValueError; the key is in neither's text."""
        from jumpstarter.common.commands import base_environment
        from jumpstarter.common.process import spawn

        with self._lock:
            if self._over:  # a call that was under way in its thread when the session ended
                raise ConnectionError("the ssh agent was ended with the session")
            if self._process is not None and self._process.running and self._folder is not None:
                return os.path.join(self._folder, "agent")
            self._discard()
            self._folder = tempfile.mkdtemp(prefix="jumpstarter-ssh-")
            path = os.path.join(self._folder, "agent")
            try:
                self._process = spawn(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE, env=base_environment())
                if (stdout := self._process.stdout) is not None:
                    with stdout:
                        if not stdout.readline():  # it says where it listens as soon as it does
                            self._process.stop()
                            raise OSError(f"ssh-agent did not start: {self._process.describe()}")
                _add_key(path, identity)
            except BaseException:
                self._discard()
                raise
            return path

    def allow(self) -> None:
        """A session begins: `start` may be called again."""
        with self._lock:
            self._over = False

    def stop(self) -> None:
        """End the agent; the key is forgotten, until `allow` also for whoever is on the way to `start` it."""
        with self._lock:
            self._over = True
            self._discard()

    def _discard(self) -> None:
        process, self._process = self._process, None
        folder, self._folder = self._folder, None
        if process is not None:
            process.stop(1)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _add_key(path: str, identity: str) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "SSH_AUTH_SOCK": path, "SSH_ASKPASS_REQUIRE": "never"}
    # OpenSSH refuses a key whose last line does not end, as texts in YAML often do.
    text = identity.replace("\r\n", "\n").strip() + "\n"
    try:
        done = subprocess.run(
            ["ssh-add", "-q", "-"], input=text.encode(), env=environment, capture_output=True, timeout=_SECONDS,
            check=False, start_new_session=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"ssh-add did not end within {_SECONDS:g} s") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(
            "ssh identity: ssh-add does not take it (no private key in OpenSSH or PEM format, or one with a "
            f"passphrase): {said[-1] if said else f'exit status {done.returncode}'}"
        )


class _Filtered(ObjectStream[bytes]):
    """The client's end of an agent connection: allowed requests get the agent's answer, others a refusal."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._put, self._answers = create_memory_object_stream[bytes](_WAITING)
        self._request = bytearray()

    async def send(self, item: bytes) -> None:
        """Take a piece of a request; answer those that are complete."""
        self._request += item
        while len(self._request) >= 5:
            length = int.from_bytes(self._request[:4], "big")
            if not 0 < length <= _LONGEST:
                self._put.close()
                raise BrokenResourceError
            if len(self._request) < 4 + length:
                return
            message = bytes(self._request[: 4 + length])
            del self._request[: 4 + length]
            answer = await self._ask(message) if message[4] in _ALLOWED else _FAILURE
            try:
                await self._put.send(answer)
            except ClosedResourceError:  # the connection was closed meanwhile
                raise BrokenResourceError from None

    async def _ask(self, message: bytes) -> bytes:
        try:
            async with asyncio.timeout(_SECONDS):
                self._writer.write(message)
                await self._writer.drain()
                head = await self._reader.readexactly(4)
                return head + await self._reader.readexactly(int.from_bytes(head, "big"))
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self._put.close()  # whoever waits for the answer sees the end
            raise BrokenResourceError from None

    async def receive(self) -> bytes:
        """The next answer."""
        try:
            return await self._answers.receive()
        except ClosedResourceError:
            raise EndOfStream from None

    async def send_eof(self) -> None:
        """The client has no more requests."""
        self._put.close()

    async def aclose(self) -> None:
        """Close the connection to the agent."""
        self._put.close()
        self._answers.close()
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
