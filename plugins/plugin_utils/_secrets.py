# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Knows what must not be written down and masks it. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import os
import re
import typing as t

from ansible.errors import AnsibleError

try:  # ansible-core >= 2.22 knows secrets itself
    from ansible.module_utils.secrets import mask_secrets as _core_mask
except ImportError:
    _core_mask = None

MASK = "********"
# Shorter ones ("root", "1") would mask half of the report and are no secret worth the name.
SHORTEST = 5
_SECRET_NAME = re.compile(r"pass(word|wd|phrase)?$|_pass(word|wd|phrase)?_|secret|token$|api_?key", re.IGNORECASE)
# Where a secret is kept is none itself; and these hold the variables of all over again.
_NOT_SECRET = re.compile(r"_(file|path|dir)$", re.IGNORECASE)
_SKIPPED = frozenset({"vars", "hostvars", "groups"})


class Secrets:
    """Values that are secret by the name of their variable, or because they come out of a vault."""

    def __init__(self) -> None:
        self._values: set[str] = set()

    def add(self, value: t.Any) -> None:
        text = str(value)
        if len(text) >= SHORTEST:
            self._values.add(text)

    def learn_from_play(self, play: t.Any) -> None:
        """Collect from the variables of the play and of all hosts."""
        manager = play.get_variable_manager()
        inventory = manager._inventory
        self.learn(manager.get_vars(play=play, include_hostvars=False))
        for host in inventory.get_hosts() if inventory is not None else ():
            self.learn(manager.get_vars(play=play, host=host, include_hostvars=False))

    def learn(self, variables: t.Any, secret: bool = False) -> None:
        """Collect from nested *variables*; below a secret name everything is secret."""
        if isinstance(variables, t.Mapping):
            for name, value in variables.items():
                if name in _SKIPPED:
                    continue
                by_name = bool(_SECRET_NAME.search(str(name))) and not _NOT_SECRET.search(str(name))
                self.learn(value, secret or by_name)
        elif isinstance(variables, (list, tuple)):
            for value in variables:
                self.learn(value, secret)
        elif type(variables).__name__ == "EncryptedString" or (secret and isinstance(variables, (str, int))):
            try:
                self.add(variables)
            except AnsibleError:
                # Cannot be decrypted in this run, so nothing can show it either.
                return

    def mask(self, text: str) -> str:
        """*text* with every known secret masked, longest first."""
        for value in sorted(self._values, key=len, reverse=True):
            text = text.replace(value, MASK)
        return str(_core_mask(text, mask_placeholder=MASK)) if _core_mask is not None else text

    def mask_all(self, value: t.Any) -> t.Any:
        """A copy of nested *value* with every known secret masked."""
        if isinstance(value, str):
            return self.mask(value)
        if isinstance(value, t.Mapping):
            return {key: self.mask_all(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mask_all(inner) for inner in value]
        return value

    def mask_file(self, path: str) -> None:
        """Mask known secrets in a text file, in place; left alone when it holds none."""
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
        masked = self.mask(text)
        if masked != text:
            partial = path + ".masked"
            with open(partial, "w", encoding="utf-8", errors="surrogateescape") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(masked)
            os.replace(partial, path)
