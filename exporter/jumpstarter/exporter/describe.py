# SPDX-License-Identifier: Apache-2.0
"""LabService.Describe: what the drivers of a session can do, from their signatures and docstrings."""

from __future__ import annotations

import inspect
import json
import typing
from typing import Any

from jumpstarter.exporter.dispatch import DriverSlot, Exported
from jumpstarter_protocol.jumpstarter.lab.v1 import lab_pb2

__all__ = ["describe"]

VERSION = "1"
_KINDS = {
    "call": lab_pb2.MethodDescription.KIND_CALL,
    "stream": lab_pb2.MethodDescription.KIND_STREAM,
    "bytes": lab_pb2.MethodDescription.KIND_BYTES,
}


def describe(slots: dict[str, DriverSlot]) -> lab_pb2.DescribeResponse:
    """The description of every driver of a session."""
    return lab_pb2.DescribeResponse(
        version=VERSION,
        drivers=[
            lab_pb2.DriverDescription(
                uuid=uuid,
                path=slot.path,
                driver_type=slot.driver.driver_type,
                methods=[_method(exported) for exported in slot.methods.values()],
            )
            for uuid, slot in slots.items()
        ],
    )


def _method(exported: Exported) -> lab_pb2.MethodDescription:
    signature = exported.signature
    doc = inspect.getdoc(exported.function) or ""
    return lab_pb2.MethodDescription(
        name=exported.name,
        kind=_KINDS[exported.mark.kind],
        readonly=exported.mark.readonly,
        doc=doc.partition("\n\n")[0].replace("\n", " "),
        returns=_type_name(signature.returns) if signature else "bytes",
        params=[_parameter(p) for p in signature.parameters.values()] if signature else [],
    )


def _parameter(parameter: inspect.Parameter) -> lab_pb2.Parameter:
    required = parameter.default is inspect.Parameter.empty and parameter.kind not in (
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    )
    default = ""
    if parameter.default is not inspect.Parameter.empty:
        default = json.dumps(parameter.default, default=str)
    prefix = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
    return lab_pb2.Parameter(
        name=prefix + parameter.name, type=_type_name(parameter.annotation), required=required, default=default
    )


def _type_name(hint: Any) -> str:
    if isinstance(hint, str):
        return hint
    if hint is inspect.Parameter.empty or hint is Any:
        return "any"
    if isinstance(hint, type) and typing.get_origin(hint) is None:
        return hint.__name__
    return str(hint).replace("typing.", "")
