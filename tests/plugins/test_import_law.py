# SPDX-License-Identifier: GPL-3.0-or-later
"""No plugin brings gRPC or our Python packages into Ansible's process: forks of it would hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = sorted(path.relative_to(ROOT).with_suffix("") for path in (ROOT / "plugins").glob("*/[a-z_]*.py"))
PROBE = """
import importlib, sys
importlib.import_module(sys.argv[1])
bad = sorted(n for n in sys.modules if n == "grpc" or n.startswith(("grpc.", "jumpstarter")) )
sys.exit(f"{sys.argv[1]} imports {bad}" if bad else 0)
"""


@pytest.mark.parametrize("plugin", [path for path in PLUGINS if path.name != "__init__"], ids=str)
def test_plugin_imports_neither_grpc_nor_jumpstarter(plugin: Path) -> None:
    module = "ansible_collections.jumpstarter.lab." + ".".join(plugin.parts)
    done = subprocess.run([sys.executable, "-c", PROBE, module], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
