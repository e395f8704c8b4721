# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: console
short_description: Run tasks on a device over its serial console
description:
  - Runs commands and moves files over the serial console of the device, through the session agent of the run.
    No network is needed on the device, only a POSIX shell.
  - The console stays open, logged in and recorded between tasks. Commands travel in checked pieces, so that echo and
    kernel messages change neither the output nor the exit status; stdout and stderr are kept apart.
  - A device that is not at a shell (off, in the bootloader, still booting, crashed) makes the host unreachable at
    once, with its phase in the message, instead of hanging. Boot it with M(jumpstarter.lab.boot) first.
author:
  - The jumpstarter.lab contributors (@jumpstarter-lab)
version_added: 0.1.0
notes:
  - A serial line is slow. M(ansible.builtin.raw), M(ansible.builtin.script) and M(jumpstarter.lab.copy_to) suit it
    well; a module that needs Python sends hundreds of kilobytes for every task. Use ssh through the exporter for
    these.
options:
  host:
    description:
      - Name of the device; the session agent knows it by this name.
    type: str
    default: inventory_hostname
    vars:
      - name: inventory_hostname
  delegated_host:
    description:
      - Name of the device a task is delegated to; it goes before O(host).
    type: str
    keyword:
      - name: delegate_to
  driver:
    description:
      - Path of the console driver in the exporter.
    type: str
    default: console
    vars:
      - name: jumpstarter_console_driver
    env:
      - name: JUMPSTARTER_CONSOLE_DRIVER
    ini:
      - section: jumpstarter
        key: console_driver
  command_timeout:
    description:
      - Seconds one command may take, or a duration as in V(90s), V(10m).
    type: str
    default: 10m
    vars:
      - name: jumpstarter_console_timeout
    env:
      - name: JUMPSTARTER_CONSOLE_TIMEOUT
    ini:
      - section: jumpstarter
        key: console_timeout
  allow_slow:
    description:
      - Copy files even when it would take many minutes over the serial line; without it such a copy is refused at once.
    type: bool
    default: false
    vars:
      - name: jumpstarter_console_allow_slow
  pipelining:
    description:
      - Feed modules to the device's Python on its standard input instead of writing a file first.
    type: bool
    default: true
    vars:
      - name: jumpstarter_console_pipelining
  exporter_config:
    description: Exporter configuration of a local board; see the guide on how to reach a board.
    type: str
    vars:
      - name: jumpstarter_exporter_config
  endpoint:
    description: C(host:port) of a running exporter.
    type: str
    vars:
      - name: jumpstarter_endpoint
  selector:
    description: Label selector of a device leased from the controller.
    type: str
    vars:
      - name: jumpstarter_selector
  exporter:
    description: Name of an exporter leased from the controller.
    type: str
    vars:
      - name: jumpstarter_exporter
  client:
    description: Client configuration to lease with, by its alias. Without it the one that C(jmp) would use.
    type: str
    vars:
      - name: jumpstarter_client
  client_config:
    description: Client configuration file to lease with.
    type: str
    vars:
      - name: jumpstarter_client_config
  tls_ca:
    description: File with the certificate authority of the exporter's TLS certificate.
    type: str
    vars:
      - name: jumpstarter_tls_ca
  tls_cert:
    description: File with the client certificate.
    type: str
    vars:
      - name: jumpstarter_tls_cert
  tls_key:
    description: File with the key of the client certificate.
    type: str
    vars:
      - name: jumpstarter_tls_key
  passphrase_file:
    description: File with the passphrase the exporter asks for.
    type: str
    vars:
      - name: jumpstarter_passphrase_file
  insecure:
    description: Speak to the exporter without TLS.
    type: bool
    default: false
    vars:
      - name: jumpstarter_insecure
  inventory_dir:
    description: Where relative paths are looked for first; set by Ansible.
    type: str
    vars:
      - name: inventory_dir
  playbook_dir:
    description: Where relative paths are looked for next; set by Ansible.
    type: str
    vars:
      - name: playbook_dir
