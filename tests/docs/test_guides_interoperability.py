# SPDX-License-Identifier: Apache-2.0
"""The page about interoperability names tests that exist, and every test with the original in it."""

from __future__ import annotations

import ast
import re

from guide_pages import ROOT

PAGE = ROOT / "docs" / "interoperability.md"


def functions_of(path: str) -> set[str]:
    """Names of the test functions of a module."""
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, kinds) and node.name.startswith("test_")}


def named() -> set[tuple[str, str]]:
    """Module and name of the tests on the page."""
    return set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE.read_text()))


def test_every_test_on_the_page_exists() -> None:
    assert len(named()) > 10
    for path, test in named():
        assert test in functions_of(path), f"{path}::{test}"


def test_every_test_with_the_original_is_on_the_page() -> None:
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "interop").glob("test_*.py")]
    elsewhere = ["tests/storage/test_original_peer.py", "tests/gpio/test_gpiod_guest.py"]
    elsewhere += ["tests/dut_network/test_dut_network_interop.py"]
    found = {(path, test) for path in modules for test in functions_of(path)}
    found |= {(path, test) for path in elsewhere for test in functions_of(path) if "original" in test}
    assert found
    assert found - named() == set()


def test_every_row_of_what_was_proven_names_a_test() -> None:
    rows = re.findall(r"^\| \d+ \|.*$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) >= 12
    for row in rows:
        assert "::test_" in row, row
