# SPDX-License-Identifier: Apache-2.0
"""A request as the socket delivers it, checked: everything after this module deals with known types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .durations import parse_duration
from .errors import AgentError
from .reach import Reach, parse_reach

__all__ = ["Args", "HostRef", "Request", "parse_request"]

VERSION = 1

_T = TypeVar("_T")
_REQUEST_KEYS = {"v", "op", "host", "args", "check", "diff", "task"}
_HOST_KEYS = {"name", "reach", "lease"}


class Args:
    """The ``args`` object of a request: typed getters, and a check that nothing unknown was given.

    None counts as not given. A wrong type is an `AgentError` "invalid" that names the argument.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: set[str] = set()

    def text(self, name: str, default: str = "") -> str:
        """A string; numbers are not turned into strings."""
        return self._typed(name, str, default, "a string")

    def required_text(self, name: str) -> str:
        """A string that must be there and not be empty."""
        value = self.text(name)
        if not value:
            raise AgentError("invalid", f"argument {name!r} is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        """A string or None when it was not given."""
        return self.text(name) or None

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        return self._typed(name, bool, default, "true or false")

    def integer(self, name: str, default: int) -> int:
        """A whole number."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise AgentError("invalid", f"argument {name!r} is {value!r}, not a whole number")
        return value

    def seconds(self, name: str, default: float) -> float:
        """A duration in seconds, written as `durations.parse_duration` takes it."""
        value = self.optional_seconds(name)
        return default if value is None else value

    def optional_seconds(self, name: str) -> float | None:
        """A duration in seconds or None when it was not given."""
        value = self._get(name, None)
        if value is None:
            return None
        try:
            return parse_duration(value)
        except ValueError as error:
            raise AgentError("invalid", f"argument {name!r}: {error}") from None

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of the given words."""
        value = self._get(name, default)
        if value not in choices:
            got = "is missing" if value is None else f"is {value!r}"
            raise AgentError("invalid", f"argument {name!r} {got}; choose one of {', '.join(choices)}")
        return str(value)

    def items(self, name: str) -> list[Any]:
        """A list, empty when not given."""
        return list(self._typed(name, list, [], "a list"))

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, empty when not given."""
        return dict(self._typed(name, dict, {}, "an object"))

    def raw(self, name: str, default: Any = None) -> Any:
        """The value as it came."""
        return self._get(name, default)

    def rest(self) -> dict[str, Any]:
        """What no getter asked for so far; counts as known from then on."""
        rest = {name: value for name, value in self._values.items() if name not in self._known}
        self._known.update(rest)
        return rest

    def finish(self) -> None:
        """Refuse arguments no getter asked for."""
        unknown = sorted(set(self._values) - self._known)
        if unknown:
            known = ", ".join(sorted(self._known)) or "none"
            raise AgentError("invalid", f"unknown argument {', '.join(map(repr, unknown))}; known: {known}")

    def _get(self, name: str, default: Any) -> Any:
        self._known.add(name)
        return self._values.get(name, default)

    def _typed(self, name: str, kind: type[_T], default: _T, words: str) -> _T:
        value = self._get(name, default)
        if not isinstance(value, kind):
            raise AgentError("invalid", f"argument {name!r} is {value!r}, not {words}")
        return value


@dataclass(frozen=True)
class HostRef:
    """Which device a request is about. `reach` is None when the caller relies on a lease the agent already has."""

    name: str
    reach: Reach | None = None
    lease: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One request. `document` is the object as it came, for handing it on to another agent."""

    op: str
    host: HostRef | None
    args: dict[str, Any]
    check: bool
    diff: bool
    task: dict[str, Any]
    document: dict[str, Any]

    @property
    def play(self) -> str | None:
        """Identity of the play the task belongs to, where the caller gave one."""
        value = self.task.get("play_uuid") or self.task.get("play")
        return str(value) if value else None


def parse_request(document: dict[str, Any]) -> Request:
    """Check the outer shape of a request; `AgentError` "invalid" says which field is wrong."""
    version = document.get("v")
    if version != VERSION:
        raise AgentError("invalid", f"protocol version {version!r} is not supported; this agent speaks {VERSION}")
    unknown = sorted(set(document) - _REQUEST_KEYS)
    if unknown:
        raise AgentError("invalid", f"unknown field {', '.join(map(repr, unknown))} in the request")
    op = document.get("op")
    if not isinstance(op, str) or not op:
        raise AgentError("invalid", f"field 'op' is {op!r}, not the name of an operation")
    return Request(
        op=op,
        host=_parse_host(document.get("host")),
        args=_object(document, "args"),
        check=_boolean(document, "check"),
        diff=_boolean(document, "diff"),
        task=_object(document, "task"),
        document=document,
    )


def _parse_host(value: Any) -> HostRef | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise AgentError("invalid", "field 'host' is not an object")
    unknown = sorted(set(value) - _HOST_KEYS)
    if unknown:
        raise AgentError("invalid", f"unknown field {', '.join(map(repr, unknown))} in 'host'")
    name = value.get("name")
    if not isinstance(name, str) or not name:
        raise AgentError("invalid", f"field 'host.name' is {name!r}, not a host name")
    reach = _object(value, "reach")
    return HostRef(name=name, reach=parse_reach(reach) if reach else None, lease=_object(value, "lease"))


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AgentError("invalid", f"field {key!r} is not an object")
    return value


def _boolean(document: dict[str, Any], key: str) -> bool:
    value = document.get(key, False)
    if not isinstance(value, bool):
        raise AgentError("invalid", f"field {key!r} is {value!r}, not true or false")
    return value
