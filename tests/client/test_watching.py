# SPDX-License-Identifier: Apache-2.0
"""What a holder makes of failures that say nothing about its lease, and of those that do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from test_hold_lease import run

from jumpstarter.client.controller import ControllerClient, LeaseInfo, LeaseState
from jumpstarter.client.keeping import keep_alive
from jumpstarter.common.controller import error_from_rpc
from jumpstarter.common.exceptions import AuthenticationError, ConnectionError, LeaseError
from jumpstarter.config.client import ClientConfigV1Alpha1

HELD = LeaseState(LeaseInfo("default", "l1"), ended=False)
ENDED = LeaseState(LeaseInfo("default", "l1"), ended=True)


def failure(code: grpc.StatusCode, details: str = "no") -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


async def watched(*rounds: LeaseState | Exception, renew: Callable[[], bool] = lambda: False) -> list[LeaseState]:
    """What a watcher sees of a controller that answers so, one stream after the other."""
    config = ClientConfigV1Alpha1(alias="me", endpoint="lab:1", token="t")
    async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
        controller = ControllerClient(config, channel)
        controller.lab = True
        streams = list(rounds)

        async def push(_: str) -> AsyncGenerator[LeaseState, None]:
            answer = streams.pop(0) if len(streams) > 1 else streams[0]
            if isinstance(answer, Exception):
                raise answer
            yield answer

        async def renewed() -> bool:
            return renew()

        controller._push = push  # type: ignore[method-assign]
        controller.renew_token = renewed
        return [state async for state in controller.watch_lease("l1")]


@pytest.mark.parametrize(
    "error",
    [
        failure(grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        failure(grpc.StatusCode.UNKNOWN, "etcdserver: request timed out"),
        failure(grpc.StatusCode.UNAVAILABLE),
    ],
)
def test_a_controller_that_fails_does_not_lose_the_lease(error: Exception) -> None:
    async def body() -> None:
        assert await watched(HELD, error, ENDED) == [HELD, ENDED]

    run(body)


@pytest.mark.parametrize(
    "error",
    [
        failure(grpc.StatusCode.NOT_FOUND),
        failure(grpc.StatusCode.UNKNOWN, 'leases.jumpstarter.dev "l1" not found'),
        failure(grpc.StatusCode.PERMISSION_DENIED),
    ],
)
def test_a_lease_that_is_gone_is_lost(error: Exception) -> None:
    async def body() -> None:
        with pytest.raises(LeaseError, match="lease l1"):
            await watched(HELD, error)

    run(body)


def test_a_lease_that_was_never_seen_is_not_waited_for() -> None:
    async def body() -> None:
        with pytest.raises(LeaseError, match="lease l1"):
            await watched(failure(grpc.StatusCode.INTERNAL))

    run(body)


def test_new_tokens_that_are_refused_too_are_not_asked_for_without_end() -> None:
    asked: list[None] = []

    def renew() -> bool:
        asked.append(None)
        return len(asked) < 50

    async def body() -> None:
        with pytest.raises(AuthenticationError):
            await watched(failure(grpc.StatusCode.UNAUTHENTICATED), renew=renew)
        assert len(asked) == 1

    run(body)


def test_a_token_that_a_0_9_controller_refuses_is_known_by_its_words() -> None:
    found = error_from_rpc(failure(grpc.StatusCode.UNKNOWN, "oidc: verify token: oidc: token is expired"), "lab")
    assert isinstance(found, AuthenticationError)

    async def body() -> None:
        error = failure(grpc.StatusCode.UNKNOWN, "failed to authenticate token")
        assert await watched(error, ENDED, renew=lambda: True) == [ENDED]

    run(body)


def test_a_configuration_that_is_being_edited_is_no_new_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "me.yaml"
    path.write_text("endpoint: [")
    config = ClientConfigV1Alpha1(alias="me", endpoint="lab:1", token="t", path=path)

    async def body() -> None:
        async with grpc.aio.insecure_channel("unix:/nowhere") as channel:
            assert not await ControllerClient(config, channel).renew_token()

    run(body)
    assert "no new token" in caplog.text and config.token == "t"


class Heart:
    """A controller that answers heartbeats so."""

    def __init__(self, *answers: float | Exception) -> None:
        self.answers = list(answers)

    async def heartbeat(self, _: str) -> float:
        answer: Any = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return float(answer)


def test_heartbeats_go_on_after_a_failure_and_end_with_the_lease() -> None:
    async def body() -> None:
        heart = Heart(LeaseError("x", code="INTERNAL"), ConnectionError("away"), LeaseError("x", code="NOT_FOUND"), 1.0)
        async with asyncio.timeout(60):
            await keep_alive(heart, "l1", 0)  # type: ignore[arg-type]
        assert heart.answers == [1.0]

    run(body)
