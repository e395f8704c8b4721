# SPDX-License-Identifier: Apache-2.0
"""Which client configuration applies, and that files and variables mean what is documented."""

from __future__ import annotations

import base64
import stat
from pathlib import Path

import pytest
import yaml

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError
from jumpstarter.config.client import ClientConfigV1Alpha1, ClientConfigV1Alpha1Drivers
from jumpstarter.config.common import ObjectMeta
from jumpstarter.config.tls import TLSConfigV1Alpha1
from jumpstarter.config.user import UserConfigV1Alpha1


def client(alias: str, endpoint: str = "file:1") -> ClientConfigV1Alpha1:
    config = ClientConfigV1Alpha1(
        alias=alias, metadata=ObjectMeta(namespace="ns", name=alias), endpoint=endpoint, token="file"
    )
    ClientConfigV1Alpha1.save(config)
    return config


def endpoint(config: ClientConfigV1Alpha1 | None) -> str | None:
    return config.endpoint if config else None


def test_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ClientConfigV1Alpha1.resolve() is None
    client("current", "current:1")
    client("other", "other:1")
    UserConfigV1Alpha1.load_or_create().use_client("current")
    assert endpoint(ClientConfigV1Alpha1.resolve()) == "current:1"

    monkeypatch.setenv("JMP_NAMESPACE", "n")
    monkeypatch.setenv("JMP_NAME", "me")
    monkeypatch.setenv("JMP_ENDPOINT", "env:1")
    found = ClientConfigV1Alpha1.resolve()
    assert found is not None and (found.endpoint, found.metadata.name, found.token) == ("env:1", "me", None)

    monkeypatch.setenv("JMP_CLIENT", "other")
    found = ClientConfigV1Alpha1.resolve()
    assert found is not None and (found.endpoint, found.metadata.name) == ("env:1", "other")  # file, then variables

    found = ClientConfigV1Alpha1.resolve(alias="other")
    assert found is not None and found.endpoint == "other:1"  # an explicit choice: no variable changes it
    found = ClientConfigV1Alpha1.resolve(path=ClientConfigV1Alpha1.user_path("current"))
    assert found is not None and (found.endpoint, found.alias) == ("current:1", "current")
    with pytest.raises(ConfigurationError, match="exclude"):
        ClientConfigV1Alpha1.resolve(alias="a", path="b")


def test_single_variables_replace_single_values(monkeypatch: pytest.MonkeyPatch) -> None:
    client("a")
    UserConfigV1Alpha1.load_or_create().use_client("a")
    monkeypatch.setenv("JMP_TOKEN", "env")
    monkeypatch.setenv("JMP_DRIVERS_ALLOW", "one.*,,two.*")
    found = ClientConfigV1Alpha1.resolve()
    assert found is not None
    assert (found.token, found.endpoint, found.drivers.allow) == ("env", "file:1", ["one.*", "two.*"])
    assert ClientConfigV1Alpha1.load("a").token == "file"


@pytest.mark.parametrize(
    ("value", "allow", "unsafe"),
    [
        ({"allow": ["a.*"]}, ["a.*"], False),
        ({"allow": "a.*, b.*"}, ["a.*", "b.*"], False),
        ({"allow": [""]}, [], False),  # what older versions stored for "nothing"
        ({"allow": "UNSAFE"}, ["UNSAFE"], True),
        ({"allow": None, "unsafe": True}, [], True),
    ],
)
def test_allow_lists(value: dict[str, object], allow: list[str], unsafe: bool) -> None:
    drivers = ClientConfigV1Alpha1Drivers.model_validate(value)
    assert (drivers.allow, drivers.unsafe) == (allow, unsafe)


def test_round_trip_keeps_unknown_keys_and_leaves_defaults_out(home: Path) -> None:
    path = home / "clients" / "a.yaml"
    path.parent.mkdir(parents=True)
    text = (
        "apiVersion: jumpstarter.dev/v1alpha1\nkind: ClientConfig\nmetadata: {namespace: null, name: a}\n"
        "endpoint: e:1\ntoken: t\nrefresh_token: r\nfuture: 1\n"
    )
    path.write_text(text)
    config = ClientConfigV1Alpha1.load("a")
    assert config.metadata.namespace is None and config.refresh_token == "r"
    ClientConfigV1Alpha1.save(config)
    data = yaml.safe_load(path.read_text())
    assert data["future"] == 1 and data["refresh_token"] == "r"
    assert "leases" not in data and "shell" not in data
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("alias", ["", "..", "../x", "/etc/x", "a/../../b"])
def test_an_alias_never_leaves_its_directory(alias: str) -> None:
    for action in (ClientConfigV1Alpha1.load, ClientConfigV1Alpha1.delete, ClientConfigV1Alpha1.exists):
        with pytest.raises(ConfigurationError, match="alias"):
            action(alias)
    with pytest.raises(ConfigurationError, match="alias"):
        ClientConfigV1Alpha1.save(ClientConfigV1Alpha1(alias=alias))


def test_current_client(home: Path) -> None:
    assert UserConfigV1Alpha1.current() is None
    assert not UserConfigV1Alpha1.exists()  # asking creates nothing
    user = UserConfigV1Alpha1.load_or_create()
    with pytest.raises(FileNotFoundError):
        user.use_client("gone")
    client("a")
    user.use_client("a")
    assert yaml.safe_load((home / "config.yaml").read_text())["config"] == {"current-client": "a"}
    assert stat.S_IMODE((home / "config.yaml").stat().st_mode) == 0o600
    found = UserConfigV1Alpha1.current()
    assert found is not None and found.alias == "a"
    ClientConfigV1Alpha1.delete("a")
    assert UserConfigV1Alpha1.current() is None  # a dangling alias is no client, and no error
    (home / "config.yaml").write_text("config: {current-client: ../../etc/passwd}\n")
    with pytest.raises(ConfigurationError, match="alias"):
        UserConfigV1Alpha1.current()


def test_the_config_home_is_read_when_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JMP_CLIENT_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert client("a").path == tmp_path / "elsewhere" / "clients" / "a.yaml"


def test_tls_ca_is_the_base64_of_pem() -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
    assert TLSConfigV1Alpha1(ca=base64.b64encode(pem).decode()).ca_pem() == pem
    assert TLSConfigV1Alpha1().ca_pem() is None
    with pytest.raises(ValueError, match="PEM"):
        TLSConfigV1Alpha1(ca=base64.b64encode(b"something else").decode())
