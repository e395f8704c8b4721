# SPDX-License-Identifier: Apache-2.0
"""The fixture `guest`: one Linux machine for all tests of a run, booted in the background when a test asks for it.

Registered by tests/conftest.py. The process that starts the workers owns the guest's folder; the first worker that
collected a test with the fixture starts the keeper. It goes with that first process, killed or not.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from guest_machine import Guest, is_keeper, start_keeper

FOLDER = "JLTEST_GUEST_FOLDER"
PYTEST = "JLTEST_GUEST_PYTEST"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Name the folder before there are workers, which inherit the environment."""
    if not hasattr(config, "workerinput"):
        os.environ[FOLDER] = tempfile.mkdtemp(prefix="jlguest-")
        os.environ[PYTEST] = str(os.getpid())


def pytest_collection_finish(session: pytest.Session) -> None:
    """Boot while the other tests run."""
    if not session.config.option.collectonly and any("guest" in getattr(i, "fixturenames", ()) for i in session.items):
        ensure_keeper()


def ensure_keeper() -> Path:
    """Start the keeper unless another worker did; returns the guest's folder."""
    folder = Path(os.environ[FOLDER])
    with (folder / "keeper.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid = folder / "keeper.pid"
        if not pid.exists():
            pid.write_text(str(start_keeper(folder, int(os.environ[PYTEST])).pid))
    return folder


def end_keeper(folder: Path, timeout: float = 30) -> None:
    """End the keeper of *folder*, and so the guest, and wait until it has ended."""
    pid = folder / "keeper.pid"
    if not pid.exists():
        return
    number = int(pid.read_text())
    try:
        keeper = os.pidfd_open(number)
    except ProcessLookupError:
        return
    try:
        if not is_keeper(number):
            return  # it ended long ago
        signal.pidfd_send_signal(keeper, signal.SIGTERM)
        if not select.select([keeper], [], [], timeout)[0]:
            signal.pidfd_send_signal(keeper, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended by itself
    finally:
        os.close(keeper)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the guest after the last test of the last worker; keep what it said when something failed."""
    if hasattr(session.config, "workerinput"):
        return
    folder = Path(os.environ[FOLDER])
    end_keeper(folder)
    if exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) or not (folder / "keeper.pid").exists():
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def guest() -> Guest:
    """The shared guest, booted. See guest_machine.Guest; names of what a test makes in it come from guest.name()."""
    return Guest.booted(ensure_keeper())
