# SPDX-License-Identifier: Apache-2.0
"""One `ConsoleSession` per lease and console: opened on first use, closed with the lease."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from .context import Context
from .errors import as_agent_error
from .paths import safe_name
from .recording import Recording
from .request import Args

if TYPE_CHECKING:
    from .console import ConsoleSession
    from .lease import HostLease

__all__ = ["CONSOLE_DRIVER", "console_of", "login_of", "open_consoles", "restart_log", "start_log"]

log = logging.getLogger(__name__)

CONSOLE_DRIVER = "console"
_KEY = "console"


async def console_of(ctx: Context, driver: str) -> ConsoleSession:
    """The console behind the driver path; a second path to the same driver gives the same console."""
    node = await ctx.node(driver)
    return await _console(ctx.agent.recording, await ctx.lease(), node)


def open_consoles(lease: HostLease) -> list[ConsoleSession]:
    """Consoles of the lease that are open."""
    return [value for key, value in lease.resources.items() if key[0] == _KEY]


def login_of(args: Args) -> Any:
    """`Login` from the ``login`` argument, None when it was not given."""
    from .console import Login

    given = Args(args.mapping("login"))
    user, password = given.optional_text("user"), given.optional_text("password")
    given.finish()
    return Login(user or "root", password) if user or password else None


async def start_log(recording: Recording, lease: HostLease) -> None:
    """Open the console at its usual place at the start of the lease, so that its log is complete.

    Only where any number of readers may listen: elsewhere the log must not take the console from those who need it.
    """
    node = lease.connection.session.nodes.get(CONSOLE_DRIVER)
    if node is None or not node.has_method("follow"):
        return
    try:
        await _console(recording, lease, node)
    except Exception as error:  # noqa: BLE001 - a console that cannot be opened is an error of the task that needs it
        log.warning("%s: console not recorded: %s", lease.host, as_agent_error(error).message)


async def restart_log(recording: Recording, lease: HostLease) -> None:
    """The exporter was started anew: open in it what was open in the one before."""
    for key in [key for key in lease.resources if key[0] == _KEY]:
        await lease.drop_resource(key)
    await start_log(recording, lease)


async def _console(recording: Recording, lease: HostLease, node: Any) -> ConsoleSession:
    async def make() -> ConsoleSession:
        return await _open(recording, lease, node)

    key = (_KEY, node.uuid)
    known = lease.resources.get(key)
    if known is not None and known.failure is not None:
        # Its exporter was away and is back: the log goes on in the same file.
        await lease.drop_resource(key)
    console: ConsoleSession = await lease.resource(key, make, _close)
    return console


async def _open(recording: Recording, lease: HostLease, node: Any) -> ConsoleSession:
    from .console import ConsoleSession, NodeConsole

    usual = lease.connection.session.nodes.get(CONSOLE_DRIVER)
    is_usual = usual is not None and usual.uuid == node.uuid
    name = "console.log" if is_usual else f"console-{safe_name(node.path)}.log"

    def on_event(event: Any) -> None:
        data = dict(event.data)
        recording.event(lease.host, f"console_{event.kind}", text=event.text, **data)
        for user in lease.users:
            if isinstance(user, Context):
                user.note(event.kind, event.text, **data)

    connection, session = lease.connection, lease.connection.session
    console = ConsoleSession(
        NodeConsole(
            node,
            owner=f"{lease.place.holder}, host {lease.host}",
            again=lambda: connection.again(session),
        ),
        name=CONSOLE_DRIVER if is_usual else node.path,
        log_path=lease.recording_dir / name,
        on_event=on_event,
    )
    await console.start()
    return console


async def _close(console: ConsoleSession) -> None:
    await asyncio.shield(console.aclose())
