# SPDX-License-Identifier: Apache-2.0
"""Tokens are worth what the database says, and nothing after that."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import jwt
import pytest
from queue_bench import NAMESPACE, QueueBench
from sqlalchemy import delete

from jumpstarter_controller.administration import subjects
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import (
    IDENTITY_TOPIC,
    Caller,
    Identity,
    public_keys,
    retire_keys,
    revoke_tokens,
    rotate_keys,
)
from jumpstarter_controller.identity.calls import why_cancelled
from jumpstarter_controller.identity.dial import dial_tokens
from jumpstarter_controller.identity.keys import newest_key, sign
from jumpstarter_controller.identity.rotation import rotate_when_due
from jumpstarter_controller.state.database import Database, Transaction
from jumpstarter_controller.state.models import Token


def _create(bench: QueueBench, name: str = "alice") -> str:
    return bench.database.write_now(subjects.create_subject, "client", NAMESPACE, name, {}, 3600.0)


def _who(bench: QueueBench, token: str) -> Caller:
    return asyncio.run(Identity(bench.database).authenticate(token))


def _refused(bench: QueueBench, token: str, why: str) -> None:
    with pytest.raises(Refused, match=why) as refused:
        _who(bench, token)
    assert refused.value.code.name == "UNAUTHENTICATED"


def test_a_token_says_who_it_is(bench: QueueBench) -> None:
    token = _create(bench)
    assert str(_who(bench, token)) == "client default/alice"
    assert jwt.get_unverified_header(token)["alg"] == "ES256"


def test_expiry_has_the_words_that_clients_look_for(bench: QueueBench) -> None:
    token = _create(bench)
    bench.now += 3600
    _refused(bench, token, "^token is expired$")


def test_forgeries(bench: QueueBench) -> None:
    token = _create(bench)
    head, claims, signature = token.split(".")
    plain = json.loads(base64.urlsafe_b64decode(claims + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**plain, "sub": "client:default:bob:1"}).encode()).decode().rstrip("=")
    _refused(bench, f"{head}.{other}.{signature}", "token is not valid: Signature")
    _refused(bench, "nonsense", "token is not valid")
    _refused(bench, jwt.encode(plain, "x" * 32, headers={"kid": "unknown"}), "does not accept")
    kid = jwt.get_unverified_header(token)["kid"]
    _refused(bench, jwt.encode(plain, "x" * 32, headers={"kid": kid}), "token is not valid")
    _refused(bench, jwt.encode(plain, None, algorithm="none", headers={"kid": kid}), "token is not valid")


def test_a_token_without_its_row_is_refused(bench: QueueBench) -> None:
    token = _create(bench)
    bench.database.write_now(lambda tx: tx.session.execute(delete(Token)))
    _refused(bench, token, "unknown to this controller")


def test_revocation(bench: QueueBench) -> None:
    old = _create(bench)
    new = bench.database.write_now(subjects.revoke, "client", NAMESPACE, "alice", 3600.0)
    _refused(bench, old, "token has been revoked")
    assert _who(bench, new).name == "alice"


def test_keys_rotate_and_retire(bench: QueueBench) -> None:
    old = _create(bench)
    bench.now += 1
    bench.database.write_now(rotate_keys)
    new = _create(bench, "bob")
    assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
    assert _who(bench, old).name == "alice"
    assert bench.database.write_now(retire_keys) == 1
    _refused(bench, old, "does not accept")
    assert _who(bench, new).name == "bob"


def test_keys_are_replaced_by_age_and_retired_when_nothing_stands_on_them(bench: QueueBench) -> None:
    first = _create(bench)
    kids = {jwt.get_unverified_header(first)["kid"]}
    for days in (10, 20, 30):
        bench.now += 10 * 86400
        bench.database.write_now(rotate_when_due, 9 * 86400.0)
        bench.database.write_now(rotate_when_due, 9 * 86400.0)  # nothing is due any more
        kids.add(jwt.get_unverified_header(_create(bench, f"c{days}"))["kid"])
    assert len(kids) == 4
    assert len(bench.database.read_now(public_keys)) == 2  # the one that signs, and the last one before
    token = bench.database.write_now(subjects.create_subject, "client", NAMESPACE, "long", {}, 50 * 86400.0)
    for _ in range(3):
        bench.now += 10 * 86400
        bench.database.write_now(rotate_when_due, 9 * 86400.0)
    assert _who(bench, token).name == "long"  # its key has to stay


def test_a_dial_token_is_no_identity(bench: QueueBench) -> None:
    _create(bench)
    tokens = bench.database.write_now(dial_tokens, "router", NAMESPACE, "lease", "client-id")
    _refused(bench, tokens["client"], "token is not valid")


def test_a_token_of_one_subject_does_not_become_that_of_another(bench: QueueBench) -> None:
    """A key that leaked signs whatever somebody likes; the row still says whose token it is."""
    alice, bob = _create(bench), _create(bench, "bob")
    claims = [jwt.decode(token, options={"verify_signature": False}) for token in (alice, bob)]

    def mixed(tx: Transaction) -> str:
        return sign(newest_key(tx), {**claims[0], "jti": claims[1]["jti"]})

    _refused(bench, bench.database.write_now(mixed), "unknown to this controller")


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": "soon"},
        {"exp": None},
        {"jti": 7},
        {"jti": ["a"]},
        {"sub": 7},
        {"iss": "https://elsewhere"},
        {"aud": "another"},
        {"nbf": 10**12},
    ],
)
def test_odd_claims_are_refused_even_when_signed(bench: QueueBench, changes: dict[str, Any]) -> None:
    token = _create(bench)
    claims = {**jwt.decode(token, options={"verify_signature": False}), **changes}

    def resigned(tx: Transaction) -> str:
        key = newest_key(tx)
        text = json.dumps({name: value for name, value in claims.items() if value is not None}).encode()
        return jwt.api_jws.encode(text, key.private_pem, algorithm="ES256", headers={"kid": key.kid})

    _refused(bench, bench.database.write_now(resigned), "^token is ")


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b.c",
        "." * 50,
        "e30.e30.e30",
        "x" * 20_000,
        "\ud800",
        "ÄÖ.ß.é",
        "bnVsbA.bnVsbA.",
        "e30" * 3000 + ".a.b",
    ],
)
def test_malformed_tokens(bench: QueueBench, token: str) -> None:
    _refused(bench, token, "^token is ")


@pytest.mark.parametrize("kid", [None, 7, "", "../../etc/passwd", "x" * 5000, ["a"], {"a": 1}])
def test_odd_key_ids(bench: QueueBench, kid: Any) -> None:
    _create(bench)
    head = base64.urlsafe_b64encode(json.dumps({"alg": "ES256", "kid": kid}).encode()).decode().rstrip("=")
    _refused(bench, f"{head}.e30.c2ln", "^token is ")


def test_a_verified_caller_is_remembered_and_forgotten_when_it_counts(bench: QueueBench) -> None:
    token = _create(bench)

    async def body() -> None:
        identity, database = Identity(bench.database), bench.database
        reads = _counted(database)
        async with database.running(), identity.running():
            caller = await identity.authenticate(token)
            assert await identity.authenticate(token) == caller
            assert len(reads) == 1
            await database.write(_revoke, "alice")
            with pytest.raises(Refused, match="token has been revoked"):
                await identity.authenticate(token)

    asyncio.run(body())


def test_what_is_remembered_ends_with_the_token_and_soon(bench: QueueBench) -> None:
    token = _create(bench)

    async def body() -> None:
        identity = Identity(bench.database)
        reads = _counted(bench.database)
        async with bench.database.running(), identity.running():
            await identity.authenticate(token)
            bench.now += 9
            await identity.authenticate(token)
            assert len(reads) == 1
            bench.now += 2  # so long a broken bus between controllers may keep a revoked token alive
            await identity.authenticate(token)
            assert len(reads) == 2
            bench.now += 3600
            with pytest.raises(Refused, match="^token is expired$"):
                await identity.authenticate(token)

    asyncio.run(body())


def test_a_revocation_during_the_look_up_counts(bench: QueueBench) -> None:
    """The database was read before the revocation, the answer arrives after it: it must not be believed.

    Calls of those who lost access have been ended by then; this one would go on for ever.
    """
    token, other = _create(bench), _create(bench, "bob")

    async def body() -> None:
        identity, database = Identity(bench.database), bench.database
        read = database.read

        async def slow(*args: Any, **kwargs: Any) -> Any:
            database.read = read  # type: ignore[method-assign]
            found = await read(*args, **kwargs)
            await database.write(_revoke, "alice")
            await identity.authenticate(other)  # which notices that everything is to be forgotten
            return found

        async with database.running(), identity.running():
            database.read = slow  # type: ignore[method-assign]
            for _ in range(2):  # nor is it remembered
                with pytest.raises(Refused, match="token has been revoked"):
                    await identity.authenticate(token)

    asyncio.run(body())


def test_a_call_ends_when_its_caller_loses_access_and_others_go_on(bench: QueueBench) -> None:
    tokens = [_create(bench, name) for name in ("alice", "bob")]

    async def body() -> None:
        identity, database = Identity(bench.database), bench.database
        async with database.running(), identity.running():
            calls = []
            for token in tokens:
                call: asyncio.Task[object] = asyncio.create_task(_forever())
                identity.serves(call, await identity.authenticate(token))
                calls.append(call)
            await database.write(_revoke, "alice")
            async with asyncio.timeout(60):
                await asyncio.wait([calls[0]])
            reason = why_cancelled(calls[0])
            assert reason is not None and reason.message == "token has been revoked"
            # A full look around later the other one is still there.
            await database.write(lambda tx: tx.touch(IDENTITY_TOPIC))
            await database.read(lambda tx: None)
            assert not calls[1].done() and why_cancelled(calls[1]) is None
            calls[1].cancel()

    asyncio.run(body())


def _revoke(tx: Transaction, name: str) -> int:
    return revoke_tokens(tx, subjects.find_subject(tx, "client", NAMESPACE, name))


async def _forever() -> None:
    await asyncio.Event().wait()


def _counted(database: Database) -> list[object]:
    """Grows with every read of the database."""
    reads: list[object] = []
    read = database.read

    async def counting(body: Any, *args: Any, **kwargs: Any) -> Any:
        reads.append(body)
        return await read(body, *args, **kwargs)

    database.read = counting  # type: ignore[method-assign]
    return reads
