# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module tftp."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._serving import ServerAction, server_spec


class ActionModule(ServerAction):
    """Puts files on the TFTP server of the device, starts and stops it."""

    OP = "tftp"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = server_spec("tftp")
