# SPDX-License-Identifier: Apache-2.0
"""The fake service, and an environment that points at it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_corellium import TOKEN, FakeCorellium


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCorellium]:
    made = FakeCorellium(tmp_path)
    for name, value in {"HOST": made.host, "TOKEN": TOKEN, "INTERVAL": "0.01", "RETRIES": "5"}.items():
        monkeypatch.setenv(f"CORELLIUM_API_{name}", value)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(made.authority))
    monkeypatch.setenv("SSL_CERT_FILE", str(made.authority))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield made
    made.close()
