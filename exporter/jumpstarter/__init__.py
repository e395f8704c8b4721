# SPDX-License-Identifier: Apache-2.0
"""The runtime of jumpstarter.lab: drivers, their clients, the exporter that serves them.

Import names are those Jumpstarter documents. The original distribution uses the same ones, so the two cannot live in
one environment: whichever comes first on the path would be mixed with the other's drivers. That is refused here.
"""

from __future__ import annotations

import os
import sys

_ORIGINAL = ("jumpstarter-", "jumpstarter_protocol-", "jumpstarter_cli-", "jumpstarter_driver_")


def _refuse_original() -> None:
    # A look at the folder names; importlib.metadata would cost more than the rest of the import.
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for name in names:
            if name.startswith(_ORIGINAL) and name.endswith(".dist-info"):
                dist = name.removesuffix(".dist-info").replace("_", "-")
                raise ImportError(
                    f"jumpstarter-lab cannot share a Python environment with the original distribution {dist} (in "
                    f"{folder}): both provide the package 'jumpstarter'. Uninstall one of them or use two virtual "
                    "environments."
                )


_refuse_original()
