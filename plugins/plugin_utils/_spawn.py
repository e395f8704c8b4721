# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds the session agent of this Ansible run, or starts it once.

This plugin util is **PRIVATE** to the collection. Several workers may ask at the same moment: a file lock lets one of
them start the agent, the others find it there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import select
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import typing as t

from ansible_collections.jumpstarter.lab.plugins.module_utils._agent import AgentClient, AgentGone

SOCKET_NAME = "agent.sock"
LOG_NAME = "agent.log"
# Starting means one Python and the import of gRPC: 0.3 s on an idle machine; a loaded lab host may take far longer.
START_SECONDS = 90.0
# A unix socket's path has at most 107 bytes; below the private folder come "/r-<16>/" and a socket of up to 20.
_LONGEST_BASE = 107 - 40


def main_pid() -> int:
    """Pid of the ansible process the run belongs to, asked in it or in one of its workers."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def start_time(pid: int) -> int:
    """Start of *pid* in clock ticks since boot (field 22 of /proc/PID/stat): tells a reused pid from the old one."""
    with open(f"/proc/{pid}/stat", "rb") as file:  # as bytes: a codec would be imported anew in every worker
        # The command name may hold blanks and brackets: count from the last bracket.
        return int(file.read().rpartition(b")")[2].split()[19])


def base_dir() -> str:
    """The private folder all runs of this user share; made when missing.

    :raises AgentGone: it belongs to somebody else, or others may enter it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = f"jumpstarter-lab-{os.getuid()}"
    path = os.path.join(tempfile.gettempdir(), own)
    if runtime and _is_own_dir(runtime) and _is_short_enough(in_runtime := os.path.join(runtime, "jumpstarter-lab")):
        path = in_runtime
    elif not _is_short_enough(path):
        path = os.path.join("/tmp", own)
    _private_dir(path)
    return path


def _is_short_enough(path: str) -> bool:
    return len(os.fsencode(path)) <= _LONGEST_BASE


def _is_own_dir(path: str) -> bool:
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()


def _private_dir(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        info = os.lstat(path)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
            raise AgentGone(
                f"{path} must be a directory of user {os.getuid()} that nobody else may enter (mode 0700); "
                "remove it or set XDG_RUNTIME_DIR"
            ) from None
    except OSError as error:
        raise AgentGone(f"cannot make {path} for the agent's socket: {error.strerror}") from error


def run_dir(pid: int | None = None) -> str:
    """Folder of this run's agent; its name cannot be guessed from the pid alone and is never used twice."""
    pid = main_pid() if pid is None else pid
    key = f"{os.getuid()}:{pid}:{start_time(pid)}"
    return os.path.join(base_dir(), "r-" + hashlib.sha256(key.encode()).hexdigest()[:16])


def _last_line(log_fd: int) -> str:
    """By descriptor: an agent that fails removes its folder, and the log with it."""
    text = os.pread(log_fd, 8192, max(0, os.fstat(log_fd).st_size - 8192)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def find_agent() -> AgentClient | None:
    """The agent of this run if it is there; never starts one."""
    agent = AgentClient(os.path.join(run_dir(), SOCKET_NAME))
    return agent if agent.answers() else None


def ensure_agent(warn: t.Callable[[str], None] | None = None) -> AgentClient:
    """The agent of this run, started when it is not there yet.

    :param warn: told in one line when an agent of this run had been there and died.
    :raises AgentGone: it does not start; the message names the reason.
    """
    pid = main_pid()
    folder = run_dir(pid)
    path = os.path.join(folder, SOCKET_NAME)
    agent = AgentClient(path)
    if agent.answers():
        return agent
    # The lock lies beside the folder: the agent removes the folder when it ends, never the lock somebody may hold.
    with _start_lock(folder + ".lock"):
        if agent.answers():
            return agent
        _private_dir(folder)
        if os.path.exists(path):
            if warn is not None:
                warn(
                    "the session agent of this run has died; a new one is started, and what the devices were doing "
                    f"is lost (see {os.path.join(folder, LOG_NAME)})"
                )
            os.unlink(path)
        _start(folder, pid)
    return agent


@contextlib.contextmanager
def _start_lock(path: str) -> t.Iterator[None]:
    """One worker at a time. Its file is removed at the end, so that nothing of the run is left behind."""
    while True:
        with open(path, "w", encoding="ascii") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_same_file(lock.fileno(), path):
                continue  # whoever held it before has removed it: it keeps nobody out any more
            try:
                yield
            finally:
                os.unlink(path)
            return


def _is_same_file(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _start(folder: str, pid: int) -> None:
    log_path = os.path.join(folder, LOG_NAME)
    log_fd = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        _start_logging(folder, pid, log_fd)
    except BaseException:
        # Nothing is running: the folder would only be left behind.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(log_fd)


def _start_logging(folder: str, pid: int, log_fd: int) -> None:
    ready_r, ready_w = os.pipe()
    command = [
        sys.executable, "-m", "jumpstarter_agent",
        "--dir", folder,
        "--watch-pid", str(pid),
        "--watch-start", str(start_time(pid)),
        "--ready-fd", str(ready_w),
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(ready_w,),
            start_new_session=True,
        )
    except OSError as error:
        os.close(ready_r)
        raise AgentGone(f"cannot start the session agent with {sys.executable}: {error.strerror}") from error
    finally:
        os.close(ready_w)
    try:
        _await_ready(process, ready_r, log_fd)
    finally:
        os.close(ready_r)


def _await_ready(process: subprocess.Popen[bytes], ready_fd: int, log_fd: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    readable, _unused, _unused2 = select.select([ready_fd], [], [], max(0.0, deadline - time.monotonic()))
    if not readable:
        process.kill()
        process.wait()
        said = _last_line(log_fd) or "nothing"
        raise AgentGone(
            f"the session agent was not ready after {START_SECONDS:.0f} s and was ended; the last it said: {said}"
        )
    if os.read(ready_fd, 1) == b"":
        status = process.wait()
        reason = _last_line(log_fd) or f"it ended with status {status} and said nothing"
        raise AgentGone(
            f"the session agent does not start: {reason} (started with {sys.executable}, where the Python package "
            "jumpstarter-lab must be installed)"
        )
