# SPDX-License-Identifier: Apache-2.0
"""The HTTPS endpoint that tells `jmp login` how the lab is reached."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from controller_harness import LabFiles, run_cli
from peers import controller

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller import login


@pytest.fixture
def lab(tmp_path: Path) -> LabFiles:
    issuer = {"url": "https://login.example.org", "audiences": ["jumpstarter-cli"]}
    return LabFiles.make(
        tmp_path / "lab", login={"listen": "127.0.0.1:0"}, authentication={"jwt": [{"issuer": issuer}]}
    )


@asynccontextmanager
async def endpoint(lab: LabFiles) -> AsyncIterator[str]:
    async with controller(lab) as running:
        assert running.login is not None
        yield f"https://{running.login}"


def _get(lab: LabFiles, url: str) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(lab.folder / "ca.crt"))
    try:
        with urllib.request.urlopen(url, context=context, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


async def get(lab: LabFiles, url: str) -> tuple[int, str]:
    return await asyncio.to_thread(_get, lab, url)


def test_it_says_how_the_lab_is_reached(lab: LabFiles) -> None:
    async def body() -> None:
        async with endpoint(lab) as url:
            status, text = await get(lab, f"{url}/v1/auth/config")
            answer = json.loads(text)
            assert status == 200
            assert (answer["grpcEndpoint"], answer["namespace"]) == (lab.endpoint, "default")
            assert base64.b64decode(answer["caBundle"]) == lab.ca
            assert answer["oidc"] == [
                {
                    "issuer": "https://login.example.org",
                    "clientId": "jumpstarter-cli",
                    "audiences": ["jumpstarter-cli"],
                }
            ]

    asyncio.run(body())


def test_health_and_nothing_else(lab: LabFiles) -> None:
    async def body() -> None:
        async with endpoint(lab) as url:
            assert await get(lab, f"{url}/healthz") == (200, '{"status": "ok"}')
            assert "jmp login" in (await get(lab, f"{url}/"))[1]
            for path in ("/v1/leases", "/..%2f..%2fetc/passwd", "/v1/auth/config/x"):
                assert (await get(lab, f"{url}{path}"))[0] == 404

    asyncio.run(body())


def test_a_renewed_certificate_is_taken_up_without_a_restart(lab: LabFiles) -> None:
    def serial(url: str) -> str:
        host, _, port = url.removeprefix("https://").rpartition(":")
        return ssl.get_server_certificate((host, int(port)), ca_certs=str(lab.folder / "ca.crt"))

    async def body() -> None:
        async with endpoint(lab) as url:
            before = await asyncio.to_thread(serial, url)
            await asyncio.to_thread(run_cli, "ca", "renew", "--dir", lab.folder)
            assert await asyncio.to_thread(serial, url) != before
            # One that cannot be used leaves the one in use.
            (lab.folder / "server.crt").write_text("nonsense")
            await asyncio.to_thread(serial, url)

    asyncio.run(body())


async def _read_to_the_end(reader: asyncio.StreamReader) -> bytes:
    """What comes. Who is answered before it has sent everything may have its connection reset after the answer."""
    found = b""
    async with asyncio.timeout(60):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                found += data
    return found


def test_garbage_ends_the_connection_and_nothing_more(lab: LabFiles) -> None:
    async def body() -> None:
        async with endpoint(lab) as url:
            host, _, port = url.removeprefix("https://").rpartition(":")
            context = ssl.create_default_context(cafile=str(lab.folder / "ca.crt"))
            for data in (b"\x00" * 100, b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 100_000 + b"\r\n\r\n"):
                reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
                writer.write(data)
                answer = await _read_to_the_end(reader)
                assert not answer or answer.startswith(b"HTTP/1.")
                writer.close()
            assert (await get(lab, f"{url}/healthz"))[0] == 200

    asyncio.run(body())


def test_a_silent_connection_is_closed(lab: LabFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_HANDSHAKE_SECONDS", 0.2)

    async def body() -> None:
        async with endpoint(lab) as url:
            host, _, port = url.removeprefix("https://").rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionError):  # it may be reset
                    assert await reader.read() == b""
            writer.close()

    asyncio.run(body())


def test_garbage_is_logged_in_one_line(lab: LabFiles, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        async with endpoint(lab) as url:
            host, _, port = url.removeprefix("https://").rpartition(":")
            context = ssl.create_default_context(cafile=str(lab.folder / "ca.crt"))
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.write(b"GET / HTTP/1.1\r\n" + b"".join(b"A%d: b\r\n" % n for n in range(20_000)) + b"\r\n")
            assert b" 400 " in await _read_to_the_end(reader)
            writer.close()

    asyncio.run(body())
    said = [record for record in caplog.records if record.name == "aiohttp.server"]
    assert said
    assert not any(record.exc_info or "\n" in record.getMessage() for record in said)


def test_a_port_that_is_taken_is_said_at_the_start(lab: LabFiles, tmp_path: Path) -> None:
    async def body() -> None:
        async with controller(lab) as running:
            other = LabFiles.make(tmp_path / "other", login={"listen": running.login})
            with pytest.raises(ConfigurationError, match=f"login: cannot listen on {running.login}: "):
                async with controller(other):
                    raise AssertionError("it has started")

    asyncio.run(body())
