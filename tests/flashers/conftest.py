# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the flashers' tests; helpers are in flasher_boards, busybox_board and oci_registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flasher_boards import board, make_disk
from oci_registry import OciRegistry, registry


@pytest.fixture(scope="module")
def registry_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """A registry for anybody."""
    with registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def closed_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """A registry that asks for a login."""
    with registry(tmp_path_factory.mktemp("closed"), ("lab", "s3cret-word")) as server:
        yield server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Serve a board with a flasher: ``client, tree = served(**config)``; its disk is ``tmp_path / "disk.img"``."""
    from jumpstarter.common.utils import serve

    with ExitStack() as stack:

        def make(**config: Any) -> tuple[Any, Any]:
            disk = config.pop("disk", None) or make_disk(tmp_path)
            tree = board(tmp_path, disk=disk, **config)
            return stack.enter_context(serve(tree)), tree

        yield make
