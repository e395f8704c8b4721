# SPDX-License-Identifier: Apache-2.0
"""Routers apart from the controller: which one a dial gets, and that its tunnels obey the leases all the same."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import subprocess
from contextlib import redirect_stdout, suppress
from pathlib import Path

import grpc
import pytest
from controller_harness import LabFiles, reserved_port, run_cli
from google.protobuf.duration_pb2 import Duration
from peers import HOME, Peer
from router_harness import (
    RouterProcess,
    attached,
    attachments,
    dial,
    echo,
    ended,
    leased,
    people,
    pin,
    router_config,
    running,
    tunnel,
    wait_for_attachment,
    wait_for_detachment,
)

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.router_config import RouterConfig
from jumpstarter_controller.routers import Candidate, Route, choose
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2


def _candidate(name: str, load: float = 0, **labels: str) -> Candidate:
    return Candidate(Route(f"{name}:1", name), name, labels, load)


@pytest.mark.parametrize(
    ("expected", "candidates"),
    [
        ("near", [_candidate("far", site="munich"), _candidate("near", load=9, site="berlin")]),
        ("plain", [_candidate("far", site="munich"), _candidate("plain", load=9)]),
        ("closer", [_candidate("near", site="berlin"), _candidate("closer", load=9, site="berlin", rack="7")]),
        ("idle", [_candidate("busy", load=2, site="berlin"), _candidate("idle", load=1, site="berlin")]),
        ("a", [_candidate("b"), _candidate("a")]),
        # A label that the exporter does not have says nothing about it.
        ("other", [_candidate("busy", load=1), _candidate("other", speed="10g")]),
    ],
)
def test_a_dial_gets_the_nearest_router_and_of_those_the_least_loaded(
    expected: str, candidates: list[Candidate]
) -> None:
    exporter = {"site": "berlin", "rack": "7", "board": "x"}
    for order in (candidates, candidates[::-1]):
        assert choose(order, exporter) == Route(f"{expected}:1", expected)


def test_without_routers_there_is_none_to_choose() -> None:
    assert choose([], {"site": "berlin"}) is None


@pytest.mark.parametrize("how", ["release", "expiry", "transfer", "preemption"])
def test_tunnels_through_a_router_apart_end_with_their_lease(lab: LabFiles, how: str) -> None:
    async def body(endpoint: str) -> None:
        async with people(lab, clients=2) as (exporter, [alice, bob]):
            name, listen = await leased(exporter, alice)
            async with tunnel(exporter, alice, name, listen) as (where, near, far):
                assert where == endpoint != lab.endpoint
                full = f"{HOME}/leases/{name}"
                want = ("ABORTED", f"lease {name} has ended")
                if how == "release":
                    await alice.ask("DeleteLease", name=full)
                elif how == "preemption":
                    _prefer(lab, "c1")
                    await bob.lease()
                elif how == "expiry":
                    await alice.ask("UpdateLease", lease=client_pb2.Lease(name=full, duration=Duration(nanos=1000)))
                else:
                    await alice.ask("UpdateLease", lease=client_pb2.Lease(name=full, client=f"{HOME}/clients/c1"))
                    want = ("PERMISSION_DENIED", f"permission denied: lease {name} has another holder now")
                assert await ended(near) == want
                assert await ended(far) == want
                if how == "release":
                    listed = _listed(lab)
                    assert [(router["name"], router["attached"]) for router in listed] == [("r1", True)]

    lab.config.write_text(lab.config.read_text() + "leases: {spotGrace: 0.2s}\n")
    run_cli("admin", "create", "policy", "--config", lab.config, "--spot", "for-all")
    with lab.serving(), attached(lab, "r1") as router:
        asyncio.run(body(router.endpoint))


def _listed(lab: LabFiles) -> list[dict[str, object]]:
    """What `admin list routers` prints."""
    out = io.StringIO()
    with redirect_stdout(out):
        run_cli("admin", "list", "--config", lab.config, "routers")
    return [json.loads(line) for line in out.getvalue().splitlines()]


def _prefer(lab: LabFiles, client: str) -> None:
    """Let a client take exporters away from others."""
    run_cli("admin", "update", "--config", lab.config, "-l", "role=owner", "client", client)
    policy = ["admin", "create", "policy", "--config", lab.config, "--priority", "9", "--clients", "role=owner"]
    run_cli(*policy, "for-owners")


def test_tunnels_live_on_without_the_controller_and_answer_for_it_afterwards(lab: LabFiles) -> None:
    async def body() -> None:
        pin(lab)
        with lab.serving(killed=True) as controller:
            with attached(lab, "r1"):
                async with people(lab, clients=2) as (exporter, [alice, _]):
                    name, listen = await leased(exporter, alice)
                    async with tunnel(exporter, alice, name, listen) as (_, near, far):
                        controller.kill()
                        controller.wait()
                        await echo(near, far)
                        seen = attachments(lab, "r1")
                        with lab.serving():
                            await asyncio.to_thread(wait_for_attachment, lab, "r1", seen)
                            await echo(near, far)  # the lease goes on, and so does the tunnel
                        # The lease ends while nobody can tell the router.
                        run_cli("admin", "end-lease", "--config", lab.config, name)
                        await echo(near, far)
                        with lab.serving():
                            assert await ended(near) == ("ABORTED", f"lease {name} has ended")
                            assert await ended(far) == ("ABORTED", f"lease {name} has ended")

    asyncio.run(body())


def test_when_a_router_is_killed_both_ends_notice_and_the_next_dial_goes_elsewhere(lab: LabFiles) -> None:
    async def body() -> None:
        with lab.serving(), attached(lab, "r1", labels={"board": "x"}) as first, attached(lab, "r2") as second:
            async with people(lab) as (exporter, [alice]):
                name, listen = await leased(exporter, alice)
                for router in (first, second):
                    async with tunnel(exporter, alice, name, listen) as (where, near, far):
                        assert where == router.endpoint
                        router.kill()
                        assert (await ended(near))[0] == (await ended(far))[0] == "UNAVAILABLE"
                    await asyncio.to_thread(wait_for_detachment, lab, "r1" if router is first else "r2")
                # With none left, the router within the controller does it.
                async with tunnel(exporter, alice, name, listen) as (where, _, _):
                    assert where == lab.endpoint

    asyncio.run(body())


def test_a_controller_without_a_router_says_so(lab: LabFiles) -> None:
    async def body() -> None:
        with lab.serving(role="controller"):
            async with people(lab) as (exporter, [alice]):
                name, listen = await leased(exporter, alice)
                asked = asyncio.create_task(alice.call("Dial", lease_name=name))
                with attached(lab, "r1") as router:  # a dial waits for one that is on its way
                    assert (await asked).router_endpoint == router.endpoint
                    await listen.read()
                    async with tunnel(exporter, alice, name, listen):
                        pass

    asyncio.run(body())


def test_a_dial_token_is_worth_nothing_after_the_router_has_restarted(lab: LabFiles) -> None:
    async def body() -> None:
        with lab.serving():
            # The same port after the restart, so that only the token can make the difference.
            config = router_config(lab, "r1", listen=f"127.0.0.1:{reserved_port()}")
            async with people(lab) as (exporter, [alice]):
                with running(config) as router:
                    wait_for_attachment(lab, "r1", 0)
                    name, listen = await leased(exporter, alice)
                    endpoint, used, theirs = await dial(alice, name, listen)
                    assert endpoint == router.endpoint
                    async with alice.tunnel(used, endpoint) as near, exporter.tunnel(theirs, endpoint) as far:
                        await echo(near, far)
                        async with alice.tunnel(used, endpoint) as replay:
                            assert await ended(replay) == ("UNAUTHENTICATED", "this dial token has been used already")
                    _, fresh, _ = await dial(alice, name, listen)
                    router.kill()
                with running(config):
                    for token in (used, fresh):
                        async with alice.tunnel(token, endpoint) as replay:
                            code, text = await ended(replay)
                            assert code == "UNAUTHENTICATED"
                            assert "not valid" in text
                    await asyncio.to_thread(wait_for_attachment, lab, "r1", 1)
                    async with tunnel(exporter, alice, name, listen) as (where, _, _):
                        assert where == endpoint

    asyncio.run(body())


def test_a_router_learns_new_signing_keys_and_forgets_retired_ones(lab: LabFiles) -> None:
    async def body() -> None:
        with lab.serving(), attached(lab, "r1") as router:
            async with people(lab) as (exporter, [alice]):
                name, listen = await leased(exporter, alice)
                run_cli("admin", "rotate-keys", "--config", lab.config)
                await asyncio.to_thread(_accepts, lab, router, 2)
                endpoint, old, _ = await dial(alice, name, listen)
                async with tunnel(exporter, alice, name, listen) as (_, near, far):
                    # What the older keys have signed is worthless now.
                    run_cli("admin", "rotate-keys", "--config", lab.config, "--retire")
                    await asyncio.to_thread(_accepts, lab, router, 1)
                    await _refused_for_its_key(alice, old, endpoint)
                    await echo(near, far)

    asyncio.run(body())


def _says(lab: LabFiles, router: RouterProcess, text: str) -> None:
    """Return when the router's log has this."""
    lab.wait_for_audit(lambda _: text in router.log.read_text())


