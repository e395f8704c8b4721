# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server of the tests' own: in a temporary directory, on a unix socket, gone with its process."""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg

_ROLE, _PASSWORD = "lab", "not:easy/to?guess"
#: Where distributions keep it; the newest one is taken.
_BINARIES = "/usr/lib/postgresql"


class PostgresServer:
    """One server. It can be stopped and started again, as an administrator or a power cut would."""

    #: Nothing that tests write has to survive a power cut; commits are as fast as they can be.
    settings: tuple[str, ...] = ("fsync=off", "full_page_writes=off", "max_connections=200")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else getpass.getuser()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[PostgresServer]:
        """Context: a new server, ready."""
        folder = Path(tempfile.mkdtemp(prefix="jlpg-"))
        server = cls(folder)
        try:
            server._make()
            server.start()
            server.run_sql("postgres", f"CREATE ROLE {_ROLE} LOGIN PASSWORD '{_PASSWORD}'")
            yield server
        finally:
            server.stop("immediate")
            shutil.rmtree(folder)

    def _as_user(self, *argv: str | Path) -> list[str]:
        # Whatever happens to us, the server is told to quit at once.
        words = ["setpriv", "--pdeathsig", "QUIT"]
        if os.geteuid() == 0:
            words += ["--reuid", self._user, "--regid", self._user, "--init-groups"]
        return [*words, *map(str, argv)]

    def _make(self) -> None:
        if os.geteuid() == 0:
            entry = pwd.getpwnam(self._user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
        argv = [_binary("initdb"), "--pgdata", self._data, "--auth-local", "trust", "--no-sync", "--encoding", "UTF8"]
        argv += ["--locale", "C", "--username", "postgres", "--no-instructions"]
        done = subprocess.run(self._as_user(*argv), cwd="/", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        rules = f"local all {_ROLE} scram-sha-256\nlocal all all trust\n"
        (self._data / "pg_hba.conf").write_text(rules)

    def start(self) -> None:
        """Start it; returns when it answers."""
        # The server ends with the thread that started it, and a pool's threads end with their event loop.
        assert threading.current_thread() is threading.main_thread(), "start PostgreSQL in the main thread"
        argv = [_binary("postgres"), "-D", self._data, "-k", self.folder, "-c", "listen_addresses="]
        for setting in self.settings:
            argv += ["-c", setting]
        log = open(self.folder / "log", "ab")  # noqa: SIM115  # the server's
        with log:
            self._process = subprocess.Popen(self._as_user(*argv), cwd="/", stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.run_sql("postgres", "SELECT 1")
                return
            except psycopg.OperationalError:
                assert self._process.poll() is None, (self.folder / "log").read_text()[-2000:]
                assert time.monotonic() < deadline, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.02)

    def stop(self, how: str = "fast") -> None:
        """Stop it. how: "fast" ends all sessions and writes everything; "immediate" is a crash."""
        if self._process is not None:
            self._process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[how])
            try:
                self._process.wait(60)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    def run_sql(self, database: str, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as the superuser; its rows."""
        with psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def database(self) -> Iterator[str]:
        """Context: a new empty database; its URL, password included."""
        name = f"lab_{uuid4().hex[:12]}"
        self.run_sql("postgres", f"CREATE DATABASE {name} OWNER {_ROLE}")
        try:
            yield f"postgresql://{_ROLE}:not%3Aeasy%2Fto%3Fguess@/{name}?host={self.folder}"
        finally:
            if self._process is None:
                self.start()
            self.run_sql("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def _binary(name: str) -> str:
    """Path of one of the server's programs."""
    versions = sorted(Path(_BINARIES).glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name)
    assert found, f"PostgreSQL's {name} is not installed: apt-get install postgresql-15"
    return found
