# SPDX-License-Identifier: Apache-2.0
"""What all tests share: temporary directories with short names.

A unix socket's path may have 107 bytes. pytest's own directories (/tmp/pytest-of-USER/pytest-N/popen-gwN/...) use so
many of them that what works with one worker fails with two.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

_OURS = pytest.StashKey[Path]()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Choose the directory once, in the process that starts the workers; `--basetemp` on the command line wins."""
    if config.option.basetemp is None and not hasattr(config, "workerinput"):
        config.stash[_OURS] = Path(tempfile.mkdtemp(prefix="jltest-"))
        # pytest empties the directory it is given, so it gets one below ours.
        config.option.basetemp = str(config.stash[_OURS] / "t")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keep the directories of a run that failed for inspection, and only those."""
    ours = config.stash.get(_OURS, None)
    if ours is not None and not config.stash.get(_FAILED, False):
        shutil.rmtree(ours, ignore_errors=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember how the run ended."""
    session.config.stash[_FAILED] = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