def _accepts(lab: LabFiles, router: RouterProcess, keys: int) -> None:
    """Return when the router has said last that it accepts so many keys: it said so of others before."""

    def said(_: object) -> bool:
        numbers = re.findall(r"(\d+) signing keys are accepted", router.log.read_text())
        return bool(numbers) and numbers[-1] == str(keys)

    lab.wait_for_audit(said)


async def _refused_for_its_key(client: Peer, token: str, endpoint: str) -> None:
    async with client.tunnel(token, endpoint) as late:
        want = ("UNAUTHENTICATED", "token is signed by a key that this router does not accept")
        assert await ended(late) == want


def test_routers_that_may_not_attach_are_refused_and_go_on_trying(lab: LabFiles) -> None:
    with lab.serving():
        exporter = lab.exporter("e0")
        config = router_config(lab, "r1")
        token = lab.folder / "r1.token"
        good = token.read_text()
        token.write_text(exporter.read_text().partition("token: ")[2].partition("\n")[0])
        with running(config) as router:
            _says(lab, router, "INVALID_ARGUMENT: object kind mismatch: the token belongs to a exporter")
            token.write_text(good)
            wait_for_attachment(lab, "r1", 0)  # no restart was needed
            run_cli("admin", "create", "router", "r1", "--config", lab.config, "--save", token, "--revoke")
            wait_for_detachment(lab, "r1")
            wait_for_attachment(lab, "r1", 1)
            run_cli("admin", "delete", "--config", lab.config, "router", "r1")
            _says(lab, router, "UNAUTHENTICATED: token has been revoked")
            router.process.send_signal(signal.SIGTERM)
            assert router.process.wait(60) == 0
        stranger = router_config(lab, "r2", name="another")
        with running(stranger) as router:
            _says(
                lab, router, "PERMISSION_DENIED: permission denied for router default/r2: the token does not belong to"
            )


