# SPDX-License-Identifier: Apache-2.0
"""Arguments of exported methods: bound by name and converted to their annotations.

The wire of a 0.9 peer knows one kind of number, so ``count: int`` arrives as ``3.0``; a driver shall not have to care.
Simple types are converted here; everything else (enums, dates, dataclasses, pydantic models, unions, ...) by pydantic,
imported when first needed.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

__all__ = ["Signature", "signature_of"]

logger = logging.getLogger(__name__)

Converter = Callable[[Any], Any]
_JSON_LIKE = (Any, object, inspect.Parameter.empty)


class Signature:
    """Parameters of one exported method, without ``self``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        inner = inspect.unwrap(function)
        parameters = list(inspect.signature(inner).parameters.values())[1:]
        self._signature = inspect.Signature(parameters)
        hints = _hints(inner)
        self.returns: Any = hints.get("return", Any)
        self._converters = {p.name: _converter(hints.get(p.name, Any)) for p in parameters}
        self._variadic = {p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL}
        self._keywords = {p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD}
        self._plain = not parameters

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The parameters by name."""
        return self._signature.parameters

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments for the method, converted. Raises ValueError naming the argument."""
        if self._plain and not args and not kwargs:
            return (), {}
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(f"{error}; expected {self}") from None
        for name, value in bound.arguments.items():
            convert = self._converters[name]
            if convert is None:
                continue
            if name in self._variadic:
                bound.arguments[name] = tuple(self._apply(name, convert, item) for item in value)
            elif name in self._keywords:
                bound.arguments[name] = {k: self._apply(k, convert, item) for k, item in value.items()}
            else:
                bound.arguments[name] = self._apply(name, convert, value)
        return bound.args, bound.kwargs

    @staticmethod
    def _apply(name: str, convert: Converter, value: Any) -> Any:
        try:
            return convert(value)
        except (ValueError, TypeError) as error:
            raise ValueError(f'argument "{name}": {_reason(error)}') from None

    def __str__(self) -> str:
        return str(self._signature)


@lru_cache(maxsize=4096)
def signature_of(function: Callable[..., Any]) -> Signature:
    """The `Signature` of a method as found on its class."""
    return Signature(function)


def _reason(error: Exception) -> str:
    # pydantic's own text runs over several lines and ends in a link.
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    details = errors(include_url=False)
    return "; ".join(
        (".".join(map(str, item["loc"])) + ": " if item["loc"] else "") + f"{item['msg']}, got {item['input']!r:.80}"
        for item in details
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        # Names that exist for type checkers only: those parameters are passed as they came.
        raw = getattr(function, "__annotations__", {})
        return {k: v for k, v in raw.items() if not isinstance(v, str)}


def _converter(hint: Any) -> Converter | None:
    if hint in _JSON_LIKE or isinstance(hint, typing.TypeVar):
        return None
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = [a for a in typing.get_args(hint) if a is not type(None)]
        if len(options) == 1 and len(typing.get_args(hint)) == 2:
            inner = _converter(options[0])
            return None if inner is None else lambda value: None if value is None else inner(value)
    return _Lazy(hint)


class _Lazy:
    """A pydantic adapter that is built when the first value comes."""

    def __init__(self, hint: Any) -> None:
        self._hint = hint
        self._validate: Converter | None = None

    def __call__(self, value: Any) -> Any:
        if self._validate is None:
            self._validate = _adapter(self._hint)
        return self._validate(value)


def _adapter(hint: Any) -> Converter:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

    try:
        validate = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=False)).validate_python
    except PydanticUserError as error:
        if error.code != "type-adapter-config-unused":
            # typing.TypedDict on Python 3.11, say. Not an error of the caller's, but its driver's author has to know.
            logger.warning("arguments of type %s are passed on as they come: %s", hint, error.message.splitlines()[0])
            return lambda value: value
        validate = TypeAdapter(hint).validate_python
    except PydanticSchemaGenerationError:
        return lambda value: value  # a class only the driver knows how to make: its own business
    return lambda value: validate(_integral(value))


def _integral(value: Any) -> Any:
    """Floats without fraction as ints, at any depth, so that int fields in strict unions accept them."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, list):
        return [_integral(v) for v in value]
    if isinstance(value, dict):
        return {k: _integral(v) for k, v in value.items()}
    return value


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        try:
            return int(value, 0)
        except ValueError:
            pass
    raise ValueError(f"expected an integer, got {value!r:.80}")


def _to_float(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"expected a number, got {value!r:.80}")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off", "1", "0"):
        return value.lower() in ("true", "yes", "on", "1")
    raise ValueError(f"expected true or false, got {value!r:.80}")


def _to_str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"expected a string, got {value!r:.80}")


def _to_bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError(f"expected bytes, got {value!r:.80}")


_SIMPLE: dict[Any, Converter] = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_str, bytes: _to_bytes}
