# SPDX-License-Identifier: Apache-2.0
"""Administration over the wire: who may, what it changes at once, and what is written down."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
import yaml
from admin_peers import AdminPeer, admin_lab, who_am_i
from controller_harness import LabFiles, run_cli
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from peers import HOME, ExporterPeer, Peer, controller, refusal, short

from jumpstarter_protocol.jumpstarter.admin.v1 import admin_pb2

SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
Client, Exporter, Policy = admin_pb2.Client, admin_pb2.Exporter, admin_pb2.AccessPolicy


def test_every_call_but_whoami_is_for_administrators_only(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab):
            alice = AdminPeer(lab, lab.client("alice"))
            board = AdminPeer(lab, lab.exporter("board"), "Exporter")
            async with grpc.aio.secure_channel(lab.endpoint, grpc.ssl_channel_credentials(lab.ca)) as nobody:
                for method in SERVICE.methods:
                    request = GetMessageClass(method.input_type)()
                    path = f"/{SERVICE.full_name}/{method.name}"
                    refused = await refusal(nobody.unary_unary(path)(request.SerializeToString()))
                    assert refused[0] == "UNAUTHENTICATED", method.name
                    if method.name == "WhoAmI":
                        continue
                    for peer in (alice, board):
                        code, text = await refusal(getattr(peer.stub, method.name)(request, metadata=peer.metadata))
                        assert code == "PERMISSION_DENIED", method.name
                        assert text.startswith("permission denied: ") and "not an administrator" in text
            await alice.close()
            await board.close()

    asyncio.run(body())


def test_whoami(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            me = await root.do("WhoAmI")
            assert (me.kind, me.namespace, me.name, me.administrator, me.method) == (
                "client",
                "default",
                "root",
                True,
                "token",
            )
            assert me.expiry.seconds > 0
            board = AdminPeer(lab, lab.exporter("board"), "Exporter")
            it = await board.do("WhoAmI")
            assert (it.kind, it.name, it.administrator) == ("exporter", "board", False)
            await board.close()

    asyncio.run(body())


def test_clients_are_made_changed_listed_and_deleted(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            made = await root.do(
                "CreateClient",
                parent=HOME,
                client_id="alice",
                client=Client(labels={"team": "a"}, username="corp:alice"),
            )
            assert made.client.name == f"{HOME}/clients/alice"
            assert (made.endpoint, made.ca.encode()) == (lab.endpoint, lab.ca)
            async with root.open(made.token) as channel:
                who = await who_am_i(channel)
                assert (who.name, who.administrator) == ("alice", False)
            without = await root.do("CreateClient", parent=HOME, client_id="bob", without_token=True)
            assert (without.token, without.HasField("expiry")) == ("", False)
            mask = FieldMask(paths=["labels"])
            name = f"{HOME}/clients/alice"
            changed = await root.do("UpdateClient", client=Client(name=name, labels={"team": "b"}), update_mask=mask)
            assert (dict(changed.labels), changed.username) == ({"team": "b"}, "corp:alice")
            assert await root.do("GetClient", name=name) == changed
            whole = await root.do("UpdateClient", client=Client(name=name))
            assert (dict(whole.labels), whole.username, whole.administrator) == ({}, "", False)
            listed = await root.do("ListClients", parent=HOME, page_size=2)
            assert [short(client.name) for client in listed.clients] == ["alice", "bob"]
            rest = await root.do("ListClients", parent=HOME, page_size=2, page_token=listed.next_page_token)
            assert [short(client.name) for client in rest.clients] == ["root"]
            assert not rest.next_page_token
            await root.do("DeleteClient", name=name)
            assert (await refusal(root.do("GetClient", name=name)))[0] == "NOT_FOUND"
            await root.do("CreateClient", parent=HOME, client_id="alice")

    asyncio.run(body())


def test_what_is_wrong_is_named_with_the_right_code(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            await root.do("CreateClient", parent=HOME, client_id="bob", client=Client(username="corp:bob"))
            bob = f"{HOME}/clients/bob"
            one = [Policy.Rule()]
            for code, part, call in [
                ("ALREADY_EXISTS", "client default/bob", root.do("CreateClient", parent=HOME, client_id="bob")),
                ("INVALID_ARGUMENT", 'client name "Bob"', root.do("CreateClient", parent=HOME, client_id="Bob")),
                ("INVALID_ARGUMENT", "client name", root.do("CreateClient", parent=HOME, client_id="x" * 64)),
                ("INVALID_ARGUMENT", "client name", root.do("CreateClient", parent=HOME, client_id="../x")),
                ("INVALID_ARGUMENT", "parent must be", root.do("CreateClient", parent="default", client_id="x")),
                ("INVALID_ARGUMENT", "namespace", root.do("CreateClient", parent="namespaces/A_", client_id="x")),
                (
                    "INVALID_ARGUMENT",
                    "label",
                    root.do("CreateClient", parent=HOME, client_id="x", client=Client(labels={"a b": "c"})),
                ),
                (
                    "INVALID_ARGUMENT",
                    'username "corp:bob" is that of client default/bob',
                    root.do("CreateExporter", parent=HOME, exporter_id="x", exporter=Exporter(username="corp:bob")),
                ),
                ("INVALID_ARGUMENT", "name must be", root.do("GetClient", name=f"{HOME}/exporters/bob")),
                ("NOT_FOUND", "client default/eve", root.do("GetClient", name=f"{HOME}/clients/eve")),
                ("NOT_FOUND", "client other/bob", root.do("GetClient", name="namespaces/other/clients/bob")),
                ("NOT_FOUND", "exporter default/e", root.do("DeleteExporter", name=f"{HOME}/exporters/e")),
                ("NOT_FOUND", "policy default/p", root.do("DeletePolicy", name=f"{HOME}/policies/p")),
                ("NOT_FOUND", "lease default/l", root.do("EndLease", name=f"{HOME}/leases/l")),
                ("INVALID_ARGUMENT", "invalid filter", root.do("ListClients", parent=HOME, filter="a in (")),
                ("INVALID_ARGUMENT", "page_token", root.do("ListClients", parent=HOME, page_token="*")),
                ("INVALID_ARGUMENT", "page_token", root.do("ListAudit", page_token="YQ==")),
                ("INVALID_ARGUMENT", "lifetime", root.do("IssueToken", name=bob, lifetime=Duration(seconds=-1))),
                ("INVALID_ARGUMENT", "lifetime", root.do("IssueToken", name=bob, lifetime=Duration(seconds=10**11))),
                ("INVALID_ARGUMENT", "rules", root.do("SetPolicy", parent=HOME, policy_id="p")),
                (
                    "INVALID_ARGUMENT",
                    "policy p: exporters",
                    root.do("SetPolicy", parent=HOME, policy_id="p", policy=Policy(exporters="a in (", rules=one)),
                ),
                (
                    "INVALID_ARGUMENT",
                    "policy p: rule 1: clients",
                    root.do("SetPolicy", parent=HOME, policy_id="p", policy=Policy(rules=[Policy.Rule(clients="!")])),
                ),
                (
                    "INVALID_ARGUMENT",
                    'update_mask: "name"',
                    root.do("UpdateClient", client=Client(name=bob), update_mask=FieldMask(paths=["name"])),
                ),
                (
                    "FAILED_PRECONDITION",
                    "without an administrator",
                    root.do("UpdateClient", client=Client(name=f"{HOME}/clients/root")),
                ),
                (
                    "FAILED_PRECONDITION",
                    "without an administrator",
                    root.do("DeleteClient", name=f"{HOME}/clients/root", force=True),
                ),
            ]:
                got = await refusal(call)
                assert got[0] == code and part in got[1], (code, part, got)
            # The refused ones have left nothing behind.
            listed = await root.do("ListClients", parent=HOME)
            assert [short(client.name) for client in listed.clients] == ["bob", "root"]

    asyncio.run(body())


def test_new_exporters_labels_and_enabling_move_the_queue_at_once(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            made = await root.do(
                "CreateExporter", parent=HOME, exporter_id="e0", exporter=Exporter(labels={"board": "y"}), disabled=True
            )
            assert (made.exporter.enabled, dict(made.exporter.labels)) == (False, {"board": "y"})
            e0 = ExporterPeer(lab, _with_token(lab, lab.exporter("scratch"), "e0", made.token))
            await e0.start()
            alice = Peer(lab, lab.client("alice"), "Client")
            lease = await alice.lease("board=x", allow_disabled=True)
            reasons = [condition.reason for condition in lease.conditions]
            assert reasons in (["NoAccess"], ["NoMatch"])

            full = f"{HOME}/exporters/e0"
            await root.do(
                "UpdateExporter",
                exporter=Exporter(name=full, labels={"board": "x"}, enabled=True),
                update_mask=FieldMask(paths=["labels", "enabled"]),
            )
            lease = await alice.lease("board=x")
            assert (await e0.next()).lease_name == short(lease.name)
            seen = await root.do("GetExporter", name=full)
            assert (seen.lease, seen.online, seen.enabled) == (short(lease.name), True, True)
            assert dict(seen.reported_labels) == {"jumpstarter.dev/name": "e0"}
            [listed] = (await root.do("ListExporters", parent=HOME, filter="board=x")).exporters
            assert listed == seen
            # A disabled exporter keeps its lease, and gets no other one.
            await root.do("UpdateExporter", exporter=Exporter(name=full), update_mask=FieldMask(paths=["enabled"]))
            assert (await root.do("GetExporter", name=full)).lease == short(lease.name)
            await root.do("EndLease", name=lease.name, reason="maintenance")
            assert not (await e0.next()).leased
            ended = await alice.ask("GetLease", name=lease.name)
            assert "maintenance" in ended.conditions[-1].message
            await root.do("EndLease", name=lease.name)  # it has ended already
            refused = await alice.lease("board=x")
            assert refused.conditions[-1].reason == "AllDisabled"
            await alice.close()
            await e0.close()

    asyncio.run(body())


def _with_token(lab: LabFiles, template: Path, name: str, token: str) -> Path:
    """A copy of a configuration file for another exporter."""
    path = lab.folder / f"made-{name}.yaml"
    data = yaml.safe_load(template.read_text())
    data["metadata"]["name"], data["token"] = name, token
    path.write_text(yaml.safe_dump(data))
    return path


def test_deleting_ends_what_must_end(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            e0 = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
            e1 = ExporterPeer(lab, lab.exporter("e1", "-l", "board=y"))
            await e0.start()
            await e1.start()
            alice, bob = (Peer(lab, lab.client(name), "Client") for name in ("alice", "bob"))
            held = await alice.lease("board=x")
            waiting = await bob.lease("board=x")
            assert (await e0.next()).lease_name == short(held.name)

            refused = await refusal(root.do("DeleteClient", name=f"{HOME}/clients/alice"))
            assert refused[0] == "FAILED_PRECONDITION" and short(held.name) in refused[1]
            await root.do("DeleteClient", name=f"{HOME}/clients/alice", force=True)
            # The exporter goes to who waits, and the deleted client's tokens are worth nothing.
            assert not (await e0.next()).leased
            assert (await e0.next()).lease_name == short(waiting.name)
            assert (await refusal(alice.ask("ListLeases", parent=HOME)))[0] == "UNAUTHENTICATED"
            ended = await bob.ask("GetLease", name=held.name)
            assert ended.client == f"{HOME}/clients/alice"  # what was stays readable
            assert ended.conditions[-1].reason == "Released"

            refused = await refusal(root.do("DeleteExporter", name=f"{HOME}/exporters/e0"))
            assert refused[0] == "FAILED_PRECONDITION"
            await root.do("DeleteExporter", name=f"{HOME}/exporters/e0", force=True)
            # Its Status stream, which was open, has ended with the reason.
            assert await _end_of(e0) == ("UNAUTHENTICATED", "exporter default/e0 does not exist any more")
            assert (await refusal(e0.call("Register")))[0] == "UNAUTHENTICATED"
            over = await bob.ask("GetLease", name=waiting.name)
            assert (over.exporter, over.conditions[-1].reason) == (f"{HOME}/exporters/e0", "Released")
            names = [short(each.name) for each in (await root.do("ListExporters", parent=HOME)).exporters]
            assert names == ["e1"]
            # The name is free again, for somebody else.
            again = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
            await again.start()
            assert (await refusal(e0.call("Register")))[0] == "UNAUTHENTICATED"
            for peer in (alice, bob, e1, again):
                await peer.close()
            await e0.close()

    asyncio.run(body())


async def _end_of(exporter: ExporterPeer) -> tuple[str, str]:
    """Code and text that the exporter's Status stream ends with."""
    watch, exporter._watch = exporter._watch, None
    assert watch is not None
    async with asyncio.timeout(60):
        return await refusal(watch)