def test_reports_that_make_no_sense_are_refused(lab: LabFiles) -> None:
    hello = controller_pb2.RouterReport(
        hello=controller_pb2.RouterReport.Hello(name="r1", endpoint="router:1", instance="i")
    ).SerializeToString()
    load = controller_pb2.RouterReport(load=controller_pb2.RouterReport.Load()).SerializeToString()
    nameless = controller_pb2.RouterReport(hello=controller_pb2.RouterReport.Hello(name="r1")).SerializeToString()
    cases = [
        ([load], "INVALID_ARGUMENT", "the first report of a router must be its Hello"),
        ([nameless], "INVALID_ARGUMENT", "a router's Hello must name its endpoint and instance"),
        ([b"\xff\xff"], "INVALID_ARGUMENT", "the request is not a jumpstarter.lab.v1.RouterReport"),
        ([hello, hello], "FAILED_PRECONDITION", "a router says Hello once, as its first report"),
        ([hello, b"\xff\xff"], "INVALID_ARGUMENT", "the request is not a jumpstarter.lab.v1.RouterReport"),
    ]

    async def body() -> None:
        router_config(lab, "r1")
        token = (lab.folder / "r1.token").read_text().strip()
        credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(lab.ca), grpc.access_token_call_credentials(token)
        )
        async with grpc.aio.secure_channel(lab.endpoint, credentials) as channel:
            for reports, code, text in cases:
                call = channel.stream_stream("/jumpstarter.lab.v1.RouterControlService/Attach")()
                with suppress(grpc.aio.AioRpcError):  # the call may have ended, which `ended` tells
                    for report in reports:
                        await call.write(report)
                assert await ended(call) == (code, text)

    with lab.serving():
        asyncio.run(body())


def test_two_controllers_share_a_router_which_goes_to_the_other_when_one_is_killed(
    tmp_path: Path, postgres_url: str
) -> None:
    lab = LabFiles.make(tmp_path / "lab", database=postgres_url)
    second = LabFiles(lab.folder)

    async def body(router: RouterProcess, first: subprocess.Popen[str]) -> None:
        async with people(second) as (exporter, [alice]):
            name, listen = await leased(exporter, alice)
            async with tunnel(exporter, alice, name, listen) as (where, near, far):
                assert where == router.endpoint
                seen = attachments(lab, "r1")
                first.kill()
                await asyncio.to_thread(wait_for_attachment, lab, "r1", seen)
                await echo(near, far)
                async with tunnel(exporter, alice, name, listen) as (where, other_near, other_far):
                    assert where == router.endpoint
                    await alice.ask("DeleteLease", name=f"{HOME}/leases/{name}")
                    for call in (near, far, other_near, other_far):
                        assert await ended(call) == ("ABORTED", f"lease {name} has ended")

    with lab.serving(killed=True) as first, second.serving():
        with attached(lab, "r1", controllers=[lab.endpoint, second.endpoint]) as router:
            asyncio.run(body(router, first))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"controllers": []}, "controllers: List should have at least 1 item"),
        ({"listen": "here"}, "listen: expected HOST:PORT"),
        ({"weight": 0}, "weight: Input should be greater than or equal to 1"),
        ({"speed": 1}, "speed: there is no such field"),
    ],
)
def test_a_router_configuration_that_cannot_be_used_is_named(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    path = router_config(lab, "r1", **change)
    with pytest.raises(ConfigurationError, match=message) as error:
        RouterConfig.load(path)
    assert str(path) in str(error.value)
