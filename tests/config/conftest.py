# SPDX-License-Identifier: Apache-2.0
"""A configuration home of its own for each test, and drivers to configure."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jumpstarter.config.exporter import ExporterConfigV1Alpha1

DRIVERS = '''
import enum
import os
from dataclasses import dataclass, field
from pathlib import Path

from jumpstarter.driver import Driver

EVENTS = []


class Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


@dataclass(kw_only=True)
class Port:
    number: int
    host: str = "localhost"


@dataclass(kw_only=True)
class Sample(Driver):
    url: str
    baudrate: int = 115200
    ratio: float = 1.0
    mode: Mode = Mode.FAST
    image: Path | None = None
    ports: dict[str, Port] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    hidden: int = field(init=False, default=0)

    @classmethod
    def client(cls):
        return "jumpstarter_driver_composite.client.CompositeClient"

    def __post_init__(self):
        super().__post_init__()
        EVENTS.append(("made", self.url))
        if self.url == "denied":
            raise PermissionError(13, "Permission denied", "/dev/ttyS99")
        if self.url == "busy":
            raise OSError(98, "Address already in use")
        if self.url == "bug":
            raise KeyError("oops")

    def close(self):
        EVENTS.append(("closed", self.url))


@dataclass(kw_only=True)
class Parent(Driver):
    """Brings a child of its own."""

    @classmethod
    def client(cls):
        return "jumpstarter_driver_composite.client.CompositeClient"

    def __post_init__(self):
        super().__post_init__()
        self.children["inner"] = Sample(url="inner")


class NotADriver:
    pass
'''


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration directory; nothing of the user's environment is seen."""
    for name in ("JMP_CLIENT_CONFIG_HOME", "JMP_CLIENT", "JMP_CLIENT_CONFIG", "JMP_NAMESPACE", "JMP_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("JMP_ENDPOINT", "JMP_TOKEN", "JMP_REFRESH_TOKEN", "JMP_DRIVERS_ALLOW", "JMP_DRIVERS_UNSAFE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("jumpstarter.config.files.SYSTEM_DIRECTORY", tmp_path / "etc")
    monkeypatch.setattr("jumpstarter.config.exporter.SYSTEM_DIRECTORY", tmp_path / "etc")
    return tmp_path / "xdg" / "jumpstarter"


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the drivers above."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "config_samples.py").write_text(DRIVERS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "config_samples", raising=False)
    import config_samples  # type: ignore[import-not-found]

    yield config_samples
    del sys.modules["config_samples"]


@pytest.fixture
def build(tmp_path: Path, sample: Any) -> Callable[[dict[str, Any]], Any]:
    """Write an exporter file with this `export:` and instantiate it."""

    def make(export: dict[str, Any], **more: Any) -> Any:
        path = tmp_path / "board.yaml"
        data = {"metadata": {"namespace": "ns", "name": "board"}, "export": export, **more}
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return ExporterConfigV1Alpha1.load_path(path).instantiate()

    return make
