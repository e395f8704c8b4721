# SPDX-License-Identifier: GPL-3.0-or-later
"""What is secret by name, by vault or by Ansible's own register (ansible-core 2.22) is masked in what we write."""

from __future__ import annotations

import pytest

from ansible_collections.jumpstarter.lab.plugins.plugin_utils import _secrets
from ansible_collections.jumpstarter.lab.plugins.plugin_utils._secrets import MASK, Secrets


def test_values_of_secret_names_are_masked_and_paths_to_secrets_are_not() -> None:
    secrets = Secrets()
    secrets.learn({"wifi_password": "hunter2-a", "deep": {"api_token": ["hunter2-b"]}, "token_file": "/etc/token"})
    assert secrets.mask("hunter2-a hunter2-b /etc/token") == f"{MASK} {MASK} /etc/token"


def test_short_values_and_unknown_ones_are_left() -> None:
    secrets = Secrets()
    secrets.learn({"password": "root", "name": "hunter2"})
    assert secrets.mask_all({"a": ["root", "hunter2", 7]}) == {"a": ["root", "hunter2", 7]}


def test_what_ansible_itself_calls_secret_is_masked_with_the_same_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def mask_secrets(value: str, /, *, mask_placeholder: str = "$REDACTED$") -> str:
        return value.replace("fetched-token", mask_placeholder)

    if _secrets._core_mask is not None:  # ansible-core >= 2.22: its own, not our idea of it
        from ansible.module_utils.secrets import register_secret

        register_secret("fetched-token")
    else:
        monkeypatch.setattr(_secrets, "_core_mask", mask_secrets)
    assert Secrets().mask("it says fetched-token twice: fetched-token") == f"it says {MASK} twice: {MASK}"
