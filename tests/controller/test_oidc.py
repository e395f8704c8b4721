# SPDX-License-Identifier: Apache-2.0
"""External issuers: whom their tokens let in, which ones are refused, and what an outage of the issuer does."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import jwt
import pytest
import yaml
from admin_peers import who_am_i
from controller_harness import LabFiles, run_cli
from cryptography.hazmat.primitives.asymmetric import rsa
from oidc_issuer import OidcIssuer, serving_issuer
from peers import HOME, Peer, controller, refusal, refused_soon

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.identity import cache, jwks, oidc
from jumpstarter_protocol import client_pb2_grpc
from jumpstarter_protocol.jumpstarter.client.v1 import client_pb2


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[OidcIssuer]:
    with serving_issuer(tmp_path / "issuer") as issuer:
        yield issuer


@pytest.fixture
def lab(lab: LabFiles, issuer: OidcIssuer) -> LabFiles:
    """A lab that believes the issuer, and knows its user alice."""
    configure(lab, authentication={"jwt": [issuer.settings()]})
    command(lab, "create", "client", "alice", "--oidc-username", "corp:alice")
    return lab


def configure(lab: LabFiles, **settings: Any) -> None:
    lab.config.write_text(yaml.safe_dump({**yaml.safe_load(lab.config.read_text()), **settings}))


def command(lab: LabFiles, *argv: str) -> None:
    run_cli("admin", *argv, "--config", lab.config)


@contextlib.asynccontextmanager
async def channel(lab: LabFiles, token: str) -> AsyncIterator[grpc.aio.Channel]:
    credentials = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(lab.ca), grpc.access_token_call_credentials(token)
    )
    async with grpc.aio.secure_channel(lab.endpoint, credentials) as opened:
        yield opened


async def who(lab: LabFiles, token: str) -> Any:
    async with channel(lab, token) as opened:
        return await who_am_i(opened)


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "EdDSA"])
def test_a_user_of_the_issuer_is_the_client_that_has_its_name(
    lab: LabFiles, issuer: OidcIssuer, algorithm: str
) -> None:
    issuer.keys.clear()
    issuer.add_key("one", algorithm)

    async def body() -> None:
        async with controller(lab):
            me = await who(lab, issuer.token())
            assert (me.kind, me.namespace, me.name, me.method) == ("client", "default", "alice", "oidc")
            assert me.HasField("expiry")
            # It gets no token of ours, which would outlive what the issuer says of it.
            async with channel(lab, issuer.token()) as opened:
                rotate = client_pb2_grpc.ClientServiceStub(opened).RotateToken
                refused = await refusal(rotate(client_pb2.RotateTokenRequest(parent=HOME)))
                assert refused[0] == "FAILED_PRECONDITION"
            code, text = await refusal(who(lab, issuer.token("bob")))
            assert code == "PERMISSION_DENIED"
            assert text.startswith('permission denied: no client or exporter has the username "corp:bob"')

    asyncio.run(body())


def test_an_exporter_can_be_a_user_too(lab: LabFiles, issuer: OidcIssuer) -> None:
    async def body() -> None:
        async with controller(lab):
            await asyncio.to_thread(command, lab, "create", "exporter", "board", "--oidc-username", "corp:svc-board")
            assert (await who(lab, issuer.token("svc-board"))).kind == "exporter"

    asyncio.run(body())


def test_tokens_that_are_not_for_us(lab: LabFiles, issuer: OidcIssuer) -> None:
    now = int(time.time())
    _, good = issuer.keys["one"]
    stranger = rsa.generate_private_key(65537, 2048)
    public = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(good.public_key()))
    claims = issuer.claims()
    whole = issuer.token()
    head, body_, signature = whole.split(".")
    forged = base64.urlsafe_b64encode(json.dumps({**claims, "sub": "root"}).encode()).decode().rstrip("=")
    listed = json.dumps({**claims, "iss": [issuer.url]}).encode()
    odd = jwt.api_jws.encode(listed, good, algorithm="RS256", headers={"kid": "one"})
    cases = {
        "token is expired": [issuer.token(exp=now - 301, iat=now - 900)],
        "not valid yet: nbf": [issuer.token(nbf=now + 900)],
        "not valid yet: iat": [issuer.token(iat=now + 900)],
        "exp": [issuer.token(exp=None), issuer.token(exp=True)],
        "udience": [issuer.token(aud="another")],
        'missing the "aud" claim': [issuer.token(aud=None), issuer.token(aud=[])],
        "no claim sub that names a user": [
            issuer.token(sub=None),
            jwt.encode(claims | {"sub": "a\x00b"}, good, algorithm="RS256", headers={"kid": "one"}),
        ],
        "longer than": [issuer.token("x" * 300)],
        "ignature": [
            f"{head}.{forged}.{signature}",
            jwt.encode(claims, stranger, algorithm="RS256", headers={"kid": "one"}),
        ],
        "does not publish the key": [jwt.encode(claims, stranger, algorithm="RS256", headers={"kid": "two"})],
        "algorithm none": [jwt.encode(claims, None, algorithm="none", headers={"kid": "one"})],
        "algorithm HS256": [jwt.encode(claims, public["n"], algorithm="HS256", headers={"kid": "one"})],
        "its key is for RS256": [jwt.encode(claims, good, algorithm="RS512", headers={"kid": "one"})],
        # Not of this issuer: our own keys have to have signed it.
        "does not accept": [issuer.token(iss="https://elsewhere.example.org"), odd],
        "token is not valid": ["x.y.z", "..", "Ü" * 3, "a" * 5000],
    }

    async def body() -> None:
        async with controller(lab):
            for part, tokens in cases.items():
                for token in tokens:
                    code, text = await refusal(who(lab, token.encode("ascii", "replace").decode()))
                    assert code == "UNAUTHENTICATED" and part in text, (part, code, text)
                    assert len(text) < 500
            assert (await who(lab, whole)).name == "alice"

    asyncio.run(body())


def test_five_minutes_of_skew_are_tolerated(lab: LabFiles, issuer: OidcIssuer) -> None:
    async def body() -> None:
        async with controller(lab):
            now = int(time.time())
            early = issuer.token(iat=now + 270, nbf=now + 270, exp=now + 600)
            assert (await who(lab, early)).name == "alice"
            now = int(time.time())
            late = issuer.token(iat=now - 900, exp=now - 240)
            assert (await who(lab, late)).name == "alice"

    asyncio.run(body())


def test_keys_rotate_and_unknown_ones_cost_one_request(
    lab: LabFiles, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_UNKNOWN_KEY_PAUSE", 3600.0)

    async def body() -> None:
        async with controller(lab):
            await asyncio.gather(*(who(lab, issuer.token()) for _ in range(5)))
            assert issuer.asked == 1
            unknown = rsa.generate_private_key(65537, 2048)
            forged = jwt.encode(issuer.claims(), unknown, algorithm="RS256", headers={"kid": "never"})
            for _ in range(5):
                assert (await refusal(who(lab, forged)))[0] == "UNAUTHENTICATED"
            assert issuer.asked == 1  # it was asked a moment ago
            issuer.add_key("two", "ES256")
            assert (await refusal(who(lab, issuer.token(kid="two"))))[0] == "UNAUTHENTICATED"

    asyncio.run(body())
    issuer.keys.pop("two")
    monkeypatch.setattr(oidc, "_UNKNOWN_KEY_PAUSE", 0.0)

    async def later() -> None:
        async with controller(lab):
            assert (await who(lab, issuer.token())).name == "alice"
            issuer.add_key("two", "ES256")
            assert (await who(lab, issuer.token(kid="two"))).name == "alice"
            issuer.keys.pop("one")

    asyncio.run(later())


def test_an_outage_of_the_issuer_keeps_the_known_keys_and_hinders_nobody_else(
    lab: LabFiles, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_TIMEOUT", 300.0)  # who waits for the issuer does so for longer than this test
    monkeypatch.setattr(oidc, "_FRESH", 0.0)  # keys are stale at once: every new token asks for them again
    monkeypatch.setattr(oidc, "_UNKNOWN_KEY_PAUSE", 0.0)

    async def body() -> None:
        async with controller(lab):
            first = issuer.token()
            assert (await who(lab, first)).name == "alice"
            issuer.answers.clear()  # it takes calls and does not answer
            bob = Peer(lab, await asyncio.to_thread(lab.client, "bob"), "Client")
            async with asyncio.timeout(60):
                assert (await who(lab, issuer.token(jti="new"))).name == "alice"
                await bob.ask("ListLeases", parent=HOME)
            issuer.broken = True
            issuer.answers.set()
            assert (await who(lab, issuer.token(jti="newer"))).name == "alice"
            await bob.close()

    asyncio.run(body())


def test_an_issuer_that_was_never_there_is_unavailable(lab: LabFiles, issuer: OidcIssuer) -> None:
    issuer.broken = True

    async def body() -> None:
        async with controller(lab):
            code, text = await refusal(who(lab, issuer.token()))
            assert code == "UNAVAILABLE"
            assert issuer.url in text and "answers 500" in text

    asyncio.run(body())


def test_an_issuer_that_calls_itself_otherwise_is_not_believed(lab: LabFiles, issuer: OidcIssuer) -> None:
    issuer.calls_itself = "https://evil.example.org"

    async def body() -> None:
        async with controller(lab):
            code, text = await refusal(who(lab, issuer.token()))
            assert code == "UNAVAILABLE" and 'calls itself "https://evil.example.org"' in text

    asyncio.run(body())


def test_an_issuer_whose_certificate_nobody_vouches_for(lab: LabFiles, issuer: OidcIssuer) -> None:
    settings = issuer.settings()
    settings["issuer"]["certificateAuthority"] = "ca.crt"  # the lab's own, not the issuer's
    configure(lab, authentication={"jwt": [settings]})

    async def body() -> None:
        async with controller(lab):
            code, text = await refusal(who(lab, issuer.token()))
            assert code == "UNAVAILABLE" and "certificate verify failed" in text

    asyncio.run(body())


def test_unusable_keys_are_passed_over(lab: LabFiles, issuer: OidcIssuer) -> None:
    weak = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(rsa.generate_private_key(65537, 1024).public_key()))
    secret = base64.urlsafe_b64encode(b"s" * 32).decode()
    issuer.extra = [
        {"kty": "oct", "k": secret, "kid": "one", "alg": "HS256"},
        {**weak, "kid": "weak"},
        {"kty": "EC", "crv": "P-256", "kid": "torn"},
        {"kty": "RSA", "use": "enc", "kid": "enc"},
        "nonsense",  # type: ignore[list-item]
    ]

    async def body() -> None:
        async with controller(lab):
            assert (await who(lab, issuer.token())).name == "alice"

    asyncio.run(body())


def test_the_email_must_be_verified(lab: LabFiles, issuer: OidcIssuer) -> None:
    configure(lab, authentication={"jwt": [issuer.settings(prefix="", claim="email")]})
    command(lab, "update", "client", "alice", "--oidc-username", "alice@example.org")

    async def body() -> None:
        async with controller(lab):
            mail = {"email": "alice@example.org"}
            assert (await who(lab, issuer.token(**mail, email_verified=True))).name == "alice"
            for value in (False, "true"):
                code, text = await refusal(who(lab, issuer.token(**mail, email_verified=value)))
                assert code == "UNAUTHENTICATED" and "not verified" in text

    asyncio.run(body())


def test_a_client_is_provisioned_only_when_that_is_switched_on(lab: LabFiles, issuer: OidcIssuer) -> None:
    async def off() -> None:
        async with controller(lab):
            assert (await refusal(who(lab, issuer.token("Bob.Builder"))))[0] == "PERMISSION_DENIED"

    async def on() -> None:
        async with controller(lab):
            names = await asyncio.gather(*(who(lab, issuer.token("Bob.Builder", jti=str(i))) for i in range(4)))
            assert {each.name for each in names} == {"bob-builder"}
            # Another user whose name would become the same is not let in as this one.
            code, text = await refusal(who(lab, issuer.token("bob_builder")))
            assert code == "PERMISSION_DENIED" and 'another client is called "bob-builder"' in text

    asyncio.run(off())
    configure(lab, provisioning={"enabled": True})
    asyncio.run(on())
    assert [entry["username"] for entry in lab.audit() if entry["action"] == "client provisioned"] == [
        "corp:Bob.Builder"
    ]


def test_taking_the_username_away_ends_access_at_once(
    lab: LabFiles, issuer: OidcIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_MAX_AGE", 3600.0)  # only that it is told of the change can help

    async def body() -> None:
        async with controller(lab):
            token = issuer.token()
            assert (await who(lab, token)).name == "alice"
            await asyncio.to_thread(command, lab, "update", "client", "alice", "--oidc-username", "corp:other")
            assert (await refused_soon(lambda: who(lab, token)))[0] == "PERMISSION_DENIED"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"issuer": {"url": "http://a.example", "audiences": ["x"]}}], "expected https://"),
        ([{"issuer": {"url": "https://a.example", "audiences": []}}], "audiences"),
        ([{"issuer": {"url": "https://jumpstarter.lab/controller", "audiences": ["x"]}}], "calls itself"),
        ([{"issuer": {"url": f"https://{host}.example", "audiences": ["x"]}} for host in "ab"], "prefixes"),
        ([{"issuer": {"url": "https://a.example", "audiences": ["x"]}}] * 2, "is there twice"),
    ],
)
def test_configurations_that_would_let_the_wrong_ones_in(
    tmp_path: Path, entries: list[dict[str, Any]], message: str
) -> None:
    lab = LabFiles.make(tmp_path / "lab", authentication={"jwt": entries})
    with pytest.raises(ConfigurationError, match=message):
        ControllerConfig.load(lab.config)


def test_an_authority_that_cannot_be_read_is_said_at_the_start(tmp_path: Path) -> None:
    entry = {"issuer": {"url": "https://a.example", "audiences": ["x"], "certificateAuthority": "none.crt"}}
    lab = LabFiles.make(tmp_path / "lab", authentication={"jwt": [entry]})

    async def body() -> None:
        async with controller(lab):
            raise AssertionError("it has started")

    with pytest.raises(ConfigurationError, match=r"issuer https://a\.example: its certificateAuthority cannot be used"):
        asyncio.run(body())
