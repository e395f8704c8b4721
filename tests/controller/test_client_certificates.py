# SPDX-License-Identifier: Apache-2.0
"""A certificate of the lab's authority is as good as a token, and as revocable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from admin_peers import who_am_i
from controller_harness import LabFiles, run_cli
from peers import HOME, Peer, controller, refusal, refused_soon

from jumpstarter.common.controller import open_channel
from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.config.client import ClientConfigV1Alpha1
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import cache
from jumpstarter_protocol import client_pb2_grpc
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2


@pytest.fixture
def lab(tmp_path: Path, database_url: str) -> LabFiles:
    """A lab with a second port, where certificates are required."""
    lab = LabFiles.make(tmp_path / "lab", database=database_url)
    config = yaml.safe_load(lab.config.read_text())
    config["tls"] |= {"clientCA": "ca.crt", "clientListen": "127.0.0.1:0"}
    lab.config.write_text(yaml.safe_dump(config))
    return lab


def issue(lab: LabFiles, name: str, *options: str) -> str:
    """Make a certificate; the name of its files."""
    run_cli("ca", "issue-client", "--dir", lab.folder, "--config", lab.config, name, *options)
    return f"exporter-{name}" if "exporter" in options else f"client-{name}"


@contextlib.asynccontextmanager
async def connected(lab: LabFiles, address: str, files: str, token: str = "") -> AsyncIterator[grpc.aio.Channel]:
    """A channel that shows a certificate, and perhaps a token."""
    credentials = grpc.ssl_channel_credentials(
        lab.ca, (lab.folder / f"{files}.key").read_bytes(), (lab.folder / f"{files}.crt").read_bytes()
    )
    if token:
        credentials = grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(token))
    async with grpc.aio.secure_channel(address, credentials) as channel:
        yield channel


def test_a_certificate_identifies_without_a_token(lab: LabFiles) -> None:
    async def body() -> None:
        lab.client("alice")
        lab.exporter("board")
        async with controller(lab) as running:
            for name, kind in (("alice", "client"), ("board", "exporter")):
                files = issue(lab, name, "--kind", kind)
                async with connected(lab, running.client_address, files) as channel:
                    who = await who_am_i(channel)
                    assert (who.kind, who.name, who.method, who.HasField("expiry")) == (
                        kind,
                        name,
                        "certificate",
                        False,
                    )
                    if kind == "client":
                        leases = client_pb2_grpc.ClientServiceStub(channel).ListLeases
                        await leases(client_pb2.ListLeasesRequest(parent=HOME), timeout=60)

    asyncio.run(body())


def test_without_a_certificate_nobody_connects_there(lab: LabFiles) -> None:
    async def body() -> None:
        alice = lab.client("alice")
        async with controller(lab) as running:
            token = yaml.safe_load(alice.read_text())["token"]
            credentials = grpc.composite_channel_credentials(
                grpc.ssl_channel_credentials(lab.ca), grpc.access_token_call_credentials(token)
            )
            async with grpc.aio.secure_channel(running.client_address, credentials) as channel:
                assert (await refusal(who_am_i(channel)))[0] == "UNAVAILABLE"
            # The other port goes on with tokens alone.
            peer = Peer(lab, alice, "Client")
            await peer.ask("ListLeases", parent=HOME)
            await peer.close()

    asyncio.run(body())


def test_certificate_and_token_must_be_of_the_same_one(lab: LabFiles) -> None:
    async def body() -> None:
        alice, bob = lab.client("alice"), lab.client("bob")
        files = issue(lab, "alice")
        async with controller(lab) as running:
            for config, code in ((alice, None), (bob, "PERMISSION_DENIED")):
                token = yaml.safe_load(config.read_text())["token"]
                async with connected(lab, running.client_address, files, token) as channel:
                    if code is None:
                        assert (await who_am_i(channel)).method == "token"
                    else:
                        refused = await refusal(who_am_i(channel))
                        assert refused[0] == code and "certificate is that of client default/alice" in refused[1]

    asyncio.run(body())


@pytest.mark.parametrize("how", ["revoke", "delete"])
def test_it_is_worth_nothing_once_revoked_or_its_holder_deleted(
    lab: LabFiles, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MAX_AGE", 3600.0)  # only that it is told of the revocation can help

    async def body() -> None:
        lab.client("alice")
        files = issue(lab, "alice")
        async with controller(lab) as running:
            async with connected(lab, running.client_address, files) as channel:
                await who_am_i(channel)
                await asyncio.to_thread(run_cli, "admin", how, "client", "alice", "--config", lab.config)
                refused = await refused_soon(lambda: who_am_i(channel))
                assert refused[0] == "UNAUTHENTICATED"
                lab.client("carol")
                if how == "delete":  # somebody new of the same name is somebody else
                    (lab.folder / "client-alice.yaml").unlink()
                    lab.client("alice")
                    assert (await refusal(who_am_i(channel)))[0] == "UNAUTHENTICATED"

    asyncio.run(body())


def test_a_certificate_of_a_server_or_of_a_stranger_is_nobody(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        lab.client("alice")
        other = LabFiles.make(tmp_path / "other")
        other.client("alice")
        issue(other, "alice")
        async with controller(lab) as running:
            async with connected(lab, running.client_address, "server") as channel:
                assert (await refusal(who_am_i(channel)))[0] == "UNAUTHENTICATED"
            for suffix in ("crt", "key"):
                (lab.folder / f"stranger.{suffix}").write_bytes((other.folder / f"client-alice.{suffix}").read_bytes())
            async with connected(lab, running.client_address, "stranger") as channel:
                assert (await refusal(who_am_i(channel)))[0] == "UNAVAILABLE"

    asyncio.run(body())


def test_a_certificate_without_its_row_is_refused(lab: LabFiles, tmp_path: Path) -> None:
    """Somebody who has the authority's key, but not the database, makes no identity that anybody could not revoke."""

    async def body() -> None:
        from jumpstarter_controller.ca import issue_client_certificate

        lab.client("alice")
        issue_client_certificate(lab.folder, "forged", "alice", "jumpstarter://default/clients/alice", 1)
        async with controller(lab) as running:
            async with connected(lab, running.client_address, "forged") as channel:
                refused = await refusal(who_am_i(channel))
                assert refused == ("UNAUTHENTICATED", "certificate is unknown to this controller")

    asyncio.run(body())


