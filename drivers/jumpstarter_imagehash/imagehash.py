# SPDX-License-Identifier: Apache-2.0
"""A device's picture against a reference, for tests in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpstarter_imagehash.compare import check_hash_size, load_picture

if TYPE_CHECKING:
    from PIL import Image

    from jumpstarter.client import DriverClient

__all__ = ["ImageHash"]


def _average_hash(picture: Image.Image, hash_size: int = 8) -> Any:
    import imagehash

    return imagehash.average_hash(picture, hash_size=hash_size)


@dataclass
class ImageHash:
    """Takes pictures with a client that has `snapshot()`, and compares them.

        ImageHash(client.video).assert_snapshot("login-screen.png", tolerance=3)

    client: of a video source, a VNC server or a virtual machine. outdir: where a picture that does not match is kept.
    hash_func: a function of the library ImageHash; average_hash by default. hash_size: side of the hash in bits.
    """

    client: DriverClient
    outdir: Path = field(default_factory=Path.cwd)
    hash_func: Callable[..., Any] = _average_hash
    hash_size: int = 8

    def __post_init__(self) -> None:
        check_hash_size(self.hash_size)

    def snapshot(self) -> Image.Image:
        """A picture of the device."""
        take: Callable[[], Image.Image] = self.client.snapshot  # type: ignore[attr-defined]
        return take()

    def hash_snapshot(self) -> Any:
        """The hash of a picture of the device."""
        return self._hash(self.snapshot())

    def assert_snapshot(self, reference_img_file: str | Path, tolerance: int = 1) -> None:
        """Check that the device shows what the reference shows, up to `tolerance` differing bits of the hash.

        Raises AssertionError otherwise, with the picture kept as FAILED_<name of the reference> in `outdir`.
        """
        expected = self._hash(load_picture(reference_img_file))
        picture = self.snapshot()
        found = self._hash(picture)
        distance = int(found - expected)
        if distance <= tolerance:
            return
        kept = Path(self.outdir) / f"FAILED_{Path(reference_img_file).name}"
        # A reference may be of a kind (with a palette, without colours for JPEG) that the picture is not.
        picture.convert("RGB").save(kept)
        raise AssertionError(
            f"the device does not show {reference_img_file}: {distance} bits of the hash differ, {tolerance} may "
            f"({found} instead of {expected}); see {kept}"
        )

    def _hash(self, picture: Image.Image) -> Any:
        return self.hash_func(picture, hash_size=self.hash_size)
