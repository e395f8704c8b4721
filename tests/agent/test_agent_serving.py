# SPDX-License-Identifier: Apache-2.0
"""http and tftp through the agent: files are put once, check mode changes nothing, what is wrong is said at once."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, RunningAgent, write_config


@pytest.fixture
def host(tmp_path: Path) -> dict[str, Any]:
    config = write_config(
        tmp_path / "servers.yaml",
        {
            "http": {
                "type": "jumpstarter_driver_http.driver.HttpServer",
                "config": {"root_dir": str(tmp_path / "www"), "host": "127.0.0.1", "port": 0},
            },
            "tftp": {
                "type": "jumpstarter_driver_tftp.driver.Tftp",
                "config": {"root_dir": str(tmp_path / "boot"), "host": "127.0.0.1", "port": 0},
            },
            "power": {"type": "jumpstarter_driver_power.driver.MockPower"},
        },
    )
    return {"name": "server-1", "reach": {"exporter_config": str(config)}}


@pytest.mark.parametrize("op", ["http", "tftp"])
def test_files_are_put_once_and_served(agent: RunningAgent, host: dict[str, Any], tmp_path: Path, op: str) -> None:
    source = tmp_path / "Image"
    source.write_bytes(b"kernel")
    root = tmp_path / {"http": "www", "tftp": "boot"}[op]
    odd = tmp_path / "what?.bin"
    odd.write_bytes(b"odd")
    files = [{"src": str(source), "dest": "virt/a kernel"}, {"src": str(source)}, {"src": str(odd)}]
    would = agent.ask(op, host, files=files, check=True, diff=True)
    assert would["changed"] is True and not any(path.is_file() for path in root.rglob("*"))
    assert agent.ask(op, host, state="status")["running"] is False
    first = agent.ask(op, host, files=files, diff=True)
    assert (first["changed"], first["running"], first["host"]) == (True, True, "127.0.0.1")
    assert [entry["path"] for entry in first["files"]] == ["virt/a kernel", "Image", "what?.bin"]
    assert f"{op}: stopped" in first["diff"]["before"] and f"{op}: started" in first["diff"]["after"]
    if op == "http":
        for entry in first["files"]:
            with urllib.request.urlopen(entry["url"], timeout=10) as response:
                assert response.read() == (b"odd" if entry["path"] == "what?.bin" else b"kernel")
    else:
        assert "url" not in first
        url = f"tftp://127.0.0.1:{first['port']}/{first['files'][1]['path']}"
        done = subprocess.run(["curl", "-sS", "--max-time", "10", url], capture_output=True, timeout=20, check=True)
        assert done.stdout == b"kernel"
    again = agent.ask(op, host, files=files, diff=True)
    assert again["changed"] is False and "diff" not in again
    assert {entry["reason"] for entry in again["files"]} == {"the storage has this file"}
    source.write_bytes(b"another")
    assert [entry["changed"] for entry in agent.ask(op, host, files=files[1:2])["files"]] == [True]
    assert agent.ask(op, host, absent=["virt", "nope"], check=True)["removed"] == ["virt"]
    gone = agent.ask(op, host, absent=["virt", "nope"], state="stopped")
    assert (gone["changed"], gone["running"], gone["removed"]) == (True, False, ["virt"])
    assert agent.ask(op, host, absent=["virt"], state="stopped")["changed"] is False
    assert sorted(path.name for path in root.rglob("*")) == ["Image", "what?.bin"]


def test_what_is_wrong_is_said_before_anything_changes(
    agent: RunningAgent, host: dict[str, Any], tmp_path: Path
) -> None:
    def refused(code: str, text: str, **arguments: Any) -> None:
        with pytest.raises(AgentFailure) as failure:
            agent.ask("http", host, **arguments)
        assert failure.value.code == code
        assert text in failure.value.message

    (tmp_path / "file").write_bytes(b"x")
    refused("not_found", "nothing was changed", files=[{"src": str(tmp_path / "nope")}])
    refused("invalid", "not an absolute path", files=[{"src": "file"}])
    refused("invalid", "only files, http:// and https://", files=[{"src": "ftp://x/y"}])
    refused("invalid", "status changes nothing", files=[{"src": str(tmp_path / "file")}], state="status")
    refused("invalid", "is no server", driver="power")
    refused("invalid", "names no file", files=[{"src": "http://127.0.0.1:1/"}])
    for nothing in ("", "/", "./"):  # would empty the storage
        refused("invalid", "names no file", absent=[nothing])
    wrong = {"src": str(tmp_path / "file"), "checksum": "sha256:" + "0" * 64}
    refused("checksum", "expected", files=[wrong])
    refused("refused", "leads out of the storage", files=[{"src": str(tmp_path / "file"), "dest": "../x"}])
    assert agent.ask("http", host, state="status")["running"] is False
