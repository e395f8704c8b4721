# SPDX-License-Identifier: Apache-2.0
"""The exporter process behind `jmp run --tls-grpc-listener`: one device, served directly, without a controller.

There is no lease to wait for, so the exporter makes one itself, called "standalone": beforeLease hook, ready,
afterLease hook. It lasts until the exporter is stopped or a client ends the session; in the second case the device is
put back to rest and the next one begins. All of this is one task (`_Standalone.run`), which alone decides what happens
next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.common.runtime import runtime_directory
from jumpstarter.config import env
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter_cli.notify import notify
from jumpstarter_cli.secrets import read_private, read_secret

if TYPE_CHECKING:
    from jumpstarter.exporter.hooks import HookOutcome, Moment
    from jumpstarter.exporter.server import TcpListener
    from jumpstarter.exporter.session import Session

__all__ = ["ListenerFiles", "serve_direct"]

logger = logging.getLogger("jumpstarter.exporter")

LEASE_NAME = "standalone"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class ListenerFiles:
    """What the command line said about the port: files, not yet read."""

    host: str
    port: int
    insecure: bool
    cert: str | None
    key: str | None
    client_ca: str | None
    passphrase: str | None
    passphrase_file: str | None

    def read(self) -> TcpListener:
        """The listener. Raises `ConfigurationError` naming the file that cannot be used."""
        from jumpstarter.exporter.server import TcpListener

        if self.cert and self.key:
            _check_pair(self.cert, self.key)
        return TcpListener(
            host=self.host,
            port=self.port,
            certificate=_read(self.cert, "TLS certificate"),
            key=read_private(self.key, "TLS key") if self.key else None,
            client_ca=_read(self.client_ca, "TLS client CA"),
            insecure=self.insecure,
            passphrase=self._passphrase(),
        )

    def _passphrase(self) -> str | None:
        # Taken out of the environment in any case: drivers start programs, and those have no business with it.
        from_env = os.environ.pop(env.JMP_GRPC_PASSPHRASE, None)
        file = self.passphrase_file or os.environ.get(env.JMP_GRPC_PASSPHRASE_FILE)
        if self.passphrase:
            return self.passphrase
        if self.passphrase_file or (file and not from_env):
            return read_secret(str(file), "passphrase file")
        return from_env or None


def _check_pair(cert: str, key: str) -> None:
    """gRPC only logs what is wrong with a certificate; OpenSSL says it."""
    import ssl

    read_private(key, "TLS key")
    try:
        # The callback keeps OpenSSL from asking on the terminal for the password of an encrypted key.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = "they do not belong together" if mismatch else f"no usable PEM ({error.reason or error})"
        raise ConfigurationError(f"TLS certificate {cert} and key {key}: {why}") from None
    except OSError as error:
        raise ConfigurationError(f"TLS certificate {cert} cannot be read: {error.strerror or error}") from None


def _read(path: str | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from None


def serve_direct(alias: str | None, path: str | None, files: ListenerFiles, exit_on_lease_end: bool) -> int:
    """Serve until a signal or the end of the only lease; returns the exit code."""
    config = ExporterConfigV1Alpha1.load(alias) if alias is not None else ExporterConfigV1Alpha1.load_path(str(path))
    listener = files.read()
    if files.insecure and files.host not in ("127.0.0.1", "::1", "localhost"):
        secret = ", and the passphrase with it" if listener.passphrase else ""
        logger.warning("without TLS everything on port %d travels in clear text%s", files.port, secret)
    standalone = _Standalone(config, exit_on_lease_end or config.exit_on_lease_end)
    return asyncio.run(_main(standalone, listener))


async def _main(standalone: _Standalone, listener: TcpListener) -> int:
    task = asyncio.ensure_future(standalone.run(listener))
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if standalone.stop.is_set():
            logger.warning("%s again: stopping without waiting for hooks", number.name)
            task.cancel()
        else:
            logger.info("%s: stopping", number.name)
            standalone.stop.set()

    for number in _SIGNALS:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        return _EXIT_INTERRUPTED


class _LeaseContext:
    """What the session's EndSession sets."""

    def __init__(self) -> None:
        self.end_session_requested = asyncio.Event()


