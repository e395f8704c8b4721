# SPDX-License-Identifier: Apache-2.0
"""lease and lease_info: take, extend, give back, describe."""

from __future__ import annotations

import datetime
from typing import Any

from .. import detached
from ..context import Context
from ..errors import AgentError
from ..lease import LIFETIMES, HostLease, LeaseOptions
from ..lease_table import options_of
from ..ssh_facts import ssh_facts

__all__ = ["describe_lease", "lease", "lease_info"]


async def lease(ctx: Context) -> dict[str, Any] | None:
    """Bring the lease of the host to ``state``."""
    args = ctx.args
    state = args.choice("state", ("present", "absent", "info"), "present")
    options = LeaseOptions(
        name=args.optional_text("name"),
        lifetime=args.choice("lifetime", LIFETIMES, "run"),
        duration=args.optional_seconds("duration"),
        hold_on_failure=args.optional_seconds("hold_on_failure"),
        play=ctx.request.play,
    )
    args.finish()
    options = options_of(ctx.host, ctx.request.play, options)
    if options.duration == 0:
        raise AgentError("invalid", "argument 'duration': a lease of 0 s would end before the next task")
    if options.lifetime == "detached" and options.name is None:
        raise AgentError("invalid", "a detached lease needs a name: that is how it is found again")
    if state == "info":
        return _info(ctx)
    if state == "absent":
        return await _absent(ctx, options)
    return await _present(ctx, options)


async def lease_info(ctx: Context) -> dict[str, Any]:
    """Describe the lease of the host without taking one."""
    ctx.args.finish()
    return _info(ctx)


def describe_lease(ctx: Context, held: HostLease, *, reattached: bool = False) -> dict[str, Any]:
    """The ``lease`` object of results."""
    nodes = held.connection.session.nodes.values()
    return {
        "name": held.name,
        "host": held.host,
        "state": "held",
        "exporter": held.connection.exporter,
        "reach": held.reach.as_dict(),
        "holder": held.place.holder,
        "lifetime": held.options.lifetime,
        "acquired_at": _when(held.acquired_at),
        "expires_at": _when(held.expires_at) if held.expires_at is not None else None,
        "drivers": {node.path: _describe_driver(node) for node in nodes if node.path},
        "jumpstarter_host": str(held.connection.host_socket),
        "recording_dir": str(held.recording_dir),
        "hold_on_failure": held.options.hold_on_failure,
        "reattached": reattached,
        "reattach": detached.how_to_reattach(held.name) if held.options.lifetime == "detached" else None,
    }


def _info(ctx: Context) -> dict[str, Any]:
    held = ctx.agent.leases.get(ctx.host.name)
    if held is None:
        return {"changed": False, "leased": False, "lease": _absent_lease(ctx)}
    return {"changed": False, "leased": True, "lease": describe_lease(ctx, held), **ssh_facts(held)}


async def _present(ctx: Context, options: LeaseOptions) -> dict[str, Any] | None:
    held = ctx.agent.leases.get(ctx.host.name)
    if ctx.check and held is None:
        return {"changed": True, "lease": {**_absent_lease(ctx), "simulated": True}}
    if options.lifetime == "detached" and not ctx.agent.is_detached:
        raise AgentError("internal", "a detached lease has an agent of its own")
    held, taken = await ctx.agent.leases.take(ctx.host, options)
    extended = False
    if not taken:
        _check_name(held, options)
        extended = not ctx.check and held.extend(options.duration)
        held.update(options)
    value = {"changed": taken, "extended": extended, "lease": describe_lease(ctx, held), **ssh_facts(held)}
    if ctx.request.diff and taken:
        value["diff"] = {"before": "lease: absent\n", "after": f"lease: held ({held.connection.exporter})\n"}
    return value


async def _absent(ctx: Context, options: LeaseOptions) -> dict[str, Any]:
    held = ctx.agent.leases.get(ctx.host.name)
    if held is not None:
        _check_name(held, options)
    if held is None or ctx.check:
        return {"changed": held is not None, "lease": _absent_lease(ctx)}
    exporter = held.connection.exporter
    await ctx.agent.leases.release(ctx.host.name)
    value: dict[str, Any] = {"changed": True, "lease": _absent_lease(ctx)}
    if ctx.request.diff:
        value["diff"] = {"before": f"lease: held ({exporter})\n", "after": "lease: absent\n"}
    return value


def _check_name(held: HostLease, options: LeaseOptions) -> None:
    if options.name is not None and held.options.name is not None and held.options.name != options.name:
        raise AgentError(
            "busy",
            f"{held.host} is held under the name {held.options.name!r}, not {options.name!r}",
            {"name": held.name},
        )


def _absent_lease(ctx: Context) -> dict[str, Any]:
    reach = ctx.host.reach
    return {"host": ctx.host.name, "state": "absent", "reach": reach.as_dict() if reach is not None else None}


def _describe_driver(node: Any) -> dict[str, Any]:
    methods = sorted(node.methods) if node.methods is not None else None
    return {
        "type": node.driver_type,
        "client": node.client_class,
        "methods": methods,
        "labels": {name: text for name, text in node.labels.items() if not name.startswith("jumpstarter.dev/")},
        "description": node.description or None,
    }


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
