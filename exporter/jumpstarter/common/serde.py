# SPDX-License-Identifier: Apache-2.0
"""How arguments and results travel.

Two codecs:

*value* is what every Jumpstarter peer understands: ``google.protobuf.Value``. Numbers arrive as floats, ``bytes`` must
be UTF-8, tuples and sets become lists, NaN and infinities become null.

*json* is ours, used when both peers say so (metadata ``x-jumpstarter-lab-codec: json1``): the whole value is one JSON
text in ``Value.string_value``. Integers of any size, floats and bytes survive, and structures cost a tenth.

Either way a driver gets arguments converted to its annotations, see `jumpstarter.driver.signature`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from base64 import b64decode, b64encode
from collections.abc import Mapping
from enum import Enum
from typing import Any
from uuid import UUID

from google.protobuf import struct_pb2

__all__ = ["CODEC_HEADER", "CODEC_JSON", "decode_json", "decode_value", "encode_json", "encode_value"]

CODEC_HEADER = "x-jumpstarter-lab-codec"
CODEC_JSON = "json1"

_BYTES_TAG = "__jumpstarter.bytes__"
_LARGEST_EXACT = 2**53


def _simplify(value: Any) -> Any:
    """One step from an object the codecs do not know towards one they do."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (UUID,)):
        return str(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    dump = getattr(value, "model_dump", None)  # pydantic models, without importing pydantic
    if dump is not None:
        return dump()
    if isinstance(value, Mapping):
        return dict(value)
    from pydantic_core import PydanticSerializationError, to_jsonable_python

    try:
        return to_jsonable_python(value)  # dates, times, paths, addresses, ...
    except PydanticSerializationError as error:
        raise ValueError(f"a value of type {type(value).__name__} cannot be sent: {error}") from error


def encode_value(value: Any) -> struct_pb2.Value:
    """Encode for any peer. Raises ValueError for what a ``Value`` cannot hold."""
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if isinstance(value, Enum):
        return encode_value(value.value)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int):
        if not -_LARGEST_EXACT <= value <= _LARGEST_EXACT:
            raise ValueError(f"the integer {value} is beyond 2**53 and would lose digits on the way to this peer")
        return struct_pb2.Value(number_value=value)
    if isinstance(value, float):
        return struct_pb2.Value(number_value=value) if math.isfinite(value) else encode_value(None)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        try:
            return struct_pb2.Value(string_value=bytes(value).decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"bytes that are not UTF-8 cannot be sent to this peer ({error})") from error
    if isinstance(value, dict):
        return struct_pb2.Value(
            struct_value=struct_pb2.Struct(fields={_key(k): encode_value(v) for k, v in value.items()})
        )
    if isinstance(value, (list, tuple)):
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=[encode_value(v) for v in value]))
    return encode_value(_simplify(value))


def decode_value(value: struct_pb2.Value) -> Any:
    """The Python object in a ``Value``; numbers are floats."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return {k: decode_value(v) for k, v in value.struct_value.fields.items()}
    if kind == "list_value":
        return [decode_value(v) for v in value.list_value.values]
    return getattr(value, kind)


def _key(key: Any) -> str:
    key = key.value if isinstance(key, Enum) else key
    return key if isinstance(key, str) else str(key)


def _tagged(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return {_BYTES_TAG: b64encode(value).decode()}
    return _simplify(value)


def _untag(value: dict[str, Any]) -> Any:
    if len(value) == 1 and isinstance(data := value.get(_BYTES_TAG), str):
        return b64decode(data)
    return value


def encode_json(value: Any) -> str:
    """Encode for a peer that speaks the json codec. Raises ValueError for what cannot be sent."""
    try:
        return json.dumps(value, default=_tagged, separators=(",", ":"))
    except TypeError:
        # Keys that JSON does not know (enums, UUIDs, bytes): rare, so only then the long way.
        return json.dumps(_plain_keys(value), default=_tagged, separators=(",", ":"))


def _plain_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(k): _plain_keys(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain_keys(v) for v in value]
    return value


def decode_json(text: str) -> Any:
    """The Python object in a text of the json codec. Raises ValueError when it is not one."""
    if _BYTES_TAG in text:
        return json.loads(text, object_hook=_untag)
    return json.loads(text)
