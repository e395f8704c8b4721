# SPDX-License-Identifier: Apache-2.0
"""Every page is in the table of contents, every link leads somewhere, every page is read by a test."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import guide_pages
import pytest
from guide_pages import GUIDES, ROOT, Reader, blocks, matches

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Written for its own tests: the plays of tests/e2e.
ELSEWHERE = {"flash-and-test.md"}


def anchors(page: Path) -> set[str]:
    """Names of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(found), f"{page}: {target}"


def test_table_of_contents_has_every_page() -> None:
    # Each driver's page is in the drivers' own table.
    tables = (DOCS / "index.md", DOCS / "drivers" / "index.md")
    listed = {
        (table.parent / name).resolve()
        for table in tables
        for name in re.findall(r"\]\(([^)#\s]+\.md)\)", table.read_text())
    }
    assert listed >= {page for page in PAGES if page.name != "index.md"}


def test_every_guide_is_read_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_guides_*.py"))
    for guide in GUIDES.glob("*.md"):
        assert guide.name in ELSEWHERE or f'read("{guide.name}")' in tests, guide.name


def test_what_is_not_run_is_little_and_says_why() -> None:
    for guide in GUIDES.glob("*.md"):
        for block in blocks(guide.name):
            assert block.options.get("not-run", "a reason") != "", f"{guide.name}:{block.line}"
    unrun = [block for guide in GUIDES.glob("*.md") for block in blocks(guide.name) if "not-run" in block.options]
    assert len(unrun) <= 6


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        (["a"], "a\n", True),
        (["a"], "b\n", False),
        (["a"], "a\nb\n", False),
        (["a", "..."], "a\nb\nc\n", True),
        (["a", "..."], "a\n", True),
        (["...", "c"], "a\nb\nc\n", True),
        (["a ... c"], "a b c\n", True),
        (["a ... c"], "a b\nc\n", False),
        (["ok=1 ..."], "ok=10 failed\n", False),
    ],
)
def test_comparing_what_is_shown_with_what_is_printed(shown: list[str], printed: str, same: bool) -> None:
    assert matches(shown, printed) is same


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("```console\n$ false\n```\n", "false"),
        ("```console fails\n$ true\n```\n", "true"),
        ("```console\n$ echo one\ntwo\n```\n", "--- it prints"),
        ("```console background\n$ echo one\ntwo\n```\n", "never printed"),
        ("```console background\n$ echo one; exec sleep 600\ntwo\n```\n", "never printed"),
        ("```python\nraise SystemExit(1)\n```\n", "SystemExit"),
        ("```json\n{}\n```\n", "nobody runs"),
        ("```console\n$ true\n", "odd fences"),
    ],
)
def test_reader_notices_a_page_that_is_wrong(
    reader: Callable[..., Reader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str, complaint: str
) -> None:
    monkeypatch.setattr(guide_pages, "WAIT_SECONDS", 1)
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError, match=complaint):
        reader().read(str(tmp_path / "page.md"))


# What differs from message to message: names, numbers, quoted text.
_VARIABLE = re.compile(
    r"""\.\.\.|"[^"]*"|'[^']*'|\$?\d[\d.]*|\b[A-Z]{3,}\w*\b"""
    r"""|\b[GM]iB\b|\bjumpstarter_\w+|\b(?:nope|board)\.img\b|\b(?:storage|power|console|host|dut|disk|gzip|xz|bootloader|shell|silent|panic|nothing)\b"""
)


def _sources() -> str:
    """Everything that messages are made of, with the parts of a text that the code writes one below another joined."""
    text = ""
    for folder in ("exporter", "drivers", "agent", "plugins", "cli", "controller"):
        for path in (ROOT / folder).rglob("*.py"):
            text += path.read_text()
    return re.sub(r"""["']\s*\n\s*f?["']""", "", text).replace('\\"', '"')


@pytest.mark.parametrize("page", ["flashing.md", "console-and-boot.md", "when-something-goes-wrong.md"])
def test_messages_in_the_tables_are_what_the_code_says(page: str) -> None:
    sources, seen, text = _sources(), 0, (GUIDES / page).read_text()
    for table in re.findall(r"^\| (?:the message says|you see) \|.*\n\|[- |]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                for part in _VARIABLE.split(message):
                    words = part.strip(" ,;:()")
                    if len(words) > 10:
                        seen += 1
                        assert words in sources, f"{page}: {message}: {words!r} is nowhere in the code"
    assert seen > 5
