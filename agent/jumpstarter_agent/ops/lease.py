# SPDX-License-Identifier: Apache-2.0
"""lease and lease_info: take, extend, give back, describe."""

from __future__ import annotations

import datetime
from typing import Any

from .. import detached
from ..context import Context
from ..errors import AgentError, as_controller_error
from ..lease import LIFETIMES, HostLease, LeaseOptions
from ..lease_table import options_of, wished_reach
from ..lease_wish import Wish, find_by_name
from ..reach import ControllerReach
from ..request import Args
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
        wish=_wish(args),
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


def describe_lease(ctx: Context, held: HostLease) -> dict[str, Any]:
    """The ``lease`` object of results."""
    nodes = held.connection.session.nodes.values()
    ends_at = held.ends_at
    return {
        "name": held.name,
        "host": held.host,
        "state": "held",
        "exporter": held.connection.exporter,
        "reach": held.reach.as_dict(),
        "holder": held.place.holder,
        "lifetime": held.options.lifetime,
        "acquired_at": _when(held.acquired_at),
        "expires_at": _when(ends_at) if ends_at is not None else None,
        "drivers": {node.path: _describe_driver(node) for node in nodes if node.path},
        "jumpstarter_host": str(held.connection.host_socket),
        "recording_dir": str(held.recording_dir),
        "hold_on_failure": held.options.hold_on_failure,
        "reattached": held.connection.reattached,
        "reattach": detached.how_to_reattach(held.name) if held.options.lifetime == "detached" else None,
        "shell": held.connection.shell_command(),
        **held.connection.facts(),
    }


def _info(ctx: Context) -> dict[str, Any]:
    held = ctx.agent.leases.get(ctx.host.name)
    if held is None:
        return {"changed": False, "leased": False, "lease": _absent_lease(ctx)}
    return {"changed": False, "leased": True, "lease": describe_lease(ctx, held), **ssh_facts(held)}


async def _present(ctx: Context, options: LeaseOptions) -> dict[str, Any] | None:
    held = ctx.agent.leases.get(ctx.host.name)
    if ctx.check and held is None:
        return {"changed": True, "lease": {**_absent_lease(ctx), "simulated": True, **await _prospect(ctx, options)}}
    reach = ctx.host.reach
    if options.lifetime == "detached" and not ctx.agent.is_detached and not isinstance(reach, ControllerReach):
        raise AgentError("internal", "a detached lease has an agent of its own")
    held, opened = await ctx.agent.leases.take(ctx.host, options, ctx.tell)
    taken = opened and not held.connection.reattached
    ctx.bind(held)
    extended = False
    if not opened:
        _check_name(held, options)
        _check_lifetime(held, options)
        extended = not ctx.check and await held.extend(options.duration)
        held.update(options)
    elif not taken:
        extended = await held.extend(options.duration)
    value = {"changed": taken, "extended": extended, "lease": describe_lease(ctx, held), **ssh_facts(held)}
    if ctx.request.diff and taken:
        value["diff"] = {"before": "lease: absent\n", "after": f"lease: held ({held.connection.exporter})\n"}
    return value


async def _absent(ctx: Context, options: LeaseOptions) -> dict[str, Any]:
    held = ctx.agent.leases.get(ctx.host.name)
    if held is not None:
        _check_name(held, options)
    elif options.name is not None and isinstance(ctx.host.reach, ControllerReach):
        return await _give_back(ctx, ctx.host.reach, options.name)
    if held is None or ctx.check:
        return {"changed": held is not None, "lease": _absent_lease(ctx)}
    exporter = held.connection.exporter
    await held.connection.give_back()
    await ctx.agent.leases.release(ctx.host.name)
    return _given_back(ctx, exporter)


async def _give_back(ctx: Context, reach: ControllerReach, name: str) -> dict[str, Any]:
    """End a lease that an earlier run has left at the controller."""
    controller = await ctx.agent.controllers.get(reach.client)
    try:
        found = await find_by_name(controller, name)
        if found is None:
            return {"changed": False, "lease": _absent_lease(ctx)}
        exporter = (await controller.get_lease(found)).exporter
        if not ctx.check:
            await controller.delete_lease(found)
    except Exception as error:
        raise as_controller_error(error) from error
    return _given_back(ctx, f"exporter {exporter}")


def _given_back(ctx: Context, exporter: str) -> dict[str, Any]:
    value: dict[str, Any] = {"changed": True, "lease": _absent_lease(ctx)}
    if ctx.request.diff:
        value["diff"] = {"before": f"lease: held ({exporter})\n", "after": "lease: absent\n"}
    return value


async def _prospect(ctx: Context, options: LeaseOptions) -> dict[str, Any]:
    """What a lease from a controller would find now; an error when it would be refused."""
    reach = wished_reach(ctx.host.reach, options) if ctx.host.reach is not None else None
    if not isinstance(reach, ControllerReach):
        return {}
    controller = await ctx.agent.controllers.get(reach.client)
    try:
        found = await controller.list_exporters(reach.selector)
        if options.name is not None and (name := await find_by_name(controller, options.name)) is not None:
            return {"available": True, "name": name}
    except Exception as error:
        raise as_controller_error(error) from error
    matching = [one for one in found if reach.exporter in (None, one.name)]
    usable = [one for one in matching if one.enabled or options.wish.allow_disabled]
    if not usable and not options.wish.wait_for_match:
        state = "is disabled" if matching else "is there"
        raise AgentError(
            "unsatisfiable",
            f"no lease of {reach.target}: {'every one' if matching else 'none'} {state} "
            "(`jmp get exporters` lists what there is)",
        )
    free = sorted(one.name for one in usable if one.online and one.lease is None)
    return {"available": bool(free), "matching": sorted(one.name for one in usable), "free": free}


def _check_name(held: HostLease, options: LeaseOptions) -> None:
    if options.name is not None and held.options.name is not None and held.options.name != options.name:
        raise AgentError(
            "busy",
            f"{held.host} is held under the name {held.options.name!r}, not {options.name!r}",
            {"name": held.name},
        )


def _check_lifetime(held: HostLease, options: LeaseOptions) -> None:
    if options.lifetime == "detached" and held.options.lifetime != "detached":
        raise AgentError(
            "busy",
            f"{held.host} is held for this {held.options.lifetime}; give the lease back before taking a detached one",
            {"name": held.name},
        )


def _wish(args: Args) -> Wish:
    return Wish(
        selector=args.optional_text("selector"),
        exporter=args.optional_text("exporter"),
        timeout=args.optional_seconds("timeout"),
        begin_time=_moment(args.optional_text("begin_time")),
        tags=_texts(args, "tags"),
        context=_texts(args, "context"),
        allow_disabled=args.flag("allow_disabled"),
        wait_for_match=args.flag("wait_for_match"),
    )


def _moment(text: str | None) -> datetime.datetime | None:
    if text is None:
        return None
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except ValueError:
        raise AgentError(
            "invalid", f"argument 'begin_time' is {text!r}, not a time such as 2026-11-21T22:00:00+01:00"
        ) from None


def _texts(args: Args, name: str) -> dict[str, str]:
    found = args.mapping(name)
    for key, value in found.items():
        if isinstance(value, (dict, list)):
            raise AgentError("invalid", f"argument {name!r}: the value of {key!r} is not a text")
    return {str(key): str(value) for key, value in found.items()}


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
