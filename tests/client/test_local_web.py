# SPDX-License-Identifier: Apache-2.0
"""Protects local web pages from other users of the machine and from pages of other sites."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from jumpstarter.client import local_web
from jumpstarter.client.adapters import listen_tcp


@pytest.fixture
def page() -> Iterator[str]:
    """URL of a page that says hello."""
    from aiohttp import web

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="hello")

    def routes(application: web.Application, path: str) -> None:
        application.router.add_get(f"{path}/", hello)

    @asynccontextmanager
    async def serving() -> Any:
        async with local_web.serve_locally(listen_tcp("127.0.0.1", 0), routes) as url:
            yield f"{url}/"

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving()) as url:
        yield url


def test_its_user_gets_in_and_others_with_the_url_do_not(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL is an argument of the browser's process, which every user can list."""
    with urllib.request.urlopen(page, timeout=60) as answer:
        assert answer.read() == b"hello"
    monkeypatch.setattr(local_web.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(urllib.error.HTTPError, match="403") as refused:
        urllib.request.urlopen(page, timeout=60)
    assert b"for the user who opened it" in refused.value.read()


def test_whose_a_connection_is_comes_from_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
        ends = near.getsockname(), listener.getsockname()
        with far:
            assert local_web._user_of(*ends) == os.getuid()
            near.close()
            assert local_web._user_of(*ends) is None, "a closed socket is nobody's, not root's"


@pytest.mark.parametrize("header", [{"Host": "evil.test"}, {"Origin": "http://evil.test"}])
def test_pages_of_other_sites_are_refused(page: str, header: dict[str, str]) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(page, headers=header), timeout=60)
