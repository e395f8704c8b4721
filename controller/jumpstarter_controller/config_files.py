# SPDX-License-Identifier: Apache-2.0
"""Configuration files: reading them, and saying in one line what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ValidationError

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["HostPort", "read_config"]

_HOST_PORT = re.compile(r"(\[[0-9a-fA-F:.%a-z]+\]|[^\s/:]+):(\d{1,5})")
_HIGHEST_PORT = 65535
#: What pydantic says in terms of Python.
_KINDS = {"model_type": "a block of fields", "dict_type": "a block of fields", "list_type": "a list"}

_Model = TypeVar("_Model", bound=BaseModel)


def _check_host_port(text: str) -> str:
    match = _HOST_PORT.fullmatch(text)
    if match is None or int(match[2]) > _HIGHEST_PORT:
        raise ValueError(f'expected HOST:PORT with a port of at most {_HIGHEST_PORT}, got "{text}"')
    return text


#: ``host:port``, also ``[address]:port`` of IPv6.
HostPort = Annotated[str, AfterValidator(_check_host_port)]


def read_config(path: Path, model: type[_Model]) -> _Model:
    """The YAML file as a ``model``. Raises ConfigurationError, one line that names file and field."""
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {_first(error.errors())}") from None


def _first(errors: Sequence[Any]) -> str:
    """What is wrong first. A field that does not exist is often why another is missing."""
    worst = min(errors, key=lambda error: error["type"] != "extra_forbidden")
    *place, last = worst["loc"] or [""]
    field = ".".join(str(part) for part in worst["loc"])
    match worst["type"]:
        case "extra_forbidden":
            missing = [e["loc"][-1] for e in errors if e["type"] == "missing" and list(e["loc"][:-1]) == place]
            return f"{field}: there is no such field" + (f'; "{missing[0]}" is missing' if missing else "")
        case "missing":
            return f'{field}: "{last}" is missing'
        case kind if kind in _KINDS:
            text = f"expected {_KINDS[kind]}"
        case "literal_error":
            text = f'expected {worst["ctx"]["expected"]}, got "{worst["input"]}"'
        case _:
            text = worst["msg"].removeprefix("Value error, ")
    return f"{field}: {text}" if field else text
