# SPDX-License-Identifier: Apache-2.0
"""A broker for the tests of a module."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from brokers import Mosquitto, mosquitto


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    """A mosquitto that no test stops."""
    folder = Path(tempfile.mkdtemp(prefix="jlmqtt-", dir="/tmp"))  # short: it holds a unix socket
    try:
        with mosquitto(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def own_broker() -> Iterator[Mosquitto]:
    """A mosquitto that the test may stop and start."""
    folder = Path(tempfile.mkdtemp(prefix="jlmqtt-", dir="/tmp"))
    try:
        with mosquitto(folder) as made:
            yield made
    finally:
        shutil.rmtree(folder)
