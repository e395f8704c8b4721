# SPDX-License-Identifier: Apache-2.0
"""can: send frames and wait for frames, start and stop periodic ones, ask by ISO-TP."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from jumpstarter.common.exceptions import DriverError, DriverInvalidArgument

from ..context import Context
from ..errors import AgentError

__all__ = ["can"]

DEFAULT_DRIVER = "can"
_SECONDS = 5.0


@dataclass
class _Wish:
    """What the task asks for; parsed before anything is sent."""

    frames: list[dict[str, Any]]
    expect: list[dict[str, Any]]
    periodic: list[dict[str, Any]]
    period: float
    duration: float | None
    stop: list[str]
    request: bytes | None
    response: Any
    timeout: float
    fresh: bool


async def can(ctx: Context) -> dict[str, Any]:
    """Do what was asked for, in this order: stop, send and expect, periodic; or an ISO-TP request."""
    driver = ctx.args.text("driver", DEFAULT_DRIVER)
    wish = _wish(ctx)
    node = await ctx.node(driver)
    acts = bool(wish.frames or wish.periodic or wish.stop or wish.request is not None)
    if ctx.check:
        # Frames that would be expected may be answers to what was not sent.
        return {"changed": acts, "frames": [], "simulated": True}
    if wish.request is not None:
        return await _request(node, wish)
    value: dict[str, Any] = {"changed": bool(wish.frames or wish.periodic), "frames": []}
    for task in wish.stop:
        value["changed"] = await _stop(node, task) or value["changed"]
    if wish.frames or wish.expect:
        value["frames"] = [_shown(frame) for frame in await _exchange(node, wish)]
    if wish.periodic:
        value["tasks"] = [await _start(node, frame, wish) for frame in wish.periodic]
    return value


def _wish(ctx: Context) -> _Wish:
    from jumpstarter_driver_can.expecting import Expectations
    from jumpstarter_driver_can.notation import DataPattern, parse_data, parse_frame

    args = ctx.args
    send, expect = args.items("send"), args.items("expect")
    periodic = args.mapping("periodic")
    request, response = args.optional_text("request"), args.optional_text("response")
    fresh = args.raw("fresh")
    timeout = args.seconds("timeout", _SECONDS)
    stop = [str(task) for task in args.items("stop")]
    args.finish()
    try:
        wish = _Wish(
            frames=[parse_frame(_text(frame)) for frame in send],
            expect=[{key: value for key, value in one.items() if value is not None} for one in expect],
            periodic=[parse_frame(_text(frame)) for frame in periodic.get("frames") or ()],
            period=_seconds(periodic.get("period"), 1.0),
            duration=None if periodic.get("duration") is None else _seconds(periodic["duration"], 0),
            stop=stop,
            request=None if request is None else parse_data(request),
            response=None if response is None else DataPattern(response),
            timeout=timeout,
            fresh=bool(send) if fresh is None else bool(fresh),
        )
        Expectations(wish.expect)  # found now, and not after something was sent
    except ValueError as error:
        raise AgentError("invalid", f"{error}; nothing was sent") from None
    if not (wish.frames or wish.expect or wish.periodic or wish.stop or wish.request is not None):
        raise AgentError("invalid", "nothing to do: give send, expect, periodic, stop or request")
    return wish


def _text(frame: Any) -> str:
    if not isinstance(frame, str):
        raise ValueError(f"{frame!r} is no frame: put it in quotes, as in '123#DEADBEEF'")
    return frame


def _seconds(value: Any, default: float) -> float:
    from ..durations import parse_duration

    seconds = default if value is None else parse_duration(value)
    if seconds <= 0:
        raise ValueError(f"a period or duration of {seconds:g} s is too short")
    return seconds


def _shown(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame as results have it."""
    from jumpstarter_driver_can.notation import format_frame

    return {
        "frame": format_frame(frame),
        "id": int(frame["arbitration_id"]),
        "extended": bool(frame["is_extended_id"]),
        "data": base64.b64decode(frame["data"] or "").hex(),
        "timestamp": float(frame["timestamp"]),
    }


async def _exchange(node: Any, wish: _Wish) -> list[dict[str, Any]]:
    if node.methods is not None and "exchange" not in node.methods:
        raise AgentError(
            "invalid", f"driver {node.path} is no CAN bus: it has no method exchange", {"driver": node.path}
        )
    if node.methods is not None:
        result = await node.call("exchange", wish.frames, wish.expect, wish.timeout, wish.fresh)
        frames: list[dict[str, Any]] = result["frames"]
        return frames
    return await _exchange_by_calls(node, wish)


async def _exchange_by_calls(node: Any, wish: _Wish) -> list[dict[str, Any]]:
    """With an exporter of Jumpstarter 0.9, from here; what waits there to be received counts as well."""
    from jumpstarter_driver_can.expecting import Expectations

    expected = Expectations(wish.expect)
    end = time.monotonic() + wish.timeout
    for frame in wish.frames:
        await node.call("send", frame, wish.timeout)
    while not expected.done:
        left = end - time.monotonic()
        received = (await node.call("_recv_internal", min(left, 1.0)))[0] if left > 0 else None
        if received is not None:
            expected.offer(received)
        elif left <= 0:
            raise AgentError("timeout", f"can: {expected.missing(wish.timeout)}")
    return expected.frames


async def _start(node: Any, frame: dict[str, Any], wish: _Wish) -> str:
    return str(await node.call("_send_periodic_internal", [frame], wish.period, wish.duration, True))


async def _stop(node: Any, task: str) -> bool:
    """Stop a periodic task; tells whether it was running, as far as the exporter can say."""
    running = True
    if node.has_method("_task_status"):
        running = bool((await node.call("_task_status", task))["running"])
    await node.call("_stop_task", task)
    return running


async def _request(node: Any, wish: _Wish) -> dict[str, Any]:
    assert wish.request is not None
    message = {"data": base64.b64encode(wish.request).decode("ascii")}
    async with _started(node):
        if node.has_method("request"):
            answer = (await node.call("request", message, wish.timeout))["data"]
        else:
            await node.call("send", message, None, wish.timeout)
            answer = await _answer(node, wish.timeout)
    data = base64.b64decode(answer or "")
    value = {"changed": True, "request": wish.request.hex(), "response": data.hex(), "frames": []}
    if wish.response is not None and not wish.response.matches(data):
        raise AgentError("verify_failed", f"the answer is {data.hex()}, not {wish.response}", value)
    return value


async def _answer(node: Any, timeout: float) -> str:
    """Wait for a message with an exporter of Jumpstarter 0.9, some of whose drivers do not wait."""
    try:
        async with asyncio.timeout(timeout):
            while True:
                answer = (await node.call("recv", True, min(timeout, 1.0)))["data"]
                if answer is not None:
                    return str(answer)
    except TimeoutError:
        raise AgentError("timeout", f"driver {node.path}: no answer within {timeout:g} s") from None


@asynccontextmanager
async def _started(node: Any) -> AsyncIterator[None]:
    """The link runs while the context is open; one that ran already goes on."""
    mine = True
    try:
        await node.call("start")
    except DriverInvalidArgument as error:
        if "started" not in str(error):
            raise
        mine = False
    except DriverError as error:
        # Jumpstarter 0.9 starts its link in Python twice if asked; its library says so in these words.
        if "already started" not in str(error):
            raise
        mine = False
    try:
        yield
    finally:
        if mine:
            await node.call("stop")
