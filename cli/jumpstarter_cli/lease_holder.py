# SPDX-License-Identifier: Apache-2.0
"""The process that holds a lease for `jmp shell`: ``python -m jumpstarter_cli.lease_holder``.

It has a process of its own so that the lease is given back however the shell ends: when its stdin ends, it gives back
what it holds and ends. First line of stdin: what to lease, as JSON (`Wanted`). A further line "end" ends the session in
order: the exporter's afterLease hook runs to its end first. On stdout it tells events, one JSON object a line:

asking {text}: it asks the controller. waiting {text}: it waits. held {lease, exporter, labels, own}: it has
got a lease. ready {warning}: the socket leads to the exporter. log {text}: a line of the exporter. notice {text}:
something to know. lost {text}: the lease is lost. failed {kind, text, leases}: it has given up; kind is error,
authentication, usage or choose. done {warning}: the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before pydantic is imported: looking for its plugins means reading the metadata of every installed distribution.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from jumpstarter.common.enums import LogSource
from jumpstarter.common.exceptions import (
    AuthenticationError,
    ExporterOfflineError,
    ExporterUnreachableError,
    JumpstarterException,
)

if TYPE_CHECKING:
    from jumpstarter.client.controller import ControllerClient
    from jumpstarter.client.lease import HeldLease
    from jumpstarter.client.records import LeaseState, LeaseWish
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["Wanted", "main"]

#: Seconds before its end that the user is told of it.
_WARNING_SECONDS = 300.0
#: Bytes. The first line holds the configuration, and that may hold a company's whole bundle of authorities.
_LONGEST_LINE = 16 << 20
_HOOKS = (LogSource.BEFORE_LEASE_HOOK, LogSource.AFTER_LEASE_HOOK)


@dataclass(frozen=True)
class Wanted:
    """What to lease, and as whom.

    config: the client configuration as in its file; config_path: that file, None when it comes from the environment.
    lease: name of an existing one; without it, selector and exporter_name, all of them empty for the only lease that
    the client has. Times in seconds. socket: where to listen. logs: tell everything the exporter logs.
    """

    config: dict[str, Any]
    config_path: str | None
    socket: str
    lease: str = ""
    selector: str = ""
    exporter_name: str = ""
    duration: float = 1800.0
    acquisition_timeout: float = 7200.0
    dial_timeout: float = 60.0
    retry_timeout: float = 300.0
    logs: bool = False

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"


class _Failed(Exception):
    """Giving up, for a reason the shell has to handle itself."""

    def __init__(self, kind: str, text: str, **more: Any) -> None:
        super().__init__(text)
        self.event = {"kind": kind, "text": text, **more}


def _tell(event: str, **fields: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class _Holder:
    def __init__(self, wanted: Wanted, config: ClientConfigV1Alpha1) -> None:
        self._wanted = wanted
        self._config = config
        self._end = asyncio.Event()
        self._changed = asyncio.Event()
        self._preemption: datetime | None = None

    async def run(self) -> None:
        """Hold it until told to end."""
        from jumpstarter.client.backoff import Backoff
        from jumpstarter.client.controller import connect_controller

        async with connect_controller(self._config) as controller:
            controller.renew_token = self._renew_token
            wish = await self._wish(controller)
            backoff, deadline = Backoff(0.5, 10.0), None
            loop = asyncio.get_running_loop()
            while True:
                try:
                    await self._hold(controller, wish)
                    return
                except (ExporterOfflineError, ExporterUnreachableError) as error:
                    hopeless = isinstance(wish, str) or error.code == "BEFORE_LEASE_HOOK_FAILED"
                    deadline = deadline or loop.time() + self._wanted.retry_timeout
                    if hopeless or loop.time() >= deadline:
                        raise
                    _tell("notice", text=f"{error}; leasing again")
                await backoff.wait()

    async def _wish(self, controller: ControllerClient) -> LeaseWish | str:
        from jumpstarter.client.records import LeaseWish

        wanted = self._wanted
        if wanted.lease:
            return wanted.lease
        if wanted.selector or wanted.exporter_name:
            return LeaseWish(
                selector=wanted.selector, exporter_name=wanted.exporter_name or None, duration=wanted.duration
            )
        own = [lease for lease in await controller.list_leases() if lease.client == controller.name]
        if not own:
            raise _Failed("usage", "what to lease? Give --selector, --name or --lease; you have no lease at the moment")
        if len(own) > 1:
            leases = [{"name": lease.name, "text": lease.exporter or lease.selector} for lease in own]
            raise _Failed("choose", "you have several leases: choose one with --lease", leases=leases)
        return own[0].name

    async def _hold(self, controller: ControllerClient, wish: LeaseWish | str) -> None:
        from jumpstarter.client.lease import hold_lease
        from jumpstarter.client.leased import exporter_labels

        wanted = self._wanted
        _tell("asking", text=f"waiting for {wish if isinstance(wish, str) else wish.target}")
        async with hold_lease(
            controller,
            wish,
            acquisition_timeout=wanted.acquisition_timeout,
            dial_timeout=wanted.dial_timeout,
            on_state=self._on_state,
        ) as held:
            labels = await exporter_labels(controller, held)
            _tell("held", lease=held.name, exporter=held.info.exporter, labels=labels, own=held.own)
            async with held.serve_unix(Path(wanted.socket), on_log=self._on_log):
                assert held.socket is not None
                _tell("ready", warning=held.socket.warning)
                await self._serve(held)
                warning = ""
                if held.own and not held.lost.done():
                    await held.socket.end_session()
                    warning = held.socket.warning
        _tell("done", warning=warning)

    async def _serve(self, held: HeldLease) -> None:
        """Until told to end; tells of the lease's end before it comes, and of its loss."""
        tasks = [asyncio.create_task(self._announce_end(held)), asyncio.create_task(self._announce_expiry())]
        ending = asyncio.create_task(self._end.wait())
        try:
            either: set[asyncio.Future[Any]] = {ending, held.lost}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if held.lost.done() and not self._end.is_set():
                _tell("lost", text=held.lost.result())
                await ending
        finally:
            for task in (*tasks, ending):
                task.cancel()
            await asyncio.gather(*tasks, ending, return_exceptions=True)

    async def _announce_end(self, held: HeldLease) -> None:
        from jumpstarter_cli.times import span

        total, told = held.time_left or 0.0, False
        while True:
            left = held.time_left
            threshold = min(_WARNING_SECONDS, total / 2)
            soon = left is not None and left <= threshold
            if soon and not told:
                _tell("notice", text=f"lease {held.name} ends in {span(left or 0.0)}")
            told = soon
            self._changed.clear()
            try:
                async with asyncio.timeout(60.0 if left is None or soon else max(0.1, left - threshold)):
                    await self._changed.wait()
            except TimeoutError:
                pass  # time to look again

    async def _announce_expiry(self) -> None:
        """Warn of a token that runs out: without one the lease cannot be kept."""
        expires = _expiry(self._config.token or "")
        if expires is None or self._config.refresh_token:
            return
        await asyncio.sleep(max(0.0, expires - datetime.now(UTC).timestamp() - _WARNING_SECONDS))
        if _expiry(self._config.token or "") == expires:
            _tell(
                "notice", text="the token expires soon: log in again with `jmp login`, and this shell takes the new one"
            )

    def _on_state(self, state: LeaseState) -> None:
        self._changed.set()
        if state.lease.state == "pending":
            _tell("waiting", text=state.line or "waiting for an exporter")
        if state.preempted_at is not None and state.preempted_at != self._preemption and not state.ended:
            when = state.preempted_at.astimezone().strftime("%H:%M:%S")
            _tell("notice", text=f"lease {state.lease.name} is taken away at {when}: {state.message}")
        self._preemption = state.preempted_at

    def _on_log(self, entry: Any) -> None:
        if self._wanted.logs:
            _tell("log", text=f"{entry.severity} {entry.message}")
        elif entry.source in _HOOKS:
            _tell("log", text=entry.message)

    async def _renew_token(self) -> bool:
        return await asyncio.to_thread(_renew, self._config)

    async def follow(self, commands: asyncio.StreamReader) -> None:
        """Return when the shell has gone."""
        while line := await commands.readline():
            if line.strip() == b"end":
                self._end.set()


