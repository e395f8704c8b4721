# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every action of the collection has in common. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import os
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase

from ansible_collections.jumpstarter.lab.plugins.module_utils._agent import AgentError, AgentGone
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._duration import seconds
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._progress import ProgressPrinter
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._reach import VARIABLES, ReachError, find_reach
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._show import safely
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._spawn import ensure_agent


class LabAction(ActionBase):  # type: ignore[misc]
    """An action is a specification of its options and one request to the agent.

    Subclasses set the class attributes and, where their options are not the arguments of the request as they stand,
    override :meth:`perform`.
    """

    _requires_connection = False
    _supports_async = False

    OP: t.ClassVar[str]
    """Operation of the agent."""
    SPEC: t.ClassVar[dict[str, dict[str, t.Any]]] = {}
    """Argument specification, as of Ansible modules."""
    RULES: t.ClassVar[dict[str, t.Any]] = {}
    """``required_if``, ``mutually_exclusive`` and so on."""
    DURATIONS: t.ClassVar[tuple[str, ...]] = ()
    """Options that are durations; sent as seconds."""

    host: str
    _vars: dict[str, t.Any]

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        self._vars = self._host_vars(task_vars or {})
        self.host = str(self._task.delegate_to or self._vars.get("inventory_hostname"))
        options = {name: value for name, value in self._options().items() if value is not None}
        try:
            for name in self.DURATIONS:
                if name in options:
                    options[name] = seconds(options[name], name)
            result.update(self.perform(options))
        except (AgentError, ValueError) as error:
            result.update(self._failure(error))
        return result

    def _options(self) -> dict[str, t.Any]:
        try:
            _unused, options = self.validate_argument_spec(argument_spec=self.SPEC, **self.RULES)
        except AnsibleActionFail:
            if not self._task.no_log:
                raise
            raise AnsibleActionFail(self._unsaid("its options are not valid", {})) from None
        valid: dict[str, t.Any] = options
        return valid

    def perform(self, options: dict[str, t.Any]) -> dict[str, t.Any]:
        """Do the task with validated *options* (unset ones left out) and return its result."""
        return self.ask(self.OP, options)

    def ask(self, op: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        """One request to the agent about this task's host; its events are shown while it works."""
        shown = str(args.pop("progress", "auto"))
        progress = ProgressPrinter(
            self.host,
            "off" if self._task.no_log else shown,
            self._display.verbosity,
            safely(self._display.display),
        )
        frame = {
            "op": op,
            "host": {"name": self.host, "reach": self._reach(), "lease": {}},
            "args": args,
            "check": bool(self._task.check_mode),
            "diff": bool(self._task.diff),
            "task": {
                "name": self._task.get_name(),
                "uuid": str(self._task._uuid),
                "play": str(self._vars.get("ansible_play_name", "")),
                "play_uuid": str(getattr(self._task.get_play(), "_uuid", "")),
                "no_log": bool(self._task.no_log),
            },
        }
        agent = ensure_agent(safely(self._display.warning))
        try:
            value = agent.request(frame, progress)
        except AgentGone as error:
            log = os.path.join(os.path.dirname(agent.path), "agent.log")
            raise AgentGone(
                f"{self.host}: {op}: {error}; its exporters end their sessions and power off (log {log})"
            ) from error
        value.setdefault("changed", False)
        if not self._task.diff:
            value.pop("diff", None)
        return value

    def find_file(self, path: str, what: str) -> str:
        """Absolute path of a file of the control node: as given, or looked for as Ansible looks for ``files``.

        :raises ValueError: it is not there.
        """
        path = os.path.expanduser(path)
        try:
            found = path if os.path.isabs(path) else str(self._find_needle("files", path))
        except AnsibleError:
            found = os.path.abspath(path)
        if not os.path.exists(found):
            raise ValueError(f"{self.host}: {self.OP}: {what} {path} is not there; nothing was changed")
        if not os.access(found, os.R_OK):
            raise ValueError(f"{self.host}: {self.OP}: {what} {found} cannot be read by this user; nothing was changed")
        return found

    def _host_vars(self, task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        """Variables of the host the task acts on: with ``delegate_to``, the other one's."""
        target = self._task.delegate_to
        if not target:
            return task_vars
        delegated: dict[str, t.Any] = task_vars.get("ansible_delegated_vars", {}).get(target, {})
        return delegated or task_vars

    def _reach(self) -> dict[str, t.Any]:
        values = {name: self._templar.template(self._vars[name]) for name in VARIABLES if name in self._vars}
        return find_reach(self.host, values, self.folders())

    def folders(self) -> list[str]:
        """Where relative paths in host variables are looked for, in this order."""
        return [str(self._vars[name]) for name in ("inventory_dir", "playbook_dir") if self._vars.get(name)]

    def _failure(self, error: Exception) -> dict[str, t.Any]:
        message = str(error)
        if not message.startswith(f"{self.host}:"):
            message = f"{self.host}: {self.OP}: {message}"
        code = error.code if isinstance(error, AgentError) else "invalid"
        data = error.data if isinstance(error, AgentError) else {}
        if self._task.no_log:
            message = self._unsaid(f"failed with {code}", data)
        return {"changed": False, **data, "failed": True, "msg": message, "error_code": code}

    def _unsaid(self, what: str, data: t.Mapping[str, t.Any]) -> str:
        """The message of a task with no_log: Ansible prints it as it is, and ours quote what they were given."""
        where = data.get("recording_dir")
        hint = f"what the board did is in {where}" if where else "run it without no_log to see why"
        return f"{self.host}: {self.OP}: {what}; the details are hidden by no_log ({hint})"


__all__ = ("AnsibleActionFail", "LabAction", "ReachError")