class _Standalone:
    """Owner of the one session. `stop` asks it to end."""

    def __init__(self, config: ExporterConfigV1Alpha1, exit_on_lease_end: bool) -> None:
        self.config = config
        self.exit_on_lease_end = exit_on_lease_end
        self.stop = asyncio.Event()
        self._socket = ""

    async def run(self, listener: TcpListener) -> int:
        """Serve on `listener`; returns the exit code."""
        from jumpstarter.exporter.server import UnixListener, serve_session
        from jumpstarter.exporter.session import Session

        config = self.config
        root = await asyncio.to_thread(config.instantiate)
        session = Session.from_config(config, root)
        with runtime_directory() as directory, session:
            self._socket = str(directory / "hook.sock")
            # Hooks come by the socket: there the operating system says who they are, no passphrase is needed.
            async with serve_session(session, UnixListener(self._socket), listener) as addresses:
                tls = "without TLS" if listener.insecure else "TLS"
                logger.info("exporter %s serves %s (%s)", config.name, addresses[-1], tls)
                notify(f"READY=1\nSTATUS=serving {addresses[-1]}")
                return await self._leases(session)

    async def _leases(self, session: Session) -> int:
        while True:
            lease = _LeaseContext()
            session.lease_context = lease
            ready, code = await self._before(session)
            if not ready:
                return code
            await _first_of(self.stop, lease.end_session_requested)
            session.lease_context = None
            code = await self._after(session)
            if code or self.stop.is_set() or self.exit_on_lease_end:
                return code
            await session.recycle()

    async def _before(self, session: Session) -> tuple[bool, int]:
        """Run the beforeLease hook. Returns whether to go on, else the exit code."""
        from jumpstarter.exporter.hooks import HookAction

        hook = self.config.hooks.before_lease
        if hook is not None:
            session.update_status(ExporterStatus.BEFORE_LEASE_HOOK, "Running beforeLease hook")
        outcome = await self._hook(session, "beforeLease")
        if outcome.action in (HookAction.END_LEASE, HookAction.EXIT):
            # Nobody is there to give the lease back to: a device that cannot be prepared is not served.
            session.update_status(ExporterStatus.BEFORE_LEASE_HOOK_FAILED, outcome.message)
            return False, 1
        if outcome.motd:
            session.motd = "\n".join(part for part in ((self.config.motd or "").rstrip("\n"), outcome.motd) if part)
        session.update_status(ExporterStatus.LEASE_READY, outcome.status_message)
        return True, 0

    async def _after(self, session: Session) -> int:
        """Run the afterLease hook. Returns the exit code it asks for, 0 to go on."""
        from jumpstarter.exporter.hooks import HookAction

        if self.config.hooks.after_lease is None:
            session.update_status(ExporterStatus.AVAILABLE)
            return 0
        session.update_status(ExporterStatus.AFTER_LEASE_HOOK, "Running afterLease hook")
        outcome = await self._hook(session, "afterLease")
        if outcome.action is HookAction.EXIT:
            session.update_status(ExporterStatus.AFTER_LEASE_HOOK_FAILED, outcome.message)
            return 1
        session.update_status(ExporterStatus.AVAILABLE, outcome.status_message)
        return 0

    async def _hook(self, session: Session, moment: Moment) -> HookOutcome:
        from jumpstarter.exporter.hooks import HookContext, run_hook

        hooks = self.config.hooks
        context = HookContext(host=self._socket, lease_name=LEASE_NAME, client_name="", exporter_name=self.config.name)
        hook = hooks.before_lease if moment == "beforeLease" else hooks.after_lease
        return await run_hook(hook, moment, context, session)


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
