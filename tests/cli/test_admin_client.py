# SPDX-License-Identifier: Apache-2.0
"""`jumpstarter.client.admin`: plain values, one-line errors, and controllers that have no administration."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import yaml
from cli_harness import Authority, Cli, secret_file
from controller_harness import LabFiles

from jumpstarter.client.admin import AdminClient, PolicyRule, connect_admin
from jumpstarter.common.exceptions import AuthenticationError, ConfigurationError, ControllerError
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter.config.common import ObjectMeta
from jumpstarter.config.tls import TLSConfigV1Alpha1


@pytest.fixture
def bare_controller(authority: Authority) -> Iterator[tuple[str, Authority]]:
    """A TLS server that knows no service, as Jumpstarter 0.9 knows none of ours."""
    certificate, key = authority.issue("bare")
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}", authority
    finally:
        server.stop(None).wait()


def test_values_are_plain_and_complete(lab: LabFiles, root: Path) -> None:
    async def scenario(admin: AdminClient) -> None:
        who = await admin.whoami()
        assert (who.kind, who.namespace, who.name, who.administrator, who.method) == (
            "client",
            "default",
            "root",
            True,
            "token",
        )
        assert who.expiry is not None and who.expiry > datetime.now(UTC)

        client, credential = await admin.create_client("val", labels={"a": "b"}, username="corp:val")
        assert client.labels == {"a": "b"} and client.username == "corp:val"
        assert credential is not None and credential.token and credential.token not in repr(credential)
        assert credential.ca.encode() == lab.ca and credential.expiry is not None
        client = await admin.update_client("val", username="")
        assert client.username == "" and client.labels == {"a": "b"}  # only what was asked for

        credential = await admin.issue_token("client", "val", lifetime=3600, revoke_older=True)
        assert credential.revoked == 1 and credential.expiry is not None
        assert timedelta(minutes=59) < credential.expiry - datetime.now(UTC) <= timedelta(minutes=60)
        states = sorted(token.valid_at(datetime.now(UTC)) for token in await admin.list_tokens("client", "val"))
        assert states == [False, True]

        rule = PolicyRule(clients="a=b", priority=-3, maximum_duration=90.5, spot=True, description="why")
        policy = await admin.set_policy("p", "board=x", [rule, PolicyRule()])
        assert policy.rules == (rule, PolicyRule()) and await admin.list_policies() == [policy]
        await admin.delete_policy("p")

        exporter, none = await admin.create_exporter("valex", enabled=False, without_token=True)
        assert none is None and not exporter.enabled and not exporter.online and exporter.last_seen is None
        exporter = await admin.update_exporter("valex", enabled=True)
        assert exporter.enabled
        await admin.delete_exporter("valex")
        await admin.delete_client("val")

    _as(root, scenario)


def test_lists_have_no_end_at_a_page(lab: LabFiles, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumpstarter.client.admin._PAGE", 2)

    async def scenario(admin: AdminClient) -> None:
        names = [f"many-{number}" for number in range(5)]
        for name in names:
            await admin.create_client(name, labels={"many": "yes"}, without_token=True)
        assert [client.name for client in await admin.list_clients("many=yes")] == names
        entries = await admin.list_audit(action="client created", limit=None)
        assert len(entries) >= 5 and entries == sorted(entries, key=lambda entry: entry.at, reverse=True)
        assert len(await admin.list_audit(limit=3)) == 3

    _as(root, scenario)


def test_errors_are_one_line_that_names_controller_and_thing(lab: LabFiles, root: Path) -> None:
    async def scenario(admin: AdminClient) -> None:
        for call, code, text in (
            (admin.get_client("nope"), "NOT_FOUND", 'get client "nope"'),
            (admin.create_client("UPPER"), "INVALID_ARGUMENT", 'create client "UPPER"'),
            (admin.create_client("root"), "ALREADY_EXISTS", 'create client "root"'),
            (admin.set_policy("p", "a>b", [PolicyRule()]), "INVALID_ARGUMENT", 'set policy "p"'),
            (admin.end_lease("nope"), "NOT_FOUND", 'end lease "nope"'),
        ):
            with pytest.raises(ControllerError) as refused:
                await call
            assert refused.value.code == code
            message = str(refused.value)
            assert message.startswith(f"controller {lab.endpoint}: {text}: ") and "\n" not in message
        with pytest.raises(ConfigurationError, match="nothing to change"):
            await admin.update_client("root")

    _as(root, scenario)


def test_a_token_that_is_none_of_the_labs(lab: LabFiles, root: Path) -> None:
    config = ClientConfigV1Alpha1.from_file(root)
    config.token = "nonsense"

    async def scenario() -> None:
        async with connect_admin(config) as admin:
            with pytest.raises(AuthenticationError, match="jmp login"):
                await admin.whoami()

    asyncio.run(scenario())


def test_a_controller_without_administration(bare_controller: tuple[str, Authority]) -> None:
    endpoint, authority = bare_controller
    config = ClientConfigV1Alpha1(
        metadata=ObjectMeta(namespace="ns", name="me"),
        endpoint=endpoint,
        token="t",
        tls=TLSConfigV1Alpha1(ca=base64.b64encode(authority.ca.read_bytes()).decode()),
    )

    async def scenario() -> None:
        async with connect_admin(config) as admin:
            with pytest.raises(
                ControllerError, match=r"Jumpstarter 0\.9 is administered through Kubernetes"
            ) as refused:
                await admin.list_clients()
            assert refused.value.code == "UNIMPLEMENTED"

    asyncio.run(scenario())


def test_login_at_a_controller_that_cannot_say_who_we_are(cli: Cli, bare_controller: tuple[str, Authority]) -> None:
    endpoint, authority = bare_controller
    token = secret_file(cli.directory / "token", "some-token")
    options = ["--endpoint", endpoint, "--namespace", "ns", "--ca", authority.ca, "--token-file", token]
    result = cli.jmp("login", "--client", "me", *options)
    assert result.returncode == 0 and "not checked" in result.stderr, result
    path = cli.directory / "xdg" / "jumpstarter" / "clients" / "me.yaml"
    assert yaml.safe_load(path.read_text())["token"] == "some-token"


def test_login_while_the_controller_is_away_says_so_and_stores_the_token(cli: Cli, authority: Authority) -> None:
    token = secret_file(cli.directory / "token", "some-token")
    options = ["--endpoint", "127.0.0.1:1", "--namespace", "ns", "--ca", authority.ca, "--token-file", token]
    result = cli.jmp("login", "--client", "me", *options)
    assert result.returncode == 0 and "without having been checked" in result.stderr, result


def _as(client: Path, scenario: object) -> None:
    """Run a scenario with the AdminClient of a configuration."""

    async def run() -> None:
        async with connect_admin(ClientConfigV1Alpha1.from_file(client)) as admin:
            await scenario(admin)  # type: ignore[operator]

    asyncio.run(run())
