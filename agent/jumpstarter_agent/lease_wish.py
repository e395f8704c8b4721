# SPDX-License-Identifier: Apache-2.0
"""What is asked of a controller: from the options of a task to a `LeaseWish`, and leases found again by name."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from .durations import parse_duration
from .errors import AgentError
from .reach import ControllerReach

if TYPE_CHECKING:
    from .lease import LeaseOptions

__all__ = ["Wish", "find_by_name", "make_wish"]

HEARTBEAT_SECONDS = 60.0
"""A lease of a run ends when its agent was not heard of for so long..."""

HEARTBEAT_VARIABLE = "JUMPSTARTER_LEASE_HEARTBEAT"
"""...unless this variable of the environment has another number of seconds."""

NAME_TAG = "lease-name"
"""Tag with the user's name of a lease whose own name at the controller had to be another one."""

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_TAG = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_MAX_CONTEXT = 64


@dataclass(frozen=True)
class Wish:
    """What only a lease from a controller has.

    timeout: longest wait in seconds; None: as the client configuration says. selector, exporter: instead of what the
    host's variables say.
    """

    selector: str | None = None
    exporter: str | None = None
    timeout: float | None = None
    begin_time: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    context: Mapping[str, str] = field(default_factory=dict)
    allow_disabled: bool = False
    wait_for_match: bool = False


async def find_by_name(controller: Any, name: str) -> str | None:
    """The controller's name of our active lease that the user knows as `name`; None when there is none.

    Raises `AgentError` "busy" when somebody else holds a lease of that name.
    """
    from jumpstarter.common.exceptions import LeaseError

    candidates = []
    if _NAME.fullmatch(name):
        try:
            candidates.append(await controller.get_lease(name))
        except LeaseError as error:
            if error.code not in ("NOT_FOUND", "PERMISSION_DENIED"):
                raise
    if _TAG.fullmatch(name):
        candidates += await controller.list_leases(tag_filter=f"{NAME_TAG}={name}")
    active = [lease for lease in candidates if not lease.ended]
    ours = [lease for lease in active if lease.client == controller.name]
    if not ours and active and active[0].name == name:
        raise AgentError(
            "busy",
            f"a lease named {name!r} is held by client {active[0].client}: choose another name",
            {"lease": name, "client": active[0].client},
        )
    return str(ours[0].name) if ours else None


async def make_wish(controller: Any, reach: ControllerReach, context: dict[str, str], options: LeaseOptions) -> Any:
    """The `LeaseWish` for what a host asks for. context: what the lease is for, where the task says nothing."""
    from jumpstarter.client.controller import LeaseWish

    wish, tags = options.wish, dict(options.wish.tags)
    name = options.name or ""
    if name and not await _is_free(controller, name):
        # An ended lease keeps its name for as long as the controller remembers it.
        if not _TAG.fullmatch(name):
            raise AgentError(
                "invalid",
                f"lease name {name!r} must be at most 63 letters, digits, '-', '_' or '.', and begin and end with a "
                "letter or digit",
            )
        tags[NAME_TAG] = name
        stem = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
        name = f"{stem or 'lease'}-{secrets.token_hex(4)}"
    detached = options.lifetime == "detached"
    return LeaseWish(
        selector=reach.selector,
        exporter_name=reach.exporter,
        duration=options.duration,
        begin_time=wish.begin_time,
        name=name,
        tags=tags,
        context=dict(wish.context) or {key: text[:_MAX_CONTEXT] for key, text in context.items()},
        allow_disabled=wish.allow_disabled,
        # A detached lease outlives this process: only its duration ends it.
        heartbeat=None if detached else _heartbeat(),
        wait_for_match=wish.wait_for_match,
    )


def _heartbeat() -> float:
    text = os.environ.get(HEARTBEAT_VARIABLE)
    if not text:
        return HEARTBEAT_SECONDS
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise AgentError("invalid", f"{HEARTBEAT_VARIABLE}: {error}") from None
    if seconds < 1:
        raise AgentError(
            "invalid", f"{HEARTBEAT_VARIABLE} is {text!r}: a lease could not be kept alive in less than 1 s"
        )
    return seconds


async def _is_free(controller: Any, name: str) -> bool:
    from jumpstarter.common.exceptions import LeaseError

    if not _NAME.fullmatch(name):
        return False
    try:
        await controller.get_lease(name)
    except LeaseError as error:
        return bool(error.code == "NOT_FOUND")
    return False
