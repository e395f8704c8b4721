# SPDX-License-Identifier: Apache-2.0
"""What all tests share: temporary directories with short names.

A unix socket's path may have 107 bytes. pytest's own directories (/tmp/pytest-of-USER/pytest-N/popen-gwN/...) use so
many of them that what works with one worker fails with two.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "guest"))

import guest_plugin

_OURS = pytest.StashKey[Path]()
_FAILED = pytest.StashKey[bool]()

# What takes a minute or more in one piece. It comes first, or one worker is still busy with it when all else is done.
LONG = (
    "tests/sanity/test_ansible_test_sanity.py",
    "tests/e2e/test_reference_boards.py",
    "tests/docs/test_guides_console.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the directory once, in the process that starts the workers; `--basetemp` on the command line wins."""
    _hear_signals()
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.stash[_OURS] = Path(tempfile.mkdtemp(prefix="jltest-"))
        # pytest empties the directory it is given, so it gets one below ours.
        config.option.basetemp = str(config.stash[_OURS] / "t")
    # A run starts thousands of Pythons. Where the environment forbids byte code, each would compile all of ours anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    # xdist would begin with the largest groups: those of the guest, which is only just booting then.
    config.option.loadscopereorder = False
    config.pluginmanager.register(guest_plugin, "guest")


def _hear_signals() -> None:
    """Undo what `pytest &` in a script does: everything that is started here would ignore ^C as well.

    A shell cannot choose otherwise for itself: a test's board would not be interrupted by the ^C it is sent.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put what is long first when there are workers, and make `xdist_group` work.

    xdist 3.8 puts the group where pytest 9.2 does not look for it (`Item._nodeid`). A worker of --dist loadgroup has to
    name the group behind the test's id; unnamed, marked tests run anywhere.
    """
    if not getattr(config.option, "loadgroup", False):
        return
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        groups = {str(mark.args[0]) for mark in item.iter_markers("xdist_group")}
        name = f"@{'_'.join(sorted(groups))}"
        if groups and hasattr(item, "_id") and not item.nodeid.endswith(name):
            item._id = type(item._id).parse(item.nodeid + name)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keep the directories of a run that failed for inspection, and only those."""
    ours = config.stash.get(_OURS, None)
    if ours is not None and not config.stash.get(_FAILED, False):
        shutil.rmtree(ours, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the run ended."""
    session.config.stash[_FAILED] = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
