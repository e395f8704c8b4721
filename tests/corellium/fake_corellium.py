# SPDX-License-Identifier: Apache-2.0
"""Fake: Corellium's REST API with state, over TLS, and a console that echoes. Shapes of PyPI corellium-api 0.4.2."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
import threading
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "corellium-token-hunter2"
#: States an instance passes on its way, one per look.
_WAYS = {
    "create": ["creating", "booting", "on"], "on": ["booting", "on"], "off": ["on", "off"],
    "delete": ["deleting", None],
}  # fmt: skip


class FakeCorellium:
    """The service. ``instances``: by id; ``calls``: method and path of each; ``faults``: "stuck" (states do not
    change), "error" (the device ends in state error), "hang" (no answer), "broken" (no JSON), "redirect".
    plain: what the driver of 0.9 can take, which polls every 5 s: devices reach their state at once, no model has a
    field that is new, the console greets in a binary frame."""

    def __init__(self, folder: Path, *, plain: bool = False) -> None:
        self.plain = plain
        self.instances: dict[str, dict[str, Any]] = {}
        self.calls: list[str] = []
        self.faults: set[str] = set()
        self.authority = folder / "ca.pem"
        self._ways: dict[str, list[str | None]] = {}
        self._tickets: set[str] = set()
        self._consoles: set[web.WebSocketResponse] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._context = _certificate(folder, self.authority)
        self.host = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)

    def close(self) -> None:
        """End it."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def add(self, name: str, state: str, **more: Any) -> dict[str, Any]:
        """An instance that is there already."""
        identity = f"00000000-{len(self.instances) + 1:04d}"
        made = {
            "id": identity, "name": name, "project": "p-1", "flavor": "kronos", "state": state, "error": None,
            "consoles": [{"name": "Primary Compute Non-Secure", "id": "port-1-cons", "default": True}],
            "aNewField": {"of": "tomorrow"}, **more,
        }  # fmt: skip
        self.instances[identity] = made
        return made

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/api/v1/projects", self._projects)
        app.router.add_get("/api/v1/models", self._models)
        app.router.add_get("/api/v1/instances", self._list)
        app.router.add_post("/api/v1/instances", self._create)
        app.router.add_get("/api/v1/instances/{id}", self._show)
        app.router.add_delete("/api/v1/instances/{id}", self._delete)
        app.router.add_put("/api/v1/instances/{id}/state", self._set_state)
        app.router.add_get("/api/v1/instances/{id}/console", self._console)
        app.router.add_get("/console/{ticket}", self._echo)
        runner = web.AppRunner(app, shutdown_timeout=0.1)

        async def start() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._context)
            await site.start()
            server: Any = site._server
            self.host = f"localhost:{server.sockets[0].getsockname()[1]}"

        self._loop.run_until_complete(start())
        self._loop.call_soon(self._ready.set)
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path.removeprefix('/api')}")
        if request.path.startswith("/console/"):
            response: web.StreamResponse = await handler(request)
            return response
        if "hang" in self.faults:
            await asyncio.sleep(30)
        if "broken" in self.faults:
            return web.Response(text="<html>oops")
        if "redirect" in self.faults:
            return web.Response(status=302, headers={"Location": "https://elsewhere.invalid/"})
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response(
                {"error": "Invalid or missing authorization token", "errorID": "Forbidden"}, status=403
            )
        response = await handler(request)
        return response

    def _look(self) -> None:
        """Each look at the instances lets them get on."""
        for identity, way in list(self._ways.items()):
            if "stuck" in self.faults:
                continue
            state = way.pop(0)
            if not way:
                del self._ways[identity]
            if state is None:
                del self.instances[identity]
            else:
                self.instances[identity]["state"] = state
            if state in ("off", None):
                for console in self._consoles:
                    self._loop.create_task(console.close())
            if state == "on" and "error" in self.faults:
                self.instances[identity] |= {"state": "error", "error": "out of cores"}

    def _go(self, identity: str, way: str) -> None:
        self._ways[identity] = _WAYS[way][-1:] if self.plain else list(_WAYS[way])

    async def _projects(self, _: web.Request) -> web.Response:
        projects = [{"id": "p-1", "name": "Default Project", "settings": {}, "quotas": {"cores": 4}}]
        return web.json_response([*projects, {"id": "p-2", "name": "Other", "settings": {}}])

    async def _models(self, _: web.Request) -> web.Response:
        kronos = {"type": "automotive", "name": "kronos", "flavor": "kronos", "description": "", "model": "kronos"}
        new = {} if self.plain else {"new": 1}
        return web.json_response([{**kronos, "peripherals": False, "quotas": {"cores": 2}, **new}])

    async def _list(self, _: web.Request) -> web.Response:
        self._look()
        return web.json_response(list(self.instances.values()))

    async def _create(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        for name in ("flavor", "project", "os", "osbuild"):
            if not wanted.get(name):
                body = {"error": "Missing required parameter", "errorID": "UserError", "field": name}
                return web.json_response(body, status=400)
        if wanted["os"] != "1.1.1":
            body = {"error": "Unsupported device model or operating system", "errorID": "UserError", "field": "os"}
            return web.json_response(body, status=400)
        made = self.add(
            wanted["name"], "creating", project=wanted["project"], os=wanted["os"], osbuild=wanted["osbuild"]
        )
        self._go(made["id"], "create")
        return web.json_response({"id": made["id"], "state": "creating"})

    def _one(self, request: web.Request) -> dict[str, Any]:
        found = self.instances.get(request.match_info["id"])
        if found is None:
            body = '{"error":"No instance associated with this value","errorID":"UserError","field":"instanceId"}'
            raise web.HTTPNotFound(text=body, content_type="application/json")
        return found

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._one(request))

    async def _delete(self, request: web.Request) -> web.Response:
        self._go(self._one(request)["id"], "delete")
        return web.Response(status=204)

    async def _set_state(self, request: web.Request) -> web.Response:
        one = self._one(request)
        self._go(one["id"], (await request.json())["state"])
        return web.Response(status=204)

    async def _console(self, request: web.Request) -> web.Response:
        self._one(request)
        if request.query.get("type") != "1-cons":
            return web.json_response({"error": "Console not found", "errorID": "UserError"}, status=404)
        ticket = f"ticket-{len(self.calls)}"
        self._tickets.add(ticket)
        return web.json_response({"url": f"wss://{self.host}/console/{ticket}"})

    async def _echo(self, request: web.Request) -> web.StreamResponse:
        if request.match_info["ticket"] not in self._tickets:
            raise web.HTTPForbidden
        self._tickets.discard(request.match_info["ticket"])
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await (socket.send_bytes(b"login: ") if self.plain else socket.send_str("login: "))
        self._consoles.add(socket)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
        self._consoles.discard(socket)
        return socket


def _certificate(folder: Path, authority: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    authority.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private = folder / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority, private)
    return context