def _renew(config: ClientConfigV1Alpha1) -> bool:
    """Another token than the one that was refused: from the file, where a login may have put it, or by refreshing."""
    from jumpstarter_cli.login_record import LoginRecord
    from jumpstarter_cli.relogin import refresh

    try:
        if config.path is not None and config.path.is_file():
            token = type(config).from_file(config.path).token
            if token and token != config.token:
                config.token = token
                return True
        record = LoginRecord.of(config) if config.refresh_token else None
        if record is None:
            return False
        refresh(config, record)
    except (JumpstarterException, OSError) as error:
        # What is held with the old token is not lost for that.
        _tell("notice", text=f"the token cannot be renewed: {error}")
        return False
    return True


def _expiry(token: str) -> float | None:
    """When a token expires by its own words."""
    import base64
    import binascii

    parts = token.split(".")
    try:
        found = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))).get("exp")
    except (IndexError, ValueError, binascii.Error, AttributeError):
        return None  # no JWT, or none of ours: the controller will tell
    return float(found) if isinstance(found, (int, float)) else None


async def _run() -> None:
    from jumpstarter.config.client import ClientConfigV1Alpha1

    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=_LONGEST_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    line = await commands.readline()
    if not line:
        return
    wanted = Wanted(**json.loads(line))
    path = Path(wanted.config_path) if wanted.config_path else None
    config = ClientConfigV1Alpha1.parse(wanted.config, path or "environment", path=path)
    holder = _Holder(wanted, config)
    holding = asyncio.create_task(holder.run())
    following = asyncio.create_task(holder.follow(commands))
    loop.add_signal_handler(signal.SIGTERM, following.cancel)
    await asyncio.wait({holding, following}, return_when=asyncio.FIRST_COMPLETED)
    holding.cancel()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    try:
        await holding
    except asyncio.CancelledError:
        pass  # nobody waits for it any more; what it held has been given back


def main() -> int:
    """Entry point."""
    from jumpstarter_cli.errors import explain
    from jumpstarter_cli.logs import setup

    setup("WARNING")
    try:
        asyncio.run(_run())
    except _Failed as failed:
        _tell("failed", **failed.event)
    except AuthenticationError as error:
        _tell("failed", kind="authentication", text=str(error))
    except Exception as error:  # noqa: BLE001 - the shell shows it
        _tell("failed", kind="error", text=explain(error))
    else:
        return 0
    return 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What is left of gRPC and its threads has nothing more to do, and somebody waits for the exit code.
    os._exit(code)
