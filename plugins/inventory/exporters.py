# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Inventory of a lab: a host per exporter."""

from __future__ import annotations

DOCUMENTATION = r"""
---
name: exporters
short_description: Exporters of a lab, as its controller lists them
description:
  - Makes a host of every exporter that the controller knows, with C(jumpstarter_exporter) set, so that a play over the
    hosts leases each of them by its name.
  - The controller is asked by the session agent of the run, no gRPC is loaded into Ansible.
  - The source is a YAML file whose name ends in C(jumpstarter.yml), C(jumpstarter.yaml), C(exporters.yml) or
    C(exporters.yaml).
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
requirements:
  - Python package C(jumpstarter-lab) in the Python that runs Ansible
extends_documentation_fragment:
  - constructed
  - inventory_cache

options:
  plugin:
    description: Says that the file is for this plugin.
    type: str
    required: true
    choices: [jumpstarter.lab.exporters]
  client:
    description: Client configuration by its alias, as in C(jmp config client list). Without it and without
      O(client_config), the one that C(jmp) would use.
    type: str
  client_config:
    description: Client configuration file. A relative path is relative to the inventory file.
    type: str  # not path: that would be relative to where Ansible is started
  selector:
    description: Only exporters with these labels, as in V(board=rpi4,rack in (a,b),!broken).
    type: str
    default: ""
  only_online:
    description: Leave out exporters that are offline or disabled.
    type: bool
    default: false
  only_available:
    description: Leave out exporters that somebody holds too.
    type: bool
    default: false
  groups_from_labels:
    description: Labels that make groups, C(KEY_VALUE), without writing O(keyed_groups).
    type: list
    elements: str
    default: []
  host_name:
    description: Expression that gives a host its name; C(name) is the exporter's.
    type: str
    default: name
  timeout:
    description: Longest time to wait for the controller, in seconds.
    type: int
    default: 60
notes:
  - Host variables are C(jumpstarter_exporter), C(jumpstarter_client) or C(jumpstarter_client_config) as given here,
    C(jumpstarter_labels), C(jumpstarter_drivers) (client class by driver path), C(jumpstarter_online),
    C(jumpstarter_enabled), C(jumpstarter_status), C(jumpstarter_status_message), C(jumpstarter_lease),
    C(jumpstarter_lease_client) and C(jumpstarter_lease_ends). They are also what expressions see, with C(name) in
    addition.
  - Drivers and holders are known to controllers of jumpstarter.lab only.
seealso:
  - module: jumpstarter.lab.exporter_info
  - module: jumpstarter.lab.lease
"""

EXAMPLES = r"""
---
# lab.jumpstarter.yml
plugin: jumpstarter.lab.exporters
selector: board in (rpi4, imx8)
only_online: true
groups_from_labels: [board, rack]
compose:
  ansible_connection: "'jumpstarter.lab.console'"
groups:
  flashable: "'storage' in jumpstarter_drivers"
---
# free.jumpstarter.yml, asked at most once in five minutes
plugin: jumpstarter.lab.exporters
client: nightly
only_available: true
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/jumpstarter-inventory
cache_timeout: 300
"""

import os
import typing as t

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.template import trust_as_template

from ansible_collections.jumpstarter.lab.plugins.module_utils._agent import AgentClient, AgentError
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._spawn import ensure_agent

SUFFIXES = tuple(f"{name}.{suffix}" for name in ("jumpstarter", "exporters") for suffix in ("yml", "yaml"))


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):  # type: ignore[misc]
    """Asks the agent for the exporters and makes hosts of them."""

    NAME = "jumpstarter.lab.exporters"

    def verify_file(self, path: str) -> bool:
        """Only files that are named as ours."""
        return bool(super().verify_file(path)) and path.endswith(SUFFIXES)

    def parse(self, inventory: t.Any, loader: t.Any, path: str, cache: bool = True) -> None:
        """Fill the inventory from the source file *path*."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        client = self._client(path)
        for exporter in self._exporters(path, client, cache):
            if self._wanted(exporter):
                self._add(exporter, client)

    def _client(self, path: str) -> dict[str, str]:
        alias, config = self.get_option("client"), self.get_option("client_config")
        if alias and config:
            raise AnsibleParserError(f"{path}: client and client_config are both set; keep one of them")
        if not config:
            return {"client": str(alias)} if alias else {}
        found = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), os.path.expanduser(str(config))))
        if not os.path.isfile(found):
            raise AnsibleParserError(f"{path}: client_config {config}: there is no file {found}")
        return {"client_config": found}

    def _exporters(self, path: str, client: dict[str, str], cache: bool) -> list[dict[str, t.Any]]:
        """What the controller lists, or what the cache still holds of it."""
        self.load_cache_plugin()
        key = self.get_cache_key(path)
        enabled = self.get_option("cache")
        if enabled and cache:
            try:
                return list(self._cache[key])
            except KeyError:
                pass  # it has expired, or was never there
        found = self._ask(path, client)
        if enabled:
            self._cache[key] = found
        return found

    def _ask(self, path: str, client: dict[str, str]) -> list[dict[str, t.Any]]:
        try:
            agent = AgentClient(ensure_agent(self.display.warning).path, float(self.get_option("timeout")))
            answer = agent.request({"op": "exporter_info", "args": {**client, "selector": self.get_option("selector")}})
        except AgentError as error:
            raise AnsibleParserError(f"{path}: {error}") from error
        return list(answer["exporters"])

    def _wanted(self, exporter: dict[str, t.Any]) -> bool:
        here = exporter["online"] and exporter["enabled"]
        if self.get_option("only_available"):
            return bool(here and not exporter["lease"] and exporter["available"])
        return bool(here or not self.get_option("only_online"))

    def _add(self, exporter: dict[str, t.Any], client: dict[str, str]) -> None:
        strict = self.get_option("strict")
        variables = {
            "jumpstarter_exporter": exporter["name"],
            **{f"jumpstarter_{name}": value for name, value in client.items()},
            "jumpstarter_labels": exporter["labels"],
            "jumpstarter_drivers": exporter["drivers"],
            "jumpstarter_online": exporter["online"],
            "jumpstarter_enabled": exporter["enabled"],
            "jumpstarter_status": exporter["status"],
            "jumpstarter_status_message": exporter["status_message"],
            "jumpstarter_lease": exporter["lease"],
            "jumpstarter_lease_client": exporter["client"],
            "jumpstarter_lease_ends": exporter["lease_ends"],
        }
        seen = {**variables, "name": exporter["name"]}
        expression = self.get_option("host_name")
        host = str(self._compose(expression, seen)) if expression != "name" else exporter["name"]
        self.inventory.add_host(host)
        for name, value in variables.items():
            self.inventory.set_variable(host, name, value)
        self._set_composite_vars(self.get_option("compose"), seen, host, strict)
        self._add_host_to_composed_groups(self.get_option("groups"), seen, host, strict)
        keyed = [
            {"prefix": label, "key": trust_as_template(f"jumpstarter_labels[{label!r}]")}
            for label in self.get_option("groups_from_labels")
            if label in exporter["labels"]
        ]
        self._add_host_to_keyed_groups(keyed + list(self.get_option("keyed_groups") or []), seen, host, strict)
