# SPDX-License-Identifier: Apache-2.0
"""What the pages of docs/drivers/ say about their drivers, as a table.

Each page begins with front matter that lists its drivers, and for each of them what it is to its users, what its tests
talk to, the extra that brings its dependencies, and the action of the collection to use it with.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "drivers"
INDEX = "index.md"
KEYS = ("type", "interface", "counterparty", "tests", "extra", "action")

_HEAD = """# Drivers, one page each

What a driver's tests talk to is under *tested against*; where the real thing cannot be had, that column begins with
*Fake*. The [reference](../reference/drivers.md) has every field and method.

| driver | interface | tested against | tests | extra | action |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Entry:
    """One driver of a page."""

    page: str
    type: str
    interface: str
    counterparty: str
    tests: tuple[str, ...]
    extra: str
    action: str

    def row(self) -> str:
        """Its line of the table."""
        short = self.type.removeprefix("jumpstarter_driver_").replace(".driver.", ".")
        tests = ", ".join(f"[{Path(test).stem.removeprefix('test_')}](../../{test})" for test in self.tests)
        extra = "none needed" if self.extra == "none" else f"`{self.extra}`"
        driver = f"[`{short}`]({self.page})"
        return f"| {driver} | {self.interface} | {self.counterparty} | {tests} | {extra} | `{self.action}` |"


def front_matter(path: Path) -> dict[str, Any]:
    """The page's front matter. Raises ValueError when it has none."""
    text = path.read_text()
    start, _, rest = text.partition("---\n")
    head, end, _ = rest.partition("\n---\n")
    if start or not end:
        raise ValueError(f"{path.name}: must begin with front matter between lines of ---")
    found = yaml.safe_load(head)
    if not isinstance(found, dict) or not isinstance(found.get("drivers"), list):
        raise ValueError(f"{path.name}: the front matter has no list of drivers")
    return found


def entries() -> list[Entry]:
    """All drivers of all pages. Raises ValueError for a page that leaves a cell empty."""
    found = []
    for path in sorted(PAGES.glob("*.md")):
        if path.name == INDEX:
            continue
        for item in front_matter(path)["drivers"]:
            if set(item) != set(KEYS) or not all(item.values()):
                raise ValueError(f"{path.name}: {item.get('type')}: each driver has {', '.join(KEYS)}, none empty")
            values: dict[str, Any] = {key: tuple(item[key]) if key == "tests" else str(item[key]) for key in KEYS}
            found.append(Entry(page=path.name, **values))
    return found


def table() -> str:
    """The page docs/drivers/index.md."""
    return _HEAD + "\n".join(entry.row() for entry in entries())
