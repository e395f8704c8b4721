# SPDX-License-Identifier: Apache-2.0
"""Fake power devices that speak HTTP: stateful stand-ins for hardware that cannot be had here.

Each keeps relays (`relays`), enforces its login, answers as slowly as it is told (`latency`), and can have relays that
never move (`stuck`) or that move only after some questions (`lag`). They are written from the vendors' documents, which
the drivers name too, and share no code with the drivers.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import secrets
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web

STRANGER = web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="fake"'})


class FakeDevice:
    """A device with relays 1..count behind an HTTP server on a port of its own."""

    user, password = "admin", "s3cret pass&word"

    def __init__(self, count: int = 8, auth: str = "none", latency: float = 0) -> None:
        self.relays = dict.fromkeys(range(1, count + 1), False)
        self.stuck: set[int] = set()
        self.lag: dict[int, int] = {}
        self.moves: dict[int, tuple[bool, int]] = {}
        self.auth = auth
        self.latency = latency
        self.requests: list[str] = []
        self.nonce = secrets.token_hex(8)
        self.port = 0
        self.scheme = "http"
        self.broken: web.Response | None = None

    # what the relays do

    def switch(self, number: int, on: bool) -> None:
        if number in self.stuck:
            return
        if number in self.lag:
            self.moves[number] = (on, self.lag[number])
        else:
            self.relays[number] = on

    def look(self, number: int) -> bool:
        if number in self.moves:
            on, left = self.moves[number]
            self.moves[number] = (on, left - 1)
            if left <= 0:
                self.relays[number] = on
                del self.moves[number]
        return self.relays[number]

    # how they are reached

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.address}"

    def routes(self) -> list[web.RouteDef]:
        raise NotImplementedError

    def allowed(self, request: web.Request) -> web.Response | None:
        """None, or the answer for strangers."""
        given = request.headers.get("Authorization", "")
        if self.auth == "basic":
            want = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            if given != f"Basic {want}":
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="fake"'})
        if self.auth == "bearer" and given != f"Bearer {self.password}":
            return web.Response(status=403)
        if self.auth == "digest" and not self._digest_fits(request.method, request.raw_path, given):
            challenge = f'Digest realm="fake", qop="auth", nonce="{self.nonce}", algorithm=SHA-256'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        return None

    def _digest_fits(self, method: str, path: str, given: str) -> bool:
        """RFC 7616 with SHA-256."""
        if not given.startswith("Digest "):
            return False
        part = dict(re.findall(r'(\w+)="?([^",]*)"?', given[7:]))

        def digest(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        first = digest(f"{self.user}:fake:{self.password}")
        second = digest(f"{method}:{path}")
        want = digest(f"{first}:{self.nonce}:{part.get('nc')}:{part.get('cnonce')}:auth:{second}")
        return (part.get("response"), part.get("uri"), part.get("nonce")) == (want, path, self.nonce)

    @web.middleware
    async def _gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.raw_path}")
        if self.latency:
            await asyncio.sleep(self.latency)
        if self.broken is not None:
            return self.broken
        refused = self.allowed(request)
        answer: web.StreamResponse = refused if refused is not None else await handler(request)
        return answer

    @contextmanager
    def running(self, tls: ssl.SSLContext | None = None) -> Iterator[FakeDevice]:
        """Serve in a thread; it ends with the context."""
        ready, done = threading.Event(), threading.Event()
        loop = asyncio.new_event_loop()
        failure: list[BaseException] = []

        async def serve() -> None:
            app = web.Application(middlewares=[self._gate])
            app.add_routes(self.routes())
            runner = web.AppRunner(app, shutdown_timeout=0.2)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            self.port = runner.addresses[0][1]
            self.scheme = "https" if tls else "http"
            ready.set()
            await asyncio.to_thread(done.wait)
            await runner.cleanup()

        def main() -> None:
            try:
                loop.run_until_complete(serve())
            except BaseException as error:  # noqa: BLE001 (the test's thread raises it)
                failure.append(error)
                ready.set()
            finally:
                loop.run_until_complete(loop.shutdown_default_executor())
                loop.close()

        thread = threading.Thread(target=main, name="fake-device")
        thread.start()
        try:
            assert ready.wait(10)
            if failure:
                raise failure[0]
            yield self
        finally:
            done.set()
            thread.join(10)


def number(request: web.Request, name: str) -> int:
    return int(request.match_info[name])


class FakeShelly1(FakeDevice):
    """Shelly, first generation: /relay/N?turn=on, numbers from 0, basic authentication. Answers the state."""

    def routes(self) -> list[web.RouteDef]:
        async def relay(request: web.Request) -> web.Response:
            which = number(request, "n") + 1
            if which not in self.relays:
                return web.Response(status=404)
            if turn := request.query.get("turn"):
                if turn not in ("on", "off", "toggle"):
                    return web.Response(status=400, text="Bad turn!")
                self.switch(which, turn == "on")
            return web.json_response({"ison": self.look(which), "has_timer": False, "source": "http"})

        async def meter(request: web.Request) -> web.Response:
            return web.json_response({"power": 46.0, "pf": 1.0, "current": 0.2, "voltage": 230.0, "is_valid": True})

        return [web.get("/relay/{n}", relay), web.get("/emeter/{n}", meter)]


class FakeShelly2(FakeDevice):
    """Shelly, second generation and later: RPC over HTTP, numbers from 0, digest authentication with SHA-256."""

    def __init__(self, count: int = 4, auth: str = "digest", **more: Any) -> None:
        super().__init__(count, auth, **more)

    def routes(self) -> list[web.RouteDef]:
        async def rpc(request: web.Request) -> web.Response:
            which = int(request.query.get("id", "-1")) + 1
            if which not in self.relays:
                return web.json_response(
                    {"code": -105, "message": f"Argument 'id', value {which - 1} not found!"}, status=500
                )
            if request.match_info["method"] == "Switch.Set":
                before = self.relays[which]
                self.switch(which, request.query["on"] == "true")
                return web.json_response({"was_on": before})
            return web.json_response(
                {"id": which - 1, "source": "HTTP_in", "output": self.look(which), "voltage": 229.5, "current": 0.2}
            )

        return [web.get("/rpc/{method}", rpc)]


class FakeTasmotaHttp(FakeDevice):
    """Tasmota's web requests: /cm?cmnd=Power1%20On, user and password in the query, answers 200 to strangers too."""

    def allowed(self, request: web.Request) -> web.Response | None:
        if self.auth == "none":
            return None
        if (request.query.get("user"), request.query.get("password")) == (self.user, self.password):
            return None
        return web.json_response({"WARNING": "Need user=<username>&password=<password>"})

    def routes(self) -> list[web.RouteDef]:
        async def command(request: web.Request) -> web.Response:
            words = request.query.get("cmnd", "").split()
            match = re.fullmatch(r"power(\d*)", words[0].lower()) if words else None
            if match is None:
                if words[:2] == ["Status", "8"]:
                    energy = {"Voltage": 231, "Current": 0.5, "Power": 100}
                    return web.json_response({"StatusSNS": {"Time": "2026-01-01T00:00:00", "ENERGY": energy}})
                return web.json_response({"Command": "Unknown"})
            which = int(match.group(1) or 1)
            if which not in self.relays:
                return web.json_response({"Command": "Unknown"})
            if len(words) > 1:
                self.switch(which, words[1].lower() in ("on", "1"))
            name = "POWER" if len(self.relays) == 1 else f"POWER{which}"
            return web.json_response({name: "ON" if self.look(which) else "OFF"})

        return [web.get("/cm", command)]


