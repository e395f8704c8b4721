# SPDX-License-Identifier: Apache-2.0
"""Handles by which a driver call names a byte stream of its client."""

from __future__ import annotations

from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

__all__ = ["ClientStreamResource", "PresignedRequestResource", "ResourceHandle", "parse_handle"]


class ClientStreamResource(BaseModel):
    """A stream the client opened beforehand. x_jmp_content_encoding: gzip, xz, bz2 or zstd when what the client sends
    (or wants to receive) is compressed so."""

    model_config = ConfigDict(extra="ignore")
    kind: Literal["client_stream"] = "client_stream"
    uuid: UUID
    x_jmp_content_encoding: str | None = None


class PresignedRequestResource(BaseModel):
    """A URL from which (GET) or to which (PUT) the exporter itself transfers."""

    model_config = ConfigDict(extra="ignore")
    kind: Literal["presigned_request"] = "presigned_request"
    headers: dict[str, str] = {}
    url: str
    method: Literal["GET", "PUT"] = "GET"


ResourceHandle = ClientStreamResource | PresignedRequestResource


def parse_handle(handle: Any) -> ResourceHandle:
    """The handle in a call's argument. Raises ValueError when it is none."""
    if isinstance(handle, (ClientStreamResource, PresignedRequestResource)):
        return handle
    try:
        parsed: ResourceHandle = TypeAdapter(ResourceHandle).validate_python(handle)
    except ValidationError:
        raise ValueError(f"not a resource handle: {handle!r:.120}") from None
    return parsed
