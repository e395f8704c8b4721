# SPDX-License-Identifier: Apache-2.0
"""Client of ustreamer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter_driver_ustreamer.common import UStreamerState
from jumpstarter_driver_video.client import VideoClient

if TYPE_CHECKING:
    from jumpstarter_driver_video.common import VideoState

__all__ = ["UStreamerClient"]


@dataclass(kw_only=True)
class UStreamerClient(VideoClient):
    """A V4L2 device through ustreamer."""

    def state(self) -> UStreamerState:
        """What ustreamer says about the device."""
        value = dict(self.call("state"))
        source = value.get("result", {}).get("source", {})
        # Jumpstarter 0.9 does not say what all video sources say.
        size = source.get("resolution", {})
        common = {"online": source.get("online", False), "width": size.get("width"), "height": size.get("height")}
        return UStreamerState.model_validate({**common, "fps": source.get("captured_fps"), **value})

    def stream_path(self) -> str:
        """Path of the stream of pictures."""
        return "/stream"

    def describe_state(self, state: VideoState) -> list[str]:
        """Lines for people."""
        assert isinstance(state, UStreamerState)
        lines = [*super().describe_state(state), f"Encoder:    {state.result.encoder.type}"]
        return lines + ([f"Restarts:   {state.restarts} ({state.last_exit})"] if state.restarts else [])