class FakeNetio(FakeDevice):
    """NETIO's JSON API: GET and POST /netio.json, basic authentication."""

    def __init__(self, count: int = 4, auth: str = "basic", **more: Any) -> None:
        super().__init__(count, auth, **more)

    def routes(self) -> list[web.RouteDef]:
        def document() -> dict[str, Any]:
            return {
                "Agent": {"Model": "NETIO 4All", "NumOutputs": len(self.relays)},
                "GlobalMeasure": {"Voltage": 230.1, "Frequency": 50.0},
                "Outputs": [
                    {
                        "ID": n,
                        "Name": f"Output_{n}",
                        "State": int(self.look(n)),
                        "Action": 6,
                        "Delay": 500,
                        "Current": 1500,
                    }
                    for n in self.relays
                ],
            }

        async def get(request: web.Request) -> web.Response:
            return web.json_response(document())

        async def post(request: web.Request) -> web.Response:
            for output in (await request.json())["Outputs"]:
                if output["ID"] not in self.relays:
                    return web.Response(status=400)
                if output.get("Action") in (0, 1):
                    self.switch(output["ID"], output["Action"] == 1)
            return web.json_response(document())

        return [web.get("/netio.json", get), web.post("/netio.json", post)]


class FakeGude(FakeDevice):
    """Gude Expert Power Control: /status.json and /statusjsn.js with cmd=1&p=N&s=1, basic authentication."""

    def routes(self) -> list[web.RouteDef]:
        async def status(request: web.Request) -> web.Response:
            if request.query.get("cmd") == "1":
                which = int(request.query["p"])
                if which in self.relays:  # the device ignores others, and still answers 200
                    self.switch(which, request.query["s"] == "1")
            outputs = [{"name": f"Power Port {n}", "state": int(self.look(n)), "type": 1} for n in self.relays]
            return web.json_response({"outputs": outputs} if int(request.query.get("components", "0")) & 1 else {})

        async def page(request: web.Request) -> web.Response:
            if request.query.get("cmd") == "1":
                self.switch(int(request.query["p"]), request.query["s"] == "1")
            return web.Response(text="<html>")

        return [web.get("/status.json", status), web.get("/statusjsn.js", status), web.get("/ov.html", page)]


