# SPDX-License-Identifier: Apache-2.0
"""What `jmp shell` tells the process that holds its lease, and what that makes of it."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter_cli import lease_holder
from jumpstarter_cli.lease_holder import Wanted


def test_a_configuration_may_hold_a_whole_bundle_of_authorities() -> None:
    bundle = base64.b64encode(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n" * 20_000).decode()
    wanted = Wanted(config={"tls": {"ca": bundle}}, config_path=None, socket="s", selector="board=x")
    argv = [sys.executable, "-m", "jumpstarter_cli.lease_holder"]
    told = subprocess.run(argv, input=wanted.to_json(), capture_output=True, text=True, timeout=60)
    event = json.loads(told.stdout)
    assert (told.returncode, event["event"]) == (1, "failed") and "endpoint is not set" in event["text"], told


def test_a_configuration_that_is_being_edited_is_no_new_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "me.yaml"
    path.write_text("endpoint: [")
    config = ClientConfigV1Alpha1(alias="me", endpoint="lab:1", token="t", path=path)
    assert not lease_holder._renew(config)
    event = json.loads(capsys.readouterr().out)
    assert event["event"] == "notice" and "cannot be renewed" in event["text"] and config.token == "t"
