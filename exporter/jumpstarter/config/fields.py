# SPDX-License-Identifier: Apache-2.0
"""What a driver class takes as configuration, and whether a value fits.

Works for dataclasses of the standard library and of pydantic, and for classes with an `__init__` of their own.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from functools import cache
from typing import Any, NamedTuple

#: Marks a parameter whose type is not known: anything fits.
ANY: Any = Any


class Parameters(NamedTuple):
    """Keyword parameters of a driver class.

    owner: the class's name for messages. names: type of each parameter. required: those without a default. open:
    whether any further keyword is taken (**kwargs).
    """

    owner: str
    names: dict[str, Any]
    required: list[str]
    open: bool

    def accepts(self, name: str) -> bool:
        """Whether the class takes a keyword `name`."""
        return self.open or name in self.names


@cache
def parameters_of(cls: type) -> Parameters:
    """The keyword parameters of `cls`."""
    hints = _hints(cls)
    names: dict[str, Any] = {}
    required: list[str] = []
    is_open = False
    for parameter in inspect.signature(cls).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            is_open = True
        elif parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names[parameter.name] = hints.get(parameter.name, ANY)
            if parameter.default is parameter.empty:
                required.append(parameter.name)
    return Parameters(cls.__name__, names, required, is_open)


def _hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of fields and of `__init__`; what cannot be resolved here is left out."""
    found: dict[str, Any] = {}
    for source in (inspect.getattr_static(cls, "__init__"), cls):
        try:
            found.update(typing.get_type_hints(source, include_extras=True))
        except (NameError, TypeError, AttributeError):
            # An annotation that only exists for the type checker. The driver will check the value itself.
            continue
    return {name: _plain(hint) for name, hint in found.items()}


def _plain(hint: Any) -> Any:
    return hint.type if isinstance(hint, dataclasses.InitVar) else hint


def explain_value(hint: Any, value: Any) -> tuple[Any, str]:
    """`value` converted to the type `hint` and "", or the value and what is wrong with it."""
    if hint is None or hint is ANY or type(value) is hint:
        return value, ""
    if isinstance(value, bool) and _takes_numbers_only(hint):
        return value, f"must be a number, not {str(value).lower()}"  # pydantic would make 1 or 0 of it
    from pydantic import PydanticUserError, ValidationError

    from jumpstarter.config.common import describe

    try:
        adapter = _adapter(hint)
    except (PydanticUserError, NameError, TypeError):
        return value, ""  # no type pydantic knows: the driver will check the value itself
    try:
        return adapter.validate_python(value), ""
    except ValidationError as error:
        return value, describe(error)


def _takes_numbers_only(hint: Any) -> bool:
    """Whether a number may be given, or a text for it, and no truth value."""
    kinds = typing.get_args(hint) or (hint,)
    return any(kind in (int, float) for kind in kinds) and not any(kind in (bool, ANY, object) for kind in kinds)


def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter

    try:
        # `port: 1` for a field that is a str has always worked: YAML users do not quote numbers.
        return TypeAdapter(hint, config=ConfigDict(coerce_numbers_to_str=True, arbitrary_types_allowed=True))
    except PydanticUserError:
        return TypeAdapter(hint)  # models and dataclasses bring their own settings
