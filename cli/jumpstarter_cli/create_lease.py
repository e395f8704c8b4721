# SPDX-License-Identifier: Apache-2.0
"""`jmp create lease`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import click

from jumpstarter_cli.options import opt_client, opt_pairs, opt_selector
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import DURATION, TIME, span

if TYPE_CHECKING:
    from jumpstarter.client.controller import ControllerClient, LeaseInfo, LeaseState

__all__ = ["create_lease"]

#: What the protocol allows of --context.
_MAX_CONTEXT, _MAX_KEY, _MAX_VALUE = 8, 32, 64


def _check_context(context: dict[str, str]) -> None:
    if len(context) > _MAX_CONTEXT:
        raise click.UsageError(f"--context may be given {_MAX_CONTEXT} times at most, not {len(context)} times")
    for key, value in context.items():
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE:
            raise click.UsageError(
                f"--context {key}: a key may have {_MAX_KEY} characters and a value {_MAX_VALUE} at most"
            )


@click.command("lease")
@opt_client
@opt_selector("Any exporter with these labels: a=b, a!=b, a in (b,c), a notin (b), a, !a.")
@click.option("-n", "--name", "exporter_name", metavar="EXPORTER", help="The exporter of this name.")
@click.option("--duration", type=DURATION, metavar="TIME", help="How long: seconds, 30m, 1d3h40m, PT1H30M, 01:30:00.")
@click.option("--begin-time", type=TIME, metavar="TIME", help="From when on: 2026-01-31T08:00 (local), or +2h.")
@click.option("--end-time", type=TIME, metavar="TIME", help="Until when; with --begin-time, instead of --duration.")
@click.option("--lease-id", default="", metavar="NAME", help="Name of the lease (default: one is made up).")
@opt_pairs("--tag", "tags", help="Tag of the lease, repeatable.")
@opt_pairs("--context", "context", help="What hooks and logs get to know (a build, a job), repeatable.")
@click.option("--allow-disabled", is_flag=True, help="Also exporters that administrators have disabled.")
@click.option("--wait", is_flag=True, help="Return when the exporter is yours; show the place in the queue meanwhile.")
@click.option("--timeout", type=DURATION, metavar="TIME", help="With --wait: give up, and the lease back, after this.")
@click.option("--wait-for-match", is_flag=True, help="Wait for an exporter that does not exist yet, too.")
@click.option(
    "--minimum-duration",
    type=DURATION,
    metavar="TIME",
    help="Take an exporter that is reserved for somebody else later on, if it is free for this long.",
)
@opt_output("json", "yaml", "name")
def create_lease(
    client: str | None,
    client_config: str | None,
    selector: str,
    exporter_name: str | None,
    duration: float | None,
    begin_time: datetime | None,
    end_time: datetime | None,
    lease_id: str,
    tags: dict[str, str],
    context: dict[str, str],
    allow_disabled: bool,
    wait: bool,
    timeout: float | None,
    wait_for_match: bool,
    minimum_duration: float | None,
    output: str | None,
) -> None:
    """Lease an exporter.

    The lease lives until its end or until `jmp delete lease`: nothing has to keep running for it. Use it with `jmp
    shell --lease NAME`.

    \b
    jmp create lease -l board=rpi4 --duration 2h --wait
    """
    if not selector and not exporter_name:
        raise click.UsageError("say which exporter: -l/--selector, -n/--name, or both")
    if duration is None and not (begin_time and end_time):
        raise click.UsageError("--duration is required, or both --begin-time and --end-time")
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    _check_context(context)

    import asyncio

    from jumpstarter.client.controller import LeaseWish, connect_controller
    from jumpstarter_cli.identity import call_with_login
    from jumpstarter_cli.identity import client_config as resolve
    from jumpstarter_cli.lease_view import print_lease

    config = resolve(client, client_config)
    wish = LeaseWish(
        selector=selector,
        exporter_name=exporter_name,
        duration=duration,
        begin_time=begin_time,
        end_time=end_time,
        # Named here when we wait: so that it can be given back even if the answer that it exists gets lost.
        name=lease_id or (str(uuid4()) if wait else ""),
        tags=tags,
        context=context,
        allow_disabled=allow_disabled,
        wait_for_match=wait_for_match,
        minimum_duration=minimum_duration,
    )
    made = False

    async def ask() -> LeaseInfo:
        nonlocal made
        async with connect_controller(config) as controller:
            if not wait:
                return await controller.create_lease(wish)
            _cancel_by_signals()
            try:
                # Made already, when the token was renewed while we waited.
                lease = await (controller.get_lease(wish.name) if made else controller.create_lease(wish))
                made = True
                return await _acquired(controller, lease, timeout)
            except asyncio.CancelledError:
                await _give_back(controller, wish.name)
                raise

    try:
        lease = call_with_login(config, ask)
    except asyncio.CancelledError:
        raise click.Abort from None
    print_lease(lease, output)
    for label, text in lease.deprecated_labels.items():
        click.echo(f"Warning: label {label} is deprecated: {text}", err=True)
    if lease.ended:
        raise click.ClickException(f"lease {lease.name} is {lease.state}: {lease.message}")
    if lease.state == "pending" and lease.message:
        click.echo(f"lease {lease.name} waits: {lease.message}", err=True)


async def _acquired(controller: ControllerClient, lease: LeaseInfo, timeout: float | None) -> LeaseInfo:
    """The lease once it has its exporter. Ended without that, whatever the reason, the lease is given back."""
    import asyncio

    from jumpstarter.common.exceptions import LeaseError

    told = _Told()
    try:
        async with asyncio.timeout(timeout):
            async for state in controller.watch_lease(lease.name):
                told.show(state)
                if state.ended:
                    raise LeaseError(f"lease {lease.name}: {state.message or state.lease.state}")
                if state.lease.state == "ready":
                    return state.lease
            raise LeaseError(f"lease {lease.name}: the controller stopped telling about it")
    except TimeoutError:
        await controller.delete_lease(lease.name)
        raise LeaseError(
            f"lease {lease.name}: not granted within {span(timeout or 0)}{told.last}; it was given back"
        ) from None


def _cancel_by_signals() -> None:
    """SIGTERM (a CI job that is cancelled) and SIGHUP (a terminal that is closed) end the wait as Ctrl-C does."""
    import asyncio
    import signal

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


async def _give_back(controller: ControllerClient, name: str) -> None:
    """After Ctrl-C: the lease must not stay in the queue for nobody."""
    import asyncio

    from jumpstarter.common.exceptions import ControllerError

    try:
        async with asyncio.timeout(10):
            await controller.delete_lease(name)
    except ControllerError as error:
        if error.code != "NOT_FOUND":
            raise
    else:
        click.echo(f"lease {name} was given back", err=True)


class _Told:
    """What the person in front of the screen knows already."""

    def __init__(self) -> None:
        self.last = ""
        self._shown = ""

    def show(self, state: LeaseState) -> None:
        """One line to stderr when something is new."""
        if state.ended or state.lease.state != "pending":
            return
        if state.position:
            self.last = f" (place {state.position} of {state.waiting} in the queue)"
        line = f"lease {state.lease.name} waits: {state.line}" if state.line else f"lease {state.lease.name} waits"
        if line != self._shown:
            click.echo(line, err=True)
            self._shown = line
