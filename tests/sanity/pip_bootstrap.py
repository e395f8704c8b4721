# SPDX-License-Identifier: Apache-2.0
"""Stands in for get-pip.py: takes pip from the interpreter's ensurepip and lets it fetch the version asked for."""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys

# get-pip.py installs these two by default and takes options against it; pip itself does not know the options.
ONLY_GET_PIP_KNOWS = {"--no-setuptools", "--no-wheel"}


def main() -> int:
    """Install what the command line names."""
    ensurepip.bootstrap(default_pip=True)
    # ensurepip points this at /dev/null, which would hide the machine's certificates and index.
    os.environ.pop("PIP_CONFIG_FILE", None)
    wanted = [argument for argument in sys.argv[1:] if argument not in ONLY_GET_PIP_KNOWS]
    return subprocess.call([sys.executable, "-m", "pip", "install", *wanted])


if __name__ == "__main__":
    sys.exit(main())
