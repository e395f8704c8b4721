# SPDX-License-Identifier: Apache-2.0
"""A router and a controller that is late with its keys, or closes what it is told of: the wire between the two."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import jwt
import pytest
import yaml
from controller_harness import LabFiles
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc.aio import EOF
from peers import FRAMES

from jumpstarter_controller import router_link
from jumpstarter_controller.identity.dial import DIAL_AUDIENCE, DIAL_ISSUER
from jumpstarter_controller.router_process import RunningRouter, running_router
from jumpstarter_protocol.jumpstarter.lab.v1 import controller_pb2, controller_pb2_grpc

_WAIT = 60


class _Controller(controller_pb2_grpc.RouterControlServiceServicer):
    """Collects reports; sends what it is told to send."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.reports: asyncio.Queue[controller_pb2.RouterReport] = asyncio.Queue()
        self.commands: asyncio.Queue[controller_pb2.RouterCommand] = asyncio.Queue()

    async def Attach(self, requests: Any, context: Any) -> None:
        async def write() -> None:
            while True:
                await context.write(await self.commands.get())

        writer = asyncio.create_task(write())
        try:
            async for report in requests:
                self.reports.put_nowait(report)
        finally:
            writer.cancel()

    def tell_key(self, now: float | None = None) -> None:
        """Send the public key, as "k1", and what time it is here."""
        pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        keys = controller_pb2.RouterCommand.Keys(pem={"k1": pem.decode()})
        if now is not None:
            keys.now.FromNanoseconds(round(now * 1e9))
        self.commands.put_nowait(controller_pb2.RouterCommand(keys=keys))

    async def report(self, kind: str) -> Any:
        """The next report of this kind."""
        async with asyncio.timeout(_WAIT):
            while True:
                report = await self.reports.get()
                if report.WhichOneof("report") == kind:
                    return getattr(report, kind)

    def token(self, instance: str, role: str, stream: str, **claims: Any) -> str:
        """A dial token."""
        body = {
            "iss": DIAL_ISSUER,
            "aud": f"{DIAL_AUDIENCE}/{instance}",
            "sub": stream,
            "namespace": "default",
            "lease": "l",
            "client": "c",
            "role": role,
            "jti": uuid4().hex,
            "exp": time.time() + 60,
            **claims,
        }
        return jwt.encode(body, self.private, algorithm="ES256", headers={"kid": "k1"})


@asynccontextmanager
async def _router(folder: Path) -> AsyncIterator[tuple[_Controller, RunningRouter, LabFiles]]:
    lab, controller, server = LabFiles.make(folder / "lab"), _Controller(), grpc.aio.server()
    controller_pb2_grpc.add_RouterControlServiceServicer_to_server(controller, server)
    files = [(lab.folder / name).read_bytes() for name in ("server.key", "server.crt")]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(files[0], files[1])]))
    await server.start()
    config = {
        "apiVersion": "jumpstarter.lab/v1alpha1",
        "kind": "RouterConfig",
        "name": "r1",
        "listen": "127.0.0.1:0",
        "labels": {"site": "berlin"},
        "weight": 3,
        "controllers": [f"127.0.0.1:{port}"],
        "token": "token",
        "tls": {"certificate": "server.crt", "key": "server.key", "ca": "ca.crt"},
    }
    (lab.folder / "token").write_text("secret\n")
    path = lab.folder / "r1.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        async with running_router(path) as router:
            yield controller, router, lab
    finally:
        await server.stop(None)


@asynccontextmanager
async def _end(lab: LabFiles, router: RunningRouter, token: str) -> AsyncIterator[Any]:
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(lab.ca), grpc.access_token_call_credentials(token)
    )
    async with grpc.aio.secure_channel(router.endpoint, credentials) as channel:
        call: Any = channel.stream_stream(FRAMES)()
        try:
            yield call
        finally:
            call.cancel()


async def _status(call: Any) -> tuple[str, str]:
    async with asyncio.timeout(_WAIT):
        try:
            while await call.read() is not EOF:
                pass
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        return (await call.code()).name, await call.details()


def test_a_token_whose_key_the_router_does_not_have_yet_waits_for_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with _router(tmp_path) as (controller, router, lab):
            hello = await controller.report("hello")
            assert (hello.name, hello.endpoint, dict(hello.labels), hello.weight, list(hello.tunnels)) == (
                "r1",
                router.endpoint,
                {"site": "berlin"},
                3,
                [],
            )
            near, far = (controller.token(hello.instance, role, "s") for role in ("client", "exporter"))
            async with _end(lab, router, near) as client:
                await controller.report("load")  # it asks
                controller.tell_key()
                async with _end(lab, router, far) as exporter:
                    await client.write(b"\x0a\x01x")
                    assert await exporter.read() == b"\x0a\x01x"
                    opened = await controller.report("opened")
                    assert (opened.stream, opened.lease, opened.client_id) == ("s", "l", "c")
                    close = controller_pb2.RouterCommand.Close(streams=["s", "other"], code="ABORTED", message="enough")
                    controller.commands.put_nowait(controller_pb2.RouterCommand(close=close))
                    assert await _status(client) == await _status(exporter) == ("ABORTED", "enough")
                    assert (await controller.report("closed")).stream == "s"

    asyncio.run(body())


def test_tokens_that_are_not_for_this_router_or_not_complete_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router_link, "_KEY_WAIT", 0.2)

    async def body() -> None:
        async with _router(tmp_path) as (controller, router, lab):
            instance = (await controller.report("hello")).instance
            token = controller.token(instance, "client", "s")
            async with _end(lab, router, token) as call:
                text = "token is signed by a key that this router does not accept"
                assert await _status(call) == ("UNAUTHENTICATED", text)
            monkeypatch.setattr(router_link, "_KEY_WAIT", 60.0)  # it is on its way now
            controller.tell_key()
            for changed, why in (
                ({"aud": DIAL_AUDIENCE}, "Audience doesn't match"),
                ({"aud": f"{DIAL_AUDIENCE}/another"}, "Audience doesn't match"),
                ({"iss": "me"}, "Invalid issuer"),
                ({"exp": time.time() - 1}, "token is expired"),
                ({"exp": "tomorrow"}, "token is expired"),
                ({"lease": None}, 'missing the "lease" claim'),
            ):
                async with _end(lab, router, controller.token(instance, "client", "s", **changed)) as call:
                    code, text = await _status(call)
                    assert code == "UNAUTHENTICATED"
                    assert why in text

    asyncio.run(body())


@pytest.mark.parametrize("skew", [-300.0, 300.0])
def test_dial_tokens_are_good_for_a_minute_of_the_controllers_clock_whatever_the_routers_says(
    tmp_path: Path, skew: float
) -> None:
    async def body() -> None:
        async with _router(tmp_path) as (controller, router, lab):
            there = time.time() + skew
            instance = (await controller.report("hello")).instance
            controller.tell_key(now=there)
            near, far = (controller.token(instance, role, "s", exp=there + 60) for role in ("client", "exporter"))
            async with _end(lab, router, near) as client, _end(lab, router, far) as exporter:
                await client.write(b"\x0a\x01x")
                assert await exporter.read() == b"\x0a\x01x"
            late = controller.token(instance, "client", "t", exp=there - 1)
            async with _end(lab, router, late) as call:
                assert await _status(call) == ("UNAUTHENTICATED", "token is expired")

    asyncio.run(body())