class FakeDliRest(FakeDevice):
    """Digital Loggers' REST API: PUT needs X-CSRF and a form, outlets count from 0, digest authentication."""

    def __init__(self, count: int = 8, auth: str = "digest", **more: Any) -> None:
        super().__init__(count, auth, **more)

    def routes(self) -> list[web.RouteDef]:
        async def get(request: web.Request) -> web.Response:
            which = number(request, "n") + 1
            if which not in self.relays:
                return web.Response(status=404)
            return web.json_response(self.look(which))

        async def put(request: web.Request) -> web.Response:
            which = number(request, "n") + 1
            if "X-CSRF" not in request.headers:
                return web.Response(status=400)
            if which not in self.relays:
                return web.Response(status=404)
            value = (await request.post()).get("value")
            if value not in ("true", "false"):
                return web.Response(status=400)
            self.switch(which, value == "true")
            return web.Response(status=204)

        path = "/restapi/relay/outlets/{n}/state/"
        return [web.get(path, get), web.put(path, put)]


class FakeDliWeb(FakeDevice):
    """Digital Loggers' older web commands: /outlet?N=ON and /status with the states as a hexadecimal number."""

    def __init__(self, count: int = 8, auth: str = "basic", **more: Any) -> None:
        super().__init__(count, auth, **more)

    def routes(self) -> list[web.RouteDef]:
        async def outlet(request: web.Request) -> web.Response:
            for name, value in request.query.items():
                if name.isdigit() and int(name) in self.relays:
                    self.switch(int(name), value == "ON")
            return web.Response(text="<html>")

        async def status(request: web.Request) -> web.Response:
            bits = sum(1 << (n - 1) for n in self.relays if self.look(n))
            page = f'<div id="state">{bits:02x}</div><div id="lock">00</div><div id="perm">ff</div>'
            return web.Response(text=f"<html><body>{page}</body></html>", content_type="text/html")

        return [web.get("/outlet", outlet), web.get("/status", status)]


