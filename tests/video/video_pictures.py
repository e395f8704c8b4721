# SPDX-License-Identifier: Apache-2.0
"""Pictures that a hash tells apart, as a device's screen could look."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

SIZE = (640, 480)


def login_screen(clock: str = "12:00") -> Image.Image:
    """A panel with two fields in the middle, and a clock in a corner."""
    picture = Image.new("RGB", SIZE, (24, 32, 72))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((180, 120, 460, 360), fill=(220, 222, 228))
    draw.rectangle((210, 190, 430, 220), fill="white", outline="black")
    draw.rectangle((210, 250, 430, 280), fill="white", outline="black")
    draw.rectangle((300, 310, 430, 340), fill=(30, 90, 200))
    draw.text((560, 10), clock, fill="white")
    return picture


def panic_screen() -> Image.Image:
    """White lines on black, from the top left on."""
    picture = Image.new("RGB", SIZE, "black")
    draw = ImageDraw.Draw(picture)
    for line in range(20):
        draw.text((4, 4 + 16 * line), f"[ {line / 7:9.6f}] Kernel panic - not syncing: line {line}", fill="white")
    return picture


def save(picture: Image.Image, path: Path) -> Path:
    """Write a picture; the ending says the format."""
    picture.save(path, quality=95)
    return path
