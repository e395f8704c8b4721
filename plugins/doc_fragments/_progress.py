# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Progress of long work; this doc fragment is **PRIVATE** to the collection."""

    DOCUMENTATION = r"""
options:
  progress:
    description:
      - What is shown while the task works. V(auto) shows a line every 10 % or 10 seconds, each phase and each note;
        V(verbose) shows everything, V(off) nothing. With C(-vv) V(auto) shows everything too, with C(no_log) nothing.
    type: str
    choices: [auto, "off", verbose]
    default: auto
"""
