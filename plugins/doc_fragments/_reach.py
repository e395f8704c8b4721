# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """How a board is reached; this doc fragment is **PRIVATE** to the collection."""

    DOCUMENTATION = r"""
options: {}
requirements:
  - Python package C(jumpstarter-lab) in the Python that runs Ansible
notes:
  - A host is a device under test. One of these host variables says how its exporter is reached -
    C(jumpstarter_exporter_config) (file of a local exporter, started for the run), C(jumpstarter_endpoint)
    (C(host:port) of a running exporter, with C(jumpstarter_tls_ca), C(jumpstarter_tls_cert),
    C(jumpstarter_tls_key), C(jumpstarter_passphrase_file) or C(jumpstarter_insecure)), C(jumpstarter_selector) or
    C(jumpstarter_exporter) (a lease from the controller, as the client that C(jumpstarter_client), an alias, or
    C(jumpstarter_client_config), a file, names; without them the one that C(jmp) would use).
  - Relative paths in these variables are looked for beside the inventory, then beside the playbook.
  - The first task on a host takes its lease when M(jumpstarter.lab.lease) did not, and it is given back when the
    run ends, however it ends.
"""
