# SPDX-License-Identifier: Apache-2.0
"""What exporter and client of a video source share."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["VideoState", "jpeg_size"]


class VideoState(BaseModel):
    """State of a video source.

    online: it delivers pictures. width, height: of a picture, in pixels; fps: pictures a second; None where the source
    does not tell. problem: why it is not online, or empty.
    """

    online: bool
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    problem: str = ""


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height of a JPEG picture (ITU-T T.81, B.2.2). Raises ValueError for what is none, or no whole one."""
    if data[:2] != b"\xff\xd8":
        raise ValueError(f"{len(data)} bytes that are no JPEG picture")
    if b"\xff\xd9" not in data[-64:]:  # some cameras pad their pictures
        raise ValueError(f"{len(data)} bytes of a JPEG picture without its end")
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame, not DHT, JPG or DAC
            return int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ValueError(f"{len(data)} bytes of a JPEG picture without its size")
