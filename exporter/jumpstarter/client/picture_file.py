# SPDX-License-Identifier: Apache-2.0
"""The option of a command that says where a picture goes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

__all__ = ["picture_file"]

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def picture_file() -> click.Path:
    """Type of a click option: a file whose ending says its format. What is wrong shows before a picture is taken."""
    import click

    class PictureFile(click.Path):
        """Path of a picture that is to be written."""

        def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
            path = str(super().convert(value, param, ctx))
            folder, name = os.path.split(path)
            if os.path.splitext(name)[1].lower() not in _ENDINGS:
                self.fail(f"{path}: a picture's name ends in one of {', '.join(_ENDINGS)}", param, ctx)
            if not os.path.isdir(folder or "."):
                self.fail(f"{path}: there is no directory {folder}", param, ctx)
            return path

    return PictureFile(dir_okay=False, writable=True)
