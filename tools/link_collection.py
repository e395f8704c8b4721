# SPDX-License-Identifier: Apache-2.0
"""Make the collection in this repository visible to the Ansible of the running environment, by a relative link.

``ansible_collections/jumpstarter/lab`` in site-packages is one of the places Ansible searches by itself, so no setting
and no environment variable is needed, and what is edited here is what runs.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Create or correct the link."""
    link = Path(sysconfig.get_path("purelib")) / "ansible_collections" / "jumpstarter" / "lab"
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(ROOT, link.parent)
    if link.is_symlink():
        if os.readlink(link) == target:
            return
        link.unlink()
    link.symlink_to(target, target_is_directory=True)


if __name__ == "__main__":
    main()
