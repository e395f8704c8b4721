# SPDX-License-Identifier: Apache-2.0
"""Images to devices and back, for code in an event loop: `flash`, `dump`, `list_targets`; files: `put`, `get`."""

from __future__ import annotations

from jumpstarter.client.imaging.dumping import DumpResult, dump
from jumpstarter.client.imaging.flashing import flash, list_targets
from jumpstarter.client.imaging.putting import PutResult, get, put
from jumpstarter.client.imaging.result import FlashResult, FlashTarget, ImagingError, Progress, ProgressCallback

__all__ = [
    "DumpResult",
    "FlashResult",
    "FlashTarget",
    "ImagingError",
    "Progress",
    "ProgressCallback",
    "PutResult",
    "dump",
    "flash",
    "get",
    "list_targets",
    "put",
]
