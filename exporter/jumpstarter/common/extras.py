# SPDX-License-Identifier: Apache-2.0
"""Extras of this distribution: which one brings what a driver needs, and how to install it.

A driver family's packages are named after its extra: ``jumpstarter_driver_http_power`` belongs to
``jumpstarter-lab[http-power]``.
"""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["extra_of", "install_command", "install_command_for", "missing_modules"]

DISTRIBUTION = "jumpstarter-lab"


def extra_of(dotted: str) -> str | None:
    """The extra that goes with a module or class, None when its package has none."""
    from importlib.metadata import PackageNotFoundError, metadata

    package = dotted.partition(".")[0]
    extra = package.removeprefix("jumpstarter_driver_").removeprefix("jumpstarter_").replace("_", "-")
    try:
        offered = metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except PackageNotFoundError:
        return None
    return extra if extra in offered else None


def install_command(dotted: str) -> str:
    """The pip command that installs what a module or class needs, "" when its package has no extra."""
    extra = extra_of(dotted)
    return f"pip install '{DISTRIBUTION}[{extra}]'" if extra else ""


def install_command_for(error: ImportError) -> str:
    """The pip command for an import that failed within a driver, "" when none of ours was at work.

    The driver is the innermost package of ours that the traceback goes through.
    """
    found, at = "", error.__traceback__
    while at is not None:
        module = at.tb_frame.f_globals.get("__name__", "")
        if module.startswith("jumpstarter"):
            found = install_command(module) or found
        at = at.tb_next
    return found


def missing_modules(names: tuple[str, ...]) -> list[str]:
    """Those of the importable names that are not installed, without importing what is."""

    def there(name: str) -> bool:
        try:
            return find_spec(name) is not None
        except ModuleNotFoundError:  # a package above it
            return False

    return [name for name in names if not there(name)]