def test_renewal_keeps_the_holder(lab: LabFiles) -> None:
    async def body() -> None:
        lab.client("alice")
        files = issue(lab, "alice")
        run_cli("ca", "renew", "--dir", lab.folder, "--out", files, "--config", lab.config)
        async with controller(lab) as running:
            async with connected(lab, running.client_address, files) as channel:
                assert (await who_am_i(channel)).name == "alice"

    asyncio.run(body())


def test_only_for_who_exists(lab: LabFiles) -> None:
    with pytest.raises(Refused, match="client default/eve does not exist"):
        issue(lab, "eve")
    assert not list(lab.folder.glob("client-eve.*"))


def test_one_port_for_all_when_no_other_is_named(tmp_path: Path) -> None:
    tls: dict[str, Any] = {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt", "clientCA": "ca.crt"}
    lab = LabFiles.make(tmp_path / "lab", tls=tls)
    lab.client("alice")
    files = issue(lab, "alice")

    async def body() -> None:
        async with controller(lab) as running:
            assert running.client_address is None
            async with connected(lab, running.address, files) as channel:
                assert (await who_am_i(channel)).name == "alice"
            async with grpc.aio.secure_channel(running.address, grpc.ssl_channel_credentials(lab.ca)) as channel:
                assert (await refusal(who_am_i(channel)))[0] == "UNAVAILABLE"

    asyncio.run(body())


def test_a_port_for_certificates_needs_an_authority(tmp_path: Path) -> None:
    tls = {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt", "clientListen": "127.0.0.1:0"}
    lab = LabFiles.make(tmp_path / "lab", tls=tls)
    with pytest.raises(ConfigurationError, match="tls: clientListen needs clientCA"):
        lab.client("alice")


def test_our_client_shows_the_certificate_of_its_configuration(lab: LabFiles) -> None:
    async def body() -> None:
        file = lab.client("alice")
        files = issue(lab, "alice")
        async with controller(lab) as running:
            data = yaml.safe_load(file.read_text())
            data["token"] = ""
            data["endpoint"] = running.client_address
            data["tls"] |= {"cert": str(lab.folder / f"{files}.crt"), "key": str(lab.folder / f"{files}.key")}
            file.write_text(yaml.safe_dump(data))
            async with open_channel(ClientConfigV1Alpha1.from_file(file)) as channel:
                assert (await who_am_i(channel)).method == "certificate"

    asyncio.run(body())