"""

import base64
import typing as t

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.module_utils.common.text.converters import to_text
from ansible.plugins.connection import ConnectionBase
from ansible.utils.display import Display

from ansible_collections.jumpstarter.lab.plugins.module_utils._agent import AgentError
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._duration import seconds
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._reach import VARIABLES, ReachError, find_reach
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._show import safely
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._spawn import ensure_agent

display = Display()

# The device is there but cannot be worked with now: Ansible calls the host unreachable, and waiting or booting helps.
_UNREACHABLE = frozenset(
    {
        "wrong_phase",
        "unavailable",
        "exporter_lost",
        "exporter_failed",
        "agent_lost",
        "lease_lost",
        "controller_lost",
        "busy",
    }
)


class Connection(ConnectionBase):  # type: ignore[misc]
    """Serial console of the host's device; all state is in the agent, so connecting and closing cost nothing."""

    transport = "jumpstarter.lab.console"
    has_pipelining = True
    has_tty = True

    def _connect(self) -> Connection:
        self._connected = True
        return self

    def exec_command(self, cmd: str, in_data: bytes | None = None, sudoable: bool = True) -> tuple[int, bytes, bytes]:
        """Run *cmd* in the device's shell; exit status, stdout and stderr are exact."""
        super().exec_command(cmd, in_data=in_data, sudoable=sudoable)
        args: dict[str, t.Any] = {"cmd": to_text(cmd), "timeout": self._timeout()}
        if in_data:
            args["in_data_b64"] = base64.b64encode(in_data).decode()
        value = self._ask("console_exec", args)
        return int(value["rc"]), base64.b64decode(value["stdout_b64"]), base64.b64decode(value["stderr_b64"])

    def put_file(self, in_path: str, out_path: str) -> None:
        """Copy a file to the device; the agent compares the sha256 of both ends."""
        super().put_file(in_path, out_path)
        slow = self.get_option("allow_slow")
        self._ask("console_put", {"src": to_text(in_path), "dest": to_text(out_path), "allow_slow": slow})

    def fetch_file(self, in_path: str, out_path: str) -> None:
        """Copy a file from the device; the agent compares the sha256 of both ends."""
        super().fetch_file(in_path, out_path)
        slow = self.get_option("allow_slow")
        self._ask("console_fetch", {"src": to_text(in_path), "dest": to_text(out_path), "allow_slow": slow})

    def transport_test(self, connect_timeout: float | None = None) -> None:
        """Succeeds when the device is at a shell; C(wait_for_connection) repeats it until then."""
        self._ask("console_exec", {"cmd": ":", "timeout": float(connect_timeout or 10)})

    def reset(self) -> None:
        """Find out anew what the device shows: after a reboot somebody else caused, say."""
        self._ask("console_reset", {})

    def close(self) -> None:
        """Nothing to close: the console stays open in the agent."""
        self._connected = False

    def _timeout(self) -> float:
        try:
            return seconds(self.get_option("command_timeout"), "jumpstarter_console_timeout")
        except ValueError as error:
            raise AnsibleError(f"{self._host}: console: {error}") from error

    @property
    def _host(self) -> str:
        return str(self.get_option("delegated_host") or self.get_option("host"))

    def _ask(self, op: str, args: dict[str, t.Any]) -> dict[str, t.Any]:
        host = self._host
        values = {name: self.get_option(name.removeprefix("jumpstarter_")) for name in VARIABLES}
        folders = [str(folder) for folder in map(self.get_option, ("inventory_dir", "playbook_dir")) if folder]
        frame = {
            "op": op,
            "args": {"driver": self.get_option("driver"), **args},
            "check": False,
            "diff": False,
            "task": {"name": "", "uuid": str(getattr(self, "_task_uuid", "") or "")},
        }
        try:
            frame["host"] = {"name": host, "reach": find_reach(host, values, folders), "lease": {}}
            return ensure_agent(safely(display.warning)).request(frame)
        except ReachError as error:
            raise AnsibleError(str(error)) from error
        except AgentError as error:
            message = str(error) if str(error).startswith(f"{host}:") else f"{host}: console: {error}"
            if error.code in _UNREACHABLE:
                raise AnsibleConnectionFailure(message) from error
            raise AnsibleError(message) from error
