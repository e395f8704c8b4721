# SPDX-License-Identifier: Apache-2.0
"""A peer names classes; what is imported is decided here."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jumpstarter.common.exceptions import MissingDriverError
from jumpstarter.common.importlib import import_class, registered_patterns


@pytest.mark.parametrize(
    ("patterns", "allowed"),
    [
        ([], False),
        (["fractions.Fraction"], True),
        (["fractions.*"], True),
        (["*"], True),
        (["Fractions.*"], False),
        (["fraction"], False),
        ([""], False),
    ],
)
def test_the_allow_list_decides(patterns: list[str], allowed: bool) -> None:
    if allowed:
        assert import_class("fractions.Fraction", patterns).__name__ == "Fraction"
    else:
        with pytest.raises(MissingDriverError, match="not allowed") as caught:
            import_class("fractions.Fraction", patterns)
        assert caught.value.class_path == "fractions.Fraction"


def test_a_refused_path_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from jumpstarter.common.importlib import import_class\n"
        "try:\n    import_class('this.Class', ['other.*'])\n"
        "except Exception: pass\n"
        "sys.exit('this' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("path", ["", "Fraction", ".Fraction", "fractions."])
def test_what_is_no_dotted_path(path: str) -> None:
    with pytest.raises(ImportError, match="not a dotted path"):
        import_class(path, unsafe=True)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no_such_package.sub.Class", 'no module "no_such_package"'),
        ("fractions.Nothing", "has no class"),
        ("os.path.join", "is not a class"),
        ("pathlib.Path", "is not a Fraction"),
    ],
)
def test_what_cannot_be_used(path: str, why: str) -> None:
    from fractions import Fraction

    with pytest.raises(MissingDriverError, match=why):
        import_class(path, unsafe=True, base=Fraction if path == "pathlib.Path" else None)


def test_registered_packages_are_the_default_trust() -> None:
    assert "jumpstarter_driver_power.*" in registered_patterns()
    assert not any(pattern in ("*", "") for pattern in registered_patterns())
