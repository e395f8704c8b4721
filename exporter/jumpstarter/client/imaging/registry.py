# SPDX-License-Identifier: Apache-2.0
"""Images that the exporter fetches from an OCI registry itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from jumpstarter.client.aio import AsyncNode
from jumpstarter.client.imaging.result import FlashResult, ImagingError, Meter
from jumpstarter.common.exceptions import DriverError

__all__ = ["flash_from_registry"]


async def flash_from_registry(
    node: AsyncNode, url: str, *, target: str | None, options: Mapping[str, Any], meter: Meter
) -> FlashResult:
    """Have the flasher ``node`` write the image of an artifact (``oci://...``). Raises ImagingError.

    ``options``: username and password of the registry, too; those of ``OCI_USERNAME`` and ``OCI_PASSWORD`` (of this
    process: the exporter gives its own to no registry that a client names) when there are none.
    """
    login = {"username": os.environ.get("OCI_USERNAME"), "password": os.environ.get("OCI_PASSWORD")}
    if not options.get("username") and not options.get("password") and any(login.values()):
        if not all(login.values()):
            raise ImagingError("OCI_USERNAME and OCI_PASSWORD: give both or neither", code="refused")
        options = {**options, **login}
    if not node.has_method("flash_oci_image"):
        raise ImagingError(f"{url}: this flasher fetches no images from registries", code="refused")
    result: Mapping[str, Any] | None = None
    done = 0
    try:
        async for event in node.streamingcall("flash_oci_image", url, target, dict(options)):
            kind = event.get("event")
            if kind == "progress":
                done, total = int(event["done"]), event.get("total")
                meter.tell(str(event["phase"]), done, int(total) if total is not None else None)
            elif kind == "error":
                raise ImagingError(
                    str(event["message"]), code=str(event["code"]), state=str(event["state"]),
                    written=int(event["written"]),
                )  # fmt: skip
            elif kind == "result":
                result = event
    except DriverError as error:
        state = "the target's state is unknown" if done else "nothing is known to be written"
        raise ImagingError(error.details, code="io", state=state) from error
    if result is None:
        raise ImagingError(
            "the exporter ended the flash without a result", code="io", state="the target's state is unknown"
        )
    size = result.get("size")
    reason = "" if result["changed"] else "the target already holds this image"
    return FlashResult(
        changed=bool(result["changed"]), target=str(result["target"]), size=int(size) if size is not None else None,
        written_bytes=int(result["written"]), skipped_bytes=int(result["skipped"]),
        moved_bytes=int(result["received"]), sha256=str(result["sha256"]), verified=bool(result["verified"]),
        reason=reason or f"the target holds another image than {result['digest']}",
    )  # fmt: skip
