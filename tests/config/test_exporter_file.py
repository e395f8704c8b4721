# SPDX-License-Identifier: Apache-2.0
"""Exporter files are read, checked, kept private and never lose what we do not know."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
import yaml

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError
from jumpstarter.config.exporter import ExporterConfigV1Alpha1, ExporterConfigV1Alpha1DriverInstance

FULL = """\
apiVersion: jumpstarter.dev/v1alpha1
kind: ExporterConfig
metadata: {namespace: ns, name: exp}
endpoint: lab:443
tls: {ca: "", insecure: true}
token: s3cret
grpcOptions: {grpc.keepalive_time_ms: 5000}
motd: hello
export:
  power: {type: jumpstarter_driver_power.driver.MockPower, config: {}}
  group: {children: {a: {ref: power}}}
hooks:
  beforeLease: {script: "true", timeout: 3, onFailure: endLease, exec: /bin/bash}
failureDetection: {maxRapidFailures: 2, rapidFailureWindow: 5}
exitOnLeaseEnd: true
powerOffOnEnd: false
future: {some: [1, 2]}
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_documented_keys_are_read(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(FULL)
    config = ExporterConfigV1Alpha1.load_path(path)
    assert (config.alias, config.path, config.name) == ("default", path, "exp")
    assert config.endpoint == "lab:443" and config.token == "s3cret" and config.tls.insecure
    assert config.grpcOptions == {"grpc.keepalive_time_ms": 5000}
    hook = config.hooks.before_lease
    assert hook is not None and config.hooks.after_lease is None
    assert (hook.exec_, hook.script, hook.timeout, hook.on_failure) == ("/bin/bash", "true", 3, "endLease")
    assert config.failure_detection.max_rapid_failures == 2
    assert config.exit_on_lease_end and not config.powerOffOnEnd


def test_unknown_keys_warn_and_survive_a_round_trip(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(FULL.replace("powerOffOnEnd", "powerOfOnEnd"))
    with caplog.at_level(logging.WARNING):
        config = ExporterConfigV1Alpha1.load_path(path)
    warnings = [record.getMessage() for record in caplog.records]
    assert f'{path}: unknown key "future" is ignored' in warnings
    assert any('"powerOfOnEnd"' in text and 'did you mean "powerOffOnEnd"?' in text for text in warnings)
    saved = ExporterConfigV1Alpha1.save(config, tmp_path / "copy.yaml")
    before, after = yaml.safe_load(path.read_text()), yaml.safe_load(saved.read_text())
    assert after["future"] == {"some": [1, 2]}
    assert after["export"]["group"] == before["export"]["group"]
    assert after["hooks"] == before["hooks"]
    again = ExporterConfigV1Alpha1.load_path(saved)
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_saved_files_are_private_whatever_the_umask(home: Path, umask: int) -> None:
    config = ExporterConfigV1Alpha1(alias="a", token="t")
    old = os.umask(umask)
    try:
        path = ExporterConfigV1Alpha1.save(config)
    finally:
        os.umask(old)
    assert path == home / "exporters" / "a.yaml"
    assert mode(path) == 0o600
    assert [mode(home), mode(home / "exporters")] == [0o700, 0o700]
    assert list((home / "exporters").iterdir()) == [path]  # no temporary file is left


def test_saving_over_a_readable_file_makes_it_private(home: Path) -> None:
    path = home / "exporters" / "a.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("kind: ExporterConfig\n")
    path.chmod(0o644)
    ExporterConfigV1Alpha1.save(ExporterConfigV1Alpha1(alias="a", token="t"))
    assert mode(path) == 0o600


def test_a_failed_write_leaves_the_old_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExporterConfigV1Alpha1(alias="a", motd="old")
    path = ExporterConfigV1Alpha1.save(config)

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    config.motd = "new"
    with pytest.raises(ConfigurationError, match="No space left"):
        ExporterConfigV1Alpha1.save(config)
    assert ExporterConfigV1Alpha1.load("a").motd == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("alias", ["", ".", "..", "../x", "a/b", "a\\b", "x\0y"])
def test_an_alias_never_leaves_its_directory(alias: str) -> None:
    for action in (ExporterConfigV1Alpha1.load, ExporterConfigV1Alpha1.delete, ExporterConfigV1Alpha1.exists):
        with pytest.raises(ConfigurationError, match="alias"):
            action(alias)


def test_the_users_file_hides_the_systems(home: Path, tmp_path: Path) -> None:
    system = tmp_path / "etc"
    system.mkdir()
    (system / "a.yaml").write_text("motd: system\n")
    (system / "b.yaml").write_text("motd: system\n")
    assert ExporterConfigV1Alpha1.load("a").motd == "system"
    ExporterConfigV1Alpha1.save(ExporterConfigV1Alpha1(alias="a", motd="user"))
    assert [(c.alias, c.motd) for c in ExporterConfigV1Alpha1.list()] == [("a", "user"), ("b", "system")]
    with pytest.raises(ConfigurationError, match="system-wide"):
        ExporterConfigV1Alpha1.delete("b")
    ExporterConfigV1Alpha1.delete("a")
    assert ExporterConfigV1Alpha1.load("a").motd == "system"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind: ClientConfig\n", ["kind", "'ExporterConfig'", "'ClientConfig'"]),
        ("apiVersion: v2\n", ["apiVersion", "jumpstarter.dev/v1alpha1"]),
        ("export: [1, 2]\n", ["export", "dictionary"]),
        ("export: {a.b: {}}\n", ["a.b", "no dot"]),
        ("hooks: {beforeLease: {timeout: 3}}\n", ["hooks.beforeLease.script", "required"]),
        ("hooks: {beforeLease: {script: x, onFailure: explode}}\n", ["onFailure", "'warn', 'endLease' or 'exit'"]),
        ("tls: {ca: '%%%'}\n", ["tls.ca", "base64"]),
        ("a: [1\n", ["not valid YAML", "line 2"]),
        ("- 1\n", ["must be a YAML mapping"]),
        ("export:\n  p: {}\n  p: {}\n", ["line 3", 'key "p" is there twice']),
        ("", ["is empty"]),
    ],
)
def test_a_broken_file_is_one_line_with_file_and_field(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        ExporterConfigV1Alpha1.load_path(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    for part in expected:
        assert part in message


def test_missing_unreadable_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        ExporterConfigV1Alpha1.load_path(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match="none"):
        ExporterConfigV1Alpha1.load("none")
    with pytest.raises(ConfigurationError, match="directory"):
        ExporterConfigV1Alpha1.load_path(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        ExporterConfigV1Alpha1.load_path(tmp_path / "b.yaml")


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="/dev/zero: is no configuration file"):
        ExporterConfigV1Alpha1.load_path("/dev/zero")


def test_a_single_node_from_text() -> None:
    node = ExporterConfigV1Alpha1DriverInstance.from_str("type: jumpstarter_driver_power.driver.MockPower")
    assert type(node.instantiate()).__name__ == "MockPower"


def test_the_token_is_in_no_representation() -> None:
    assert "s3cret" not in repr(ExporterConfigV1Alpha1(token="s3cret"))