def test_policies_with_several_rules(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            e0 = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x"))
            await e0.start()
            alice = Peer(lab, lab.client("alice", "-l", "team=a"), "Client")
            rules = [
                Policy.Rule(clients="team=b", priority=5, description="team b first"),
                Policy.Rule(clients="team = a", maximum_duration=Duration(seconds=60), spot=True),
            ]
            made = await root.do(
                "SetPolicy", parent=HOME, policy_id="boards", policy=Policy(exporters="board=x", rules=rules)
            )
            assert made.rules[1].clients == "team=a"
            assert (made.rules[1].maximum_duration.seconds, made.rules[1].spot) == (60, True)
            assert await root.do("GetPolicy", name=f"{HOME}/policies/boards") == made
            assert list((await root.do("ListPolicies", parent=HOME)).policies) == [made]
            assert (await alice.lease("board=x", seconds=600)).conditions[-1].reason == "NoAccess"
            lease = await alice.lease("board=x", seconds=30)
            assert lease.exporter
            await alice.ask("DeleteLease", name=lease.name)
            await root.do("DeletePolicy", name=f"{HOME}/policies/boards")
            assert (await alice.lease("board=x", seconds=600)).exporter
            await alice.close()
            await e0.close()

    asyncio.run(body())


def test_tokens_are_issued_listed_and_revoked(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            alice = AdminPeer(lab, lab.client("alice"))
            name = f"{HOME}/clients/alice"
            first = await root.do("IssueToken", name=name, lifetime=Duration(seconds=60))
            assert (first.revoked, first.endpoint) == (0, lab.endpoint)
            assert abs(first.expiry.seconds - (await _now(root)) - 60) < 30
            second = await root.do("IssueToken", name=name, revoke_older=True)
            assert second.revoked == 2
            for token, accepted in ((alice.token, False), (first.token, False), (second.token, True)):
                async with alice.open(token) as channel:
                    if accepted:
                        assert (await who_am_i(channel)).name == "alice"
                    else:
                        assert await refusal(who_am_i(channel)) == ("UNAUTHENTICATED", "token has been revoked")
            listed = (await root.do("ListTokens", name=name)).tokens
            assert [token.HasField("revoked") for token in listed] == [True, True, False]
            assert not any(part in str(listed) for part in second.token.split("."))
            assert (await root.do("RevokeTokens", name=name, ids=["none"])).revoked == 0
            assert (await root.do("RevokeTokens", name=name, ids=[listed[2].id])).revoked == 1
            async with alice.open(second.token) as channel:
                assert await refusal(who_am_i(channel)) == ("UNAUTHENTICATED", "token has been revoked")
            await alice.close()

    asyncio.run(body())


async def _now(root: AdminPeer) -> int:
    """The controller's time: that of the newest entry of its audit log."""
    [entry] = (await root.do("ListAudit", page_size=1)).entries
    return int(entry.at.seconds)


def test_a_demoted_administrator_is_refused_at_once(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            other = AdminPeer(lab, lab.client("other", "--admin"))
            await other.do("ListClients", parent=HOME)
            await root.do("UpdateClient", client=Client(name=f"{HOME}/clients/other"))
            assert (await refusal(other.do("ListClients", parent=HOME)))[0] == "PERMISSION_DENIED"
            assert not (await other.do("WhoAmI")).administrator
            await other.close()

    asyncio.run(body())


def test_the_audit_log_says_who_did_it_and_can_be_searched(lab: LabFiles) -> None:
    async def entries(root: AdminPeer, **wanted: object) -> list[admin_pb2.AuditEntry]:
        found, token = [], ""
        while True:
            page = await root.do("ListAudit", page_size=2, page_token=token, **wanted)
            found += page.entries
            token = page.next_page_token
            if not token:
                return found

    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            await root.do("CreateClient", parent=HOME, client_id="alice")
            await root.do("CreateExporter", parent="namespaces/other", exporter_id="e9")
            await root.do("SetPolicy", parent=HOME, policy_id="p", policy=Policy(rules=[Policy.Rule(clients="a=b")]))
            [made] = await entries(root, client="alice", action="CREATED")
            assert (made.actor, made.namespace) == ("client default/root", "default")
            assert [entry.exporter for entry in await entries(root, parent="namespaces/other")] == ["e9", "e9"]
            [policy] = await entries(root, action="policy set")
            assert policy.detail["rules"][0]["clients"] == "a=b"
            whole = await entries(root)
            assert [e.at.ToNanoseconds() for e in whole] == sorted((e.at.ToNanoseconds() for e in whole), reverse=True)
            middle = Timestamp()
            middle.CopyFrom(policy.at)
            assert policy in await entries(root, since=middle)
            assert policy not in await entries(root, until=middle)
            assert await entries(root, lease="none") == []
            assert await entries(root, action="%") == []  # no wildcard

    asyncio.run(body())


@pytest.mark.parametrize("size", [70_000, 5_000_000])
def test_oversized_requests_are_refused(lab: LabFiles, size: int) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            big = Client(labels={"a": "x" * size})
            code, text = await refusal(root.do("CreateClient", parent=HOME, client_id="big", client=big))
            assert code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
            assert len(text) <= 1000
            assert (await refusal(root.do("GetClient", name=f"{HOME}/clients/big")))[0] == "NOT_FOUND"

    asyncio.run(body())


def test_offline_commands_are_taken_up_by_a_running_controller(lab: LabFiles) -> None:
    async def body() -> None:
        async with controller(lab):
            e0 = ExporterPeer(lab, lab.exporter("e0", "-l", "board=x", "--disabled"))
            await e0.start()
            await _command(lab, "create", "policy", "only-b", "--clients", "team=b")
            alice = Peer(lab, lab.client("alice", "-l", "team=a"), "Client")
            assert (await alice.lease()).conditions[-1].reason in ("NoAccess", "AllDisabled")
            await _command(lab, "update", "exporter", "e0", "--enable")
            await _command(lab, "create", "policy", "only-b", "--append", "--clients", "team=a")
            lease = await alice.lease()
            assert (await e0.next()).lease_name == short(lease.name)
            await _command(lab, "end-lease", short(lease.name))
            assert not (await e0.next()).leased
            lease = await alice.lease()
            assert (await e0.next()).lease_name == short(lease.name)
            await _command(lab, "delete", "client", "alice", "--force")
            assert not (await e0.next()).leased
            await alice.close()
            await e0.close()

    asyncio.run(body())


async def _command(lab: LabFiles, *argv: str) -> None:
    await asyncio.to_thread(run_cli, "admin", *argv, "--config", lab.config)


def test_namespaces_are_apart_for_everybody_but_administrators(lab: LabFiles) -> None:
    async def body() -> None:
        async with admin_lab(lab) as (_, root):
            here = Peer(lab, lab.client("alice"), "Client")
            made = await root.do("CreateClient", parent="namespaces/other", client_id="alice")
            there = Peer(lab, _with_token(lab, lab.folder / "client-alice.yaml", "alice", made.token), "Client")
            # Its headers say "default", its token does not.
            code, text = await refusal(there.ask("ListLeases", parent=HOME))
            assert code == "PERMISSION_DENIED" and text.startswith("permission denied for client other/alice")
            there.metadata = []
            assert (await refusal(there.ask("ListLeases", parent=HOME)))[0] == "PERMISSION_DENIED"
            assert not (await there.ask("ListLeases", parent="namespaces/other")).leases
            await root.do("DeleteClient", name="namespaces/other/clients/alice")
            await here.ask("ListLeases", parent=HOME)  # the one of the same name is still there
            assert (await refusal(there.ask("ListLeases", parent="namespaces/other")))[0] == "UNAUTHENTICATED"
            await here.close()
            await there.close()

    asyncio.run(body())


def test_nothing_secret_is_in_the_controllers_log(lab: LabFiles) -> None:
    async def body() -> list[str]:
        root = AdminPeer(lab, lab.client("root", "--admin"))
        made = await root.do("CreateClient", parent=HOME, client_id="alice")
        secrets = [root.token, made.token, made.token[:-4] + "AAAA", "garbage-that-is-no-token"]
        await root.do("RevokeTokens", name=f"{HOME}/clients/alice")
        for token in secrets[1:]:
            async with root.open(token) as channel:
                assert (await refusal(who_am_i(channel)))[0] == "UNAUTHENTICATED"
        await root.close()
        return secrets

    with lab.serving():
        secrets = asyncio.run(body())
    log = (lab.folder / "controller.log").read_text()
    assert "WhoAmI refused for" in log and "token has been revoked" in log
    assert not [part for token in secrets for part in token.split(".") if part in log]
    assert "PRIVATE KEY" not in log
