# SPDX-License-Identifier: Apache-2.0
"""How alike two pictures are, by perceptual hashes (of the library ImageHash)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["HASHES", "Comparison", "compare", "load_picture"]

#: Names of hashes and the functions of the library. What each is good at: docs/drivers/imagehash.md.
HASHES = {"average": "average_hash", "difference": "dhash", "perceptual": "phash", "wavelet": "whash"}

_SMALLEST, _LARGEST = 2, 64


@dataclass(frozen=True)
class Comparison:
    """distance: how many of the hash's bits differ. bits: how many it has."""

    distance: int
    bits: int


def compare(
    picture: Image.Image, reference: Image.Image, *, hash_name: str = "perceptual", hash_size: int = 8
) -> Comparison:
    """Compare two pictures. hash_size: side of the hash; it has hash_size² bits, and more of them see more detail.

    Raises ValueError for a hash there is none of and for a size it cannot have.
    """
    if hash_name not in HASHES:
        raise ValueError(f'hash is "{hash_name}", must be one of {", ".join(HASHES)}')
    check_hash_size(hash_size, hash_name)
    function = _function(hash_name)
    distance = function(picture, hash_size=hash_size) - function(reference, hash_size=hash_size)
    return Comparison(distance=int(distance), bits=hash_size * hash_size)


def check_hash_size(hash_size: int, hash_name: str = "") -> None:
    """Raise ValueError for a size that a hash cannot have."""
    if not _SMALLEST <= hash_size <= _LARGEST:
        raise ValueError(f"hash_size is {hash_size}, must be {_SMALLEST} to {_LARGEST}")
    if hash_name == "wavelet" and hash_size & (hash_size - 1):
        raise ValueError(f"hash_size is {hash_size}, must be a power of two for the wavelet hash")


def load_picture(path: str | os.PathLike[str]) -> Image.Image:
    """A picture file, completely read. Raises ValueError for what is no picture, OSError for what cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError:
        raise ValueError(f"{os.fspath(path)} is no picture that Pillow knows") from None


def _function(hash_name: str) -> Any:
    import imagehash

    return getattr(imagehash, HASHES[hash_name])
