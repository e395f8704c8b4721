# SPDX-License-Identifier: Apache-2.0
"""An exporter on a TCP port of its own: insecure, TLS both ways, passphrase; held exclusively; lost when it dies."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agent_harness import AgentFailure, Board, RunningAgent, python_path, wait_until

Start = Callable[[], RunningAgent]
CLIENT = """
import asyncio, sys
from jumpstarter.client.aio import connect
async def main():
    async with connect(sys.argv[1]) as session:
        node = session.node("worker")
        print(await node.call("add", 40, right=2))
        async with node.stream("connect") as stream:
            await stream.send(b"abc")
            print((await stream.receive()).decode())
        try:
            await node.call("nope")
        except Exception as error:
            print(type(error).__name__, "nope" in str(error))
asyncio.run(main())
"""


@contextlib.contextmanager
def tcp_exporter(board: Board, **options: Any) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    here = Path(__file__).parent
    document = json.dumps({"config": str(board.config), **{name: str(value) for name, value in options.items()}})
    process = subprocess.Popen(
        [sys.executable, str(here / "tcp_exporter.py"), document],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def make_certificates(directory: Path) -> dict[str, Path]:
    """An authority, and a certificate of it for 127.0.0.1 and for a client."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.datetime.now(datetime.UTC)
    files: dict[str, Path] = {}

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def issue(what: str, issuer: x509.Name, signer: Any, key: Any, authority: bool) -> None:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(what))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if not authority:
            address = x509.IPAddress(__import__("ipaddress").ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        certificate = builder.sign(signer, hashes.SHA256())
        files[what] = directory / f"{what}.pem"
        files[what].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[f"{what}_key"] = directory / f"{what}.key"
        files[f"{what}_key"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    authority_key = ec.generate_private_key(ec.SECP256R1())
    issue("ca", name("ca"), authority_key, authority_key, True)
    for what in ("server", "client"):
        issue(what, name("ca"), authority_key, ec.generate_private_key(ec.SECP256R1()), False)
    return files


def test_insecure_endpoint_works_only_when_said_so(agent: RunningAgent, board: Board) -> None:
    with tcp_exporter(board) as (address, _):
        with pytest.raises(AgentFailure) as failure:
            agent.ask("lease", {"name": "b", "reach": {"endpoint": address}})
        assert address in failure.value.message
        host = {"name": "b", "reach": {"endpoint": address, "insecure": True}}
        assert agent.ask("power", host, state="on")["changed"] is True
        agent.ask("lease", host, state="absent")
        wait_until(lambda: board.trace() == ["on", "off"], 60, "switched off when given back")


def test_tls_both_ways_with_passphrase_and_the_socket_for_other_clients(
    agent: RunningAgent, board: Board, tmp_path: Path
) -> None:
    files = make_certificates(tmp_path)
    secret = tmp_path / "passphrase"
    secret.write_text("open sesame\n")
    server = {"certificate": files["server"], "key": files["server_key"], "client_ca": files["ca"]}
    with tcp_exporter(board, passphrase="open sesame", **server) as (address, _):
        reach = {
            "endpoint": address,
            "tls_ca": str(files["ca"]),
            "tls_cert": str(files["client"]),
            "tls_key": str(files["client_key"]),
        }
        with pytest.raises(AgentFailure, match="passphrase"):
            agent.ask("lease", {"name": "b", "reach": reach})
        host = {"name": "b", "reach": {**reach, "passphrase_file": str(secret)}}
        lease = agent.ask("lease", host)["lease"]
        assert agent.ask("call", host, driver="worker", method="add", args=[1])["value"] == 2
        run = subprocess.run(
            [sys.executable, "-c", CLIENT, lease["jumpstarter_host"]],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert run.stdout.splitlines()[:2] == ["42", "ABC"], run.stderr
        assert run.stdout.splitlines()[2].endswith("True")
        assert "open sesame" not in agent.log()
        command_line = Path(f"/proc/{agent.process.pid}/cmdline").read_bytes()
        assert b"open sesame" not in command_line


def test_what_the_endpoint_refuses_names_the_host_variable_to_set(
    agent: RunningAgent, board: Board, tmp_path: Path
) -> None:
    files = make_certificates(tmp_path)
    (tmp_path / "other").mkdir()
    ca, other = str(files["ca"]), str(make_certificates(tmp_path / "other")["ca"])
    wrong = tmp_path / "wrong"
    wrong.write_text("guess")
    server = {"certificate": files["server"], "key": files["server_key"], "passphrase": "open sesame"}

    def refusal(**reach: Any) -> str:
        with pytest.raises(AgentFailure) as failure:
            agent.ask("lease", {"name": "b", "reach": reach})
        assert failure.value.code == "refused", failure.value.message
        assert failure.value.message.count(reach["endpoint"]) == 1
        return failure.value.message

    with tcp_exporter(board, **server) as (address, _):
        assert "jumpstarter_passphrase_file" in refusal(endpoint=address, tls_ca=ca)
        assert str(wrong) in refusal(endpoint=address, tls_ca=ca, passphrase_file=str(wrong))
        for reach in ({}, {"tls_ca": other}):
            assert "jumpstarter_tls_ca" in refusal(endpoint=address, **reach)
        # Of this name's addresses, 127.0.0.1 and ::1, the exporter has the first only.
        by_name = f"localhost:{address.rpartition(':')[2]}"
        for endpoint in (address, by_name):
            assert "speaks TLS (leave jumpstarter_insecure out" in refusal(endpoint=endpoint, insecure=True)
        assert "jumpstarter_tls_ca" in refusal(endpoint=by_name)
    with tcp_exporter(board) as (address, _):
        assert "does not speak TLS there (jumpstarter_insecure" in refusal(endpoint=address)


def test_second_run_is_told_who_holds_the_endpoint(start_agent: Start, board: Board) -> None:
    first, second = start_agent(), start_agent()
    with tcp_exporter(board) as (address, _):
        host = {"name": "b", "reach": {"endpoint": address, "insecure": True}}
        first.ask("lease", host)
        with pytest.raises(AgentFailure) as failure:
            second.ask("power", host, state="on")
        assert failure.value.code == "busy"
        assert f"ansible-playbook pid {first.playbook.pid}" in failure.value.message
        assert address in failure.value.message
        first.playbook.kill()
        wait_until(first.gone, 60, "first agent gone")

        def taken() -> bool:
            try:
                return bool(second.ask("lease", host)["changed"])
            except AgentFailure as error:
                assert error.code == "busy"
                return False

        wait_until(taken, 60, "free for the second run")


def test_exporter_that_dies_fails_the_call_within_seconds(agent: RunningAgent, board: Board) -> None:
    with tcp_exporter(board) as (address, process):
        host = {"name": "b", "reach": {"endpoint": address, "insecure": True}}
        with agent.request("call", host, driver="worker", method="work", args=[600]) as call:
            wait_until(lambda: board.said("work started"), 60, "call running")
            process.kill()
            with pytest.raises(AgentFailure) as failure:
                call.answer()
        assert failure.value.code == "exporter_lost"
        assert address in failure.value.message


def test_nobody_at_the_endpoint_is_one_clear_error(agent: RunningAgent, board: Board) -> None:
    with tcp_exporter(board) as (address, process):
        process.kill()
        process.wait()
        with pytest.raises(AgentFailure) as failure:
            agent.ask("lease", {"name": "b", "reach": {"endpoint": address, "insecure": True}})
    assert failure.value.code == "exporter_lost"
    assert address in failure.value.message
    assert "\n" not in failure.value.message
    with pytest.raises(AgentFailure, match=r"none\.pem"):
        agent.ask("lease", {"name": "c", "reach": {"endpoint": address, "tls_ca": "/none.pem"}})
