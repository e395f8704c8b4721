# SPDX-License-Identifier: Apache-2.0
"""Marks that make a driver's method callable from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

__all__ = ["ExportMark", "export", "exportstream", "mark_of"]

F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["call", "stream", "bytes"]

_MARK = "__jumpstarter_export__"


@dataclass(frozen=True)
class ExportMark:
    """How a method was exported.

    kind: "call" one result, "stream" a stream of results, "bytes" a raw byte stream.
    readonly: changes nothing on the device, so a dry run may call it. concurrent: may run beside other calls of the
    same driver instance.
    """

    kind: Kind
    readonly: bool = False
    concurrent: bool = False


def mark_of(function: Any) -> ExportMark | None:
    """The mark of a function or method, or None when it is not exported."""
    mark = getattr(function, _MARK, None)
    return mark if isinstance(mark, ExportMark) else None


@overload
def export(func: F, /) -> F: ...


@overload
def export(*, readonly: bool = False, concurrent: bool = False) -> Callable[[F], F]: ...


def export(func: Any = None, /, *, readonly: bool = False, concurrent: bool = False) -> Any:
    """Export a method as driver call.

    Functions and coroutine functions become calls with one result, (async) generator functions become streaming
    calls. Calls of one driver instance run one after the other unless ``concurrent=True``; ``readonly=True`` promises
    that the device is not changed and implies ``concurrent``.

    Raises ValueError for what is no function.
    """

    def mark(function: Any) -> Any:
        inner = inspect.unwrap(function)
        if not inspect.isfunction(inner):
            raise ValueError(f"@export marks functions, not {type(function).__name__}")
        streaming = inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)
        setattr(function, _MARK, ExportMark("stream" if streaming else "call", readonly, concurrent or readonly))
        return function

    return mark if func is None else mark(func)


def exportstream(func: F) -> F:
    """Export a method as raw byte stream: an async context manager that yields an `anyio.abc.ObjectStream` of bytes.

    It is called without arguments, once per stream a client opens.
    """
    if not callable(func):
        raise ValueError(f"@exportstream marks functions, not {type(func).__name__}")
    setattr(func, _MARK, ExportMark("bytes", concurrent=True))
    return func
