# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action of the module lease."""

from __future__ import annotations

import typing as t

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._action import LabAction


class ActionModule(LabAction):
    """Takes, extends or gives back the lease of the host's device."""

    OP = "lease"
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "duration": {"type": "str"},
        "lifetime": {"type": "str", "choices": ["run", "play", "detached"], "default": "run"},
        "hold_on_failure": {"type": "str"},
        "name": {"type": "str"},
        "timeout": {"type": "str"},
        "selector": {"type": "str"},
        "exporter": {"type": "str"},
        "begin_time": {"type": "str"},
        "tags": {"type": "dict"},
        "context": {"type": "dict"},
        "allow_disabled": {"type": "bool", "default": False},
        "wait_for_match": {"type": "bool", "default": False},
        "progress": {"type": "str", "choices": ["auto", "off", "verbose"], "default": "auto"},
    }
    RULES: t.ClassVar[dict[str, t.Any]] = {"required_if": [("lifetime", "detached", ("name",))]}
    DURATIONS = ("duration", "hold_on_failure", "timeout")

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        value = self.ask(self.OP, options)
        connection = value.pop("ssh", None) or {}
        facts = value.pop("ansible_facts", None) or {}
        # Ansible drops connection variables from facts, so that a device cannot redirect its own connection; these come
        # from our own agent and are published as host variables instead.
        connection.update({name: facts.pop(name) for name in list(facts) if name.startswith("ansible_")})
        if facts:
            value["ansible_facts"] = facts
        if connection:
            value["connection"] = connection
            self.publish(connection, value)
        return value

    def publish(self, variables: dict[str, t.Any], value: dict[str, t.Any]) -> None:
        """Make *variables* host variables of the device for the rest of the run."""
        register = getattr(self, "register_host_variables", None)
        if register is None:  # ansible-core < 2.21 takes it from the result
            value["add_host"] = {"host_name": self.host, "groups": [], "host_vars": variables}
        elif self._task.delegate_to:
            # Registered variables go to the host of the play, and the device is another one.
            self.add_host(host_name=self.host, parent_group_names=[], host_vars=variables)
        else:
            register(variables)
