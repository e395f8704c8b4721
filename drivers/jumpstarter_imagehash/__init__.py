# SPDX-License-Identifier: Apache-2.0
"""Compare what a device shows with a picture of what it should show."""

from jumpstarter_imagehash.compare import HASHES, Comparison, compare, load_picture
from jumpstarter_imagehash.imagehash import ImageHash

__all__ = ["HASHES", "Comparison", "ImageHash", "compare", "load_picture"]
