# SPDX-License-Identifier: Apache-2.0
"""What exporter and client of ustreamer share."""

from __future__ import annotations

from pydantic import BaseModel

from jumpstarter_driver_video.common import VideoState

__all__ = ["UStreamerState"]


class UStreamerState(VideoState):
    """What ustreamer says about itself (``GET /state``), and what every video source says.

    restarts: how many times it was started again in this session because it had ended by itself. last_exit: how it
    ended the last time.
    """

    class Result(BaseModel):
        """The part of the answer that Jumpstarter 0.9 gives as well."""

        class Encoder(BaseModel):
            """How pictures are made. quality: percent."""

            type: str
            quality: int

        class Source(BaseModel):
            """The capture device."""

            class Resolution(BaseModel):
                """In pixels."""

                width: int
                height: int

            online: bool
            desired_fps: int
            captured_fps: int
            resolution: Resolution

        encoder: Encoder
        source: Source

    ok: bool
    result: Result
    restarts: int = 0
    last_exit: str = ""
