# SPDX-License-Identifier: Apache-2.0
"""What all three kinds of configuration share: the envelope, readable validation errors, unknown keys."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.config.files import dump_yaml, read_yaml

logger = logging.getLogger(__name__)

API_VERSION = "jumpstarter.dev/v1alpha1"


class Model(BaseModel):
    """A block of a configuration. Unknown keys are kept (a newer version may know them), and warned about."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)


class ObjectMeta(Model):
    """Who this configuration is: `name` within `namespace` (of the controller; None outside of one)."""

    namespace: str | None = None
    name: str = "default"


class ConfigFile(Model):
    """A configuration that is a file of its own, with apiVersion and kind."""

    KIND: ClassVar[str] = ""

    apiVersion: Literal["jumpstarter.dev/v1alpha1"] = "jumpstarter.dev/v1alpha1"

    @classmethod
    def parse(cls, data: dict[str, Any], where: str | Path, /, **extra: Any) -> Self:
        """Validate `data` read from `where`; `extra` are values that are not part of the file (alias, path).

        Raises `ConfigurationError`, one line naming the file and the fields. Unknown keys are logged as a warning.
        """
        try:
            config = cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(f"{where}: {describe(error)}") from None
        for key, value in extra.items():
            setattr(config, key, value)
        for unknown, known in _unknown_keys(config):
            logger.warning('%s: unknown key "%s" is ignored%s', where, unknown, _suggest(unknown, known))
        return config

    @classmethod
    def read(cls, path: Path, /, **extra: Any) -> Self:
        """`parse` for the YAML file at `path`."""
        return cls.parse(read_yaml(path), path, **extra)

    def to_yaml(self) -> str:
        """The file's text: what differs from the defaults. Unknown keys that were read are written back."""
        return dump_yaml(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The file's content as plain values."""
        data: dict[str, Any] = {"apiVersion": self.apiVersion, "kind": self.KIND}
        metadata = getattr(self, "metadata", None)
        if isinstance(metadata, BaseModel):
            data["metadata"] = metadata.model_dump(mode="json", exclude_none=True)
        return {**data, **written(self)}


def written(model: BaseModel) -> dict[str, Any]:
    """The values of `model` that differ from the defaults, by their names in the file, and the unknown ones."""
    data = model.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name, field in type(model).model_fields.items():
        key, value = field.alias or name, getattr(model, name)
        if field.exclude:
            continue
        if value == field.get_default(call_default_factory=True):
            data.pop(key, None)
        elif isinstance(value, BaseModel):
            data[key] = written(value)
        elif isinstance(value, dict):
            data[key] = {k: written(v) if isinstance(v, BaseModel) else data[key][k] for k, v in value.items()}
    return data


def describe(error: ValidationError, limit: int = 3) -> str:
    """One line for a pydantic error: "field.path: what is wrong, got value", the first `limit` of them."""
    parts = []
    for item in error.errors()[:limit]:
        where = ".".join(str(part) for part in item["loc"])
        parts.append(f"{where}: {describe_item(item)}" if where else describe_item(item))
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def describe_item(item: Any) -> str:
    """What one entry of `ValidationError.errors()` says, with the offending value."""
    if item["type"] == "missing":
        return "is required"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return message
    value = repr(item["input"])
    return f"expected {message}, got {value if len(value) <= 60 else value[:57] + '...'}"


def _unknown_keys(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, Iterable[str]]]:
    """Dotted paths of the keys no model knows, with what would have been known there."""
    fields = type(model).model_fields
    known = [field.alias or name for name, field in fields.items() if not field.exclude]
    for key in model.model_extra or {}:
        yield f"{prefix}{key}", known
    for name, field in fields.items():
        if not field.exclude:
            yield from _unknown_in(getattr(model, name), f"{prefix}{field.alias or name}")


def _unknown_in(value: Any, path: str) -> Iterator[tuple[str, Iterable[str]]]:
    if isinstance(value, BaseModel):
        yield from _unknown_keys(value, f"{path}.")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unknown_in(item, f"{path}.{key}")


def _suggest(path: str, known: Iterable[str]) -> str:
    close = get_close_matches(path.rpartition(".")[2], list(known), n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""
