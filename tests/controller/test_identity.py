# SPDX-License-Identifier: Apache-2.0
"""Tokens are worth what the database says, and nothing after that."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from queue_bench import NAMESPACE, QueueBench
from sqlalchemy import delete

from jumpstarter_controller import admin
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity import Caller, Identity, retire_keys, rotate_keys
from jumpstarter_controller.state.models import Token


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[QueueBench]:
    bench = QueueBench(tmp_path / "lab.db")
    yield bench
    bench.database.close()


def _create(bench: QueueBench, name: str = "alice") -> str:
    return bench.database.write_now(admin.create_subject, "client", NAMESPACE, name, {}, 3600.0)


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
    new = bench.database.write_now(admin.revoke, "client", NAMESPACE, "alice", 3600.0)
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


def test_a_dial_token_is_no_identity_and_an_identity_no_dial_token(bench: QueueBench) -> None:
    identity, token = Identity(bench.database), _create(bench)
    tokens = bench.database.write_now(identity.dial_tokens, NAMESPACE, "lease", "client-id")
    ticket = asyncio.run(identity.ticket(tokens["exporter"]))
    assert (ticket.role, ticket.lease, ticket.client_id) == ("exporter", "lease", "client-id")
    assert ticket.expires_at == bench.now + 60
    _refused(bench, tokens["client"], "token is not valid")
    with pytest.raises(Refused, match="token is not valid"):
        asyncio.run(identity.ticket(token))
    bench.now += 60
    with pytest.raises(Refused, match="token is expired"):
        asyncio.run(identity.ticket(tokens["client"]))
