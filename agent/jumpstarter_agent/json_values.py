# SPDX-License-Identifier: Apache-2.0
"""Values of driver calls as JSON, for the socket."""

from __future__ import annotations

import base64
import dataclasses
import datetime
import enum
import math
import uuid
from pathlib import PurePath
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any) -> Any:
    """The value with JSON types only: bytes become {"base64": text}, dates ISO 8601, models and dataclasses objects.

    Numbers JSON does not know (NaN, infinities) become their names as text.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, enum.Enum):
        return to_json(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {"base64": base64.b64encode(bytes(value)).decode("ascii")}
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, (uuid.UUID, PurePath)):
        return str(value)
    return _container(value)


def _container(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)
    return to_json(dump(mode="json")) if callable(dump) else str(value)
