# SPDX-License-Identifier: Apache-2.0
"""A TFTP server driver on a free port."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from jumpstarter.common.utils import serve
from jumpstarter_driver_tftp.client import TftpServerClient
from jumpstarter_driver_tftp.driver import Tftp


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "tftpboot"
    folder.mkdir()
    return folder


@pytest.fixture
def boot(root: Path) -> Iterator[TftpServerClient]:
    """Read-only, as devices need it."""
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=0)) as client:
        client.start()
        yield client


@pytest.fixture
def writable(root: Path) -> Iterator[TftpServerClient]:
    """Takes files as well."""
    with serve(Tftp(root_dir=str(root), host="127.0.0.1", port=0, allow_write=True)) as client:
        client.start()
        yield client
