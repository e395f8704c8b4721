# SPDX-License-Identifier: Apache-2.0
"""The one place where SNMP is spoken: an event loop in a thread of its own, shared by all drivers of the process.

pysnmp is asyncio only, keeps keys and discovered engines in an engine object, and blocks its loop while it loads its
tables (0.1 s). So it gets a loop that nobody else waits for, and one engine per set of credentials: two devices may
know the same user name with different keys, which one engine would mix up. The thread ends with its last user.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from jumpstarter_driver_snmp.common import AuthProtocol, PrivProtocol, SNMPError, SNMPTimeout

if TYPE_CHECKING:
    from jumpstarter_driver_snmp.access import Credentials

__all__ = ["Engines", "shared_engines"]

T = TypeVar("T")

_AUTH = {
    AuthProtocol.NONE: "usmNoAuthProtocol",
    AuthProtocol.MD5: "usmHMACMD5AuthProtocol",
    AuthProtocol.SHA: "usmHMACSHAAuthProtocol",
    AuthProtocol.SHA224: "usmHMAC128SHA224AuthProtocol",
    AuthProtocol.SHA256: "usmHMAC192SHA256AuthProtocol",
    AuthProtocol.SHA384: "usmHMAC256SHA384AuthProtocol",
    AuthProtocol.SHA512: "usmHMAC384SHA512AuthProtocol",
}
_PRIV = {
    PrivProtocol.NONE: "usmNoPrivProtocol",
    PrivProtocol.DES: "usmDESPrivProtocol",
    PrivProtocol.TRIPLE_DES: "usm3DESEDEPrivProtocol",
    PrivProtocol.AES: "usmAesCfb128Protocol",
    PrivProtocol.AES192: "usmAesBlumenthalCfb192Protocol",
    PrivProtocol.AES256: "usmAesBlumenthalCfb256Protocol",
    PrivProtocol.AES192_C: "usmAesCfb192Protocol",
    PrivProtocol.AES256_C: "usmAesCfb256Protocol",
}

#: Error indications of pysnmp that mean "these credentials are not the agent's".
_CREDENTIALS = {
    "unknownUserName": "the agent does not know this user",
    "wrongDigest": "the agent refuses the authentication key or protocol (auth_key, auth_protocol)",
    "unsupportedSecurityLevel": "the agent does not grant this user this security level (auth_protocol, priv_protocol)",
    "decryptionError": "the agent cannot decrypt: the privacy key or protocol is wrong (priv_key, priv_protocol)",
    "authorizationError": "the agent does not let this user do that",
}


_CLOSED = "the SNMP engine is not running: the driver was closed"


class Engines:
    """A loop in a thread, and the engines that live on it. `acquire` and `release` count its users."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._engines: dict[Credentials, Any] = {}

    def acquire(self) -> None:
        """Start the thread when this is the first user."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                loop = asyncio.new_event_loop()
                self._loop = loop
                self._thread = threading.Thread(target=self._run, args=(loop,), name="snmp", daemon=True)
                self._thread.start()

    def release(self) -> None:
        """End the thread when this was the last user: sockets closed, tasks ended."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is not None and thread is not None:
                loop.call_soon_threadsafe(loop.stop)
                thread.join()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(self._shut())
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _shut(self) -> None:
        for engine in self._engines.values():
            engine.close_dispatcher()
        self._engines.clear()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it; called from any other thread."""
        with self._lock:  # work that is handed in after `release` has ended the loop would never be answered
            loop = self._loop
            if loop is None:
                work.close()
                raise RuntimeError(_CLOSED)
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except CancelledError:
            raise RuntimeError(_CLOSED) from None

    async def request(
        self,
        credentials: Credentials,
        address: tuple[str, int],
        timing: tuple[float, int],
        binding: tuple[str, int | None],
    ) -> Any:
        """One GET, or one SET of an INTEGER; returns the value the agent answers with, None for "no such object".

        address: name or number of the host, and its port. timing: seconds per try, and tries after the first.
        binding: the OID, and the value to set or None. Raises `SNMPTimeout`, `SNMPError`, `ConnectionError`.
        """
        import pysnmp.hlapi.v3arch.asyncio as hlapi
        from pysnmp.error import PySnmpError

        oid, value = binding
        where = f"{address[0]}:{address[1]}"
        target = await self._target(hlapi, address, timing)
        if credentials not in self._engines:
            self._engines[credentials] = hlapi.SnmpEngine()
        engine = self._engines[credentials]
        identity = hlapi.ObjectIdentity(oid)
        command = hlapi.get_cmd if value is None else hlapi.set_cmd
        given = hlapi.ObjectType(identity) if value is None else hlapi.ObjectType(identity, hlapi.Integer32(value))
        context = hlapi.ContextData(contextName=credentials.context.encode())
        try:
            indication, status, _, bindings = await command(
                engine, _auth_data(hlapi, credentials), target, context, given, lookupMib=False
            )
        except (PySnmpError, OSError) as error:
            raise ConnectionError(f"SNMP agent {where}: {error}") from error
        if indication:
            raise _indicated(indication, where, timing)
        if status:
            name = status.prettyPrint()
            if name == "noSuchName" and value is None:  # how version 1 says it
                return None
            raise SNMPError(f"SNMP agent {where}: {name} at {oid}{_hint(name)}")
        answer = bindings[0][1]
        if type(answer).__name__ in ("NoSuchObject", "NoSuchInstance", "EndOfMibView"):
            return None
        return answer

    async def _target(self, hlapi: Any, address: tuple[str, int], timing: tuple[float, int]) -> Any:
        host, port = address
        timeout, retries = timing
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        except OSError as error:  # TimeoutError is one
            reason = error.strerror or "no answer from the name service"
            raise ConnectionError(f"SNMP agent {host}: cannot find its address: {reason}") from None
        # A device that has both kinds of addresses is asked over IPv4, as it always was.
        found.sort(key=lambda one: one[0] != socket.AF_INET)
        family, _, _, _, where = found[0]
        kind = hlapi.Udp6TransportTarget if family == socket.AF_INET6 else hlapi.UdpTransportTarget
        return await kind.create((where[0], where[1]), timeout=timeout, retries=retries)


def _auth_data(hlapi: Any, credentials: Credentials) -> Any:
    if credentials.version != "3":
        return hlapi.CommunityData(credentials.community, mpModel=0 if credentials.version == "1" else 1)
    return hlapi.UsmUserData(
        credentials.user,
        authKey=credentials.auth_key,
        privKey=credentials.priv_key,
        authProtocol=getattr(hlapi, _AUTH[credentials.auth_protocol]),
        privProtocol=getattr(hlapi, _PRIV[credentials.priv_protocol]),
    )


def _indicated(indication: Any, where: str, timing: tuple[float, int]) -> SNMPError:
    name = type(indication).__name__
    name = name[:1].lower() + name[1:]
    if name == "requestTimedOut":
        return SNMPTimeout(
            f"SNMP agent {where}: no answer in {timing[0] * (timing[1] + 1):g} s ({timing[1] + 1} tries); it is off or "
            "unreachable, or ignores this community, user or sender address"
        )
    return SNMPError(f"SNMP agent {where}: {_CREDENTIALS.get(name, str(indication))}")


def _hint(status: str) -> str:
    if status in ("notWritable", "readOnly", "noAccess", "authorizationError"):
        return (
            "; these credentials may only read, or there is no such outlet (plug), or this column cannot be set (oid)"
        )
    if status in ("wrongValue", "badValue", "wrongType"):
        return "; the device wants other numbers (on_value, off_value) or another column (oid)"
    if status in ("noSuchName", "noCreation", "inconsistentName"):
        return "; the device has no such outlet (plug) or column (oid)"
    return ""


_ENGINES = Engines()


def shared_engines() -> Engines:
    """The engines of this process."""
    return _ENGINES
