# SPDX-License-Identifier: Apache-2.0
"""The collection as it would be shipped passes ansible-test sanity (validate-modules, imports, pylint and the rest)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("sanity_run", Path(__file__).with_name("run.py"))
assert _SPEC is not None and _SPEC.loader is not None
sanity_run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sanity_run)


@pytest.mark.timeout(600)
def test_ansible_test_sanity_finds_nothing() -> None:
    done = sanity_run.run()
    found = [line for line in done.stdout.splitlines() if line.startswith(("ERROR", "FATAL"))]
    assert done.returncode == 0, "\n".join(found) or done.stdout[-3000:]
    assert 'Running sanity test "validate-modules"' in done.stdout