class FakeEnerGenie(FakeDevice):
    """EnerGenie EG-PMS2-LAN: one session at a time, and HTTP 200 for everything.

    A wrong password brings the login page again, a second user a page that says so; GET /login.html logs out.
    """

    password = "1"
    LOGIN = '<html><form action="/login.html" method="post"><input type="password" name="pw"></form>{}</html>'
    BUSY = "<html>There is already an active session with this device. Please log out first.</html>"

    def __init__(self, count: int = 4, **more: Any) -> None:
        super().__init__(count, "none", **more)
        self.holder: str | None = None
        self.logins = self.logouts = 0

    def page(self) -> web.Response:
        states = ",".join(str(int(self.look(n))) for n in self.relays)
        return web.Response(
            text=f'<html><script>var sockstates = [{states}];</script><a href="login.html">Log Out</a></html>',
            content_type="text/html",
        )

    def routes(self) -> list[web.RouteDef]:
        def html(text: str) -> web.Response:
            return web.Response(text=text, content_type="text/html")

        async def login(request: web.Request) -> web.Response:
            form = parse_qs(await request.text())
            peer = str(request.remote)
            if self.holder not in (None, peer):
                return html(self.BUSY)
            if form.get("pw") != [self.password]:
                return html(self.LOGIN.format("<b>wrong password</b>"))
            self.holder = peer
            self.logins += 1
            return self.page()

        async def logout(request: web.Request) -> web.Response:
            if self.holder == str(request.remote):
                self.holder = None
                self.logouts += 1
            return html(self.LOGIN.format(""))

        async def main(request: web.Request) -> web.Response:
            if self.holder is None:
                return html(self.LOGIN.format(""))
            if self.holder != str(request.remote):
                return html(self.BUSY)
            for name, values in parse_qs(await request.text()).items():
                if match := re.fullmatch(r"cte(\d)", name):
                    self.switch(int(match.group(1)), values == ["1"])
            return self.page()

        return [
            web.post("/login.html", login),
            web.get("/login.html", logout),
            web.post("/", main),
            web.get("/", main),
            web.get("/energenie.html", main),
        ]


class FakeTinycontrol(FakeDevice):
    """Tinycontrol's power socket 6G10A (outs.cgi, st0.xml) and tcPDU (api/v1), basic authentication."""

    def __init__(self, count: int = 6, auth: str = "basic", **more: Any) -> None:
        super().__init__(count, auth, **more)

    def routes(self) -> list[web.RouteDef]:
        async def outs(request: web.Request) -> web.Response:
            for name, value in request.query.items():
                if (match := re.fullmatch(r"out(\d)", name)) and int(match.group(1)) in self.relays:
                    self.switch(int(match.group(1)), value == "1")
            return web.json_response({})

        async def state(request: web.Request) -> web.Response:
            body = "".join(f"<out{n}>{int(self.look(n))}</out{n}>" for n in self.relays)
            return web.Response(text=f"<response>{body}</response>", content_type="text/xml")

        async def values(request: web.Request) -> web.Response:
            return web.json_response({f"out{n}": int(self.look(n)) for n in self.relays})

        return [
            web.get("/outs.cgi", outs),
            web.get("/st0.xml", state),
            web.get("/api/v1/save/", outs),
            web.get("/api/v1/read/status/", values),
        ]


class FakeUbus(FakeDevice):
    """An OpenWrt switch: JSON-RPC with sessions, object "poe"; strangers may only log in."""

    user = "root"

    def __init__(self, count: int = 8, **more: Any) -> None:
        super().__init__(count, "none", **more)
        self.sessions: set[str] = set()

    def routes(self) -> list[web.RouteDef]:
        async def ubus(request: web.Request) -> web.Response:
            session, path, method, given = (await request.json())["params"]

            def result(*values: Any) -> web.Response:
                return web.json_response({"jsonrpc": "2.0", "id": 1, "result": list(values)})

            if (path, method) == ("session", "login"):
                if (given["username"], given["password"]) != (self.user, self.password):
                    return result(6)
                key = secrets.token_hex(16)
                self.sessions.add(key)
                return result(0, {"ubus_rpc_session": key})
            if session not in self.sessions:
                return web.json_response(
                    {"jsonrpc": "2.0", "id": 1, "error": {"code": -32002, "message": "Access denied"}}
                )
            if (path, method) == ("session", "destroy"):
                self.sessions.discard(session)
                return result(0)
            if (path, method) == ("poe", "manage"):
                which = int(given["port"].removeprefix("lan"))
                if which not in self.relays:
                    return result(2)
                self.switch(which, given["enable"])
                return result(0)
            ports = {f"lan{n}": {"status": "Searching" if self.look(n) else "Disabled"} for n in self.relays}
            return result(0, {"firmware": "v80.1", "ports": ports})

        return [web.post("/ubus", ubus)]
