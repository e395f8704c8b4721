# SPDX-License-Identifier: Apache-2.0
"""The controller as a process: roles, health, metrics, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from controller_harness import LabFiles, run_cli
from grpc_health.v1 import health_pb2, health_pb2_grpc
from peers import HOME, Peer, controller, lab_of, refusal, short
from postgres_harness import PostgresServer
from prometheus_client.parser import text_string_to_metric_families

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.config import ControllerConfig
from jumpstarter_controller.server import running_controller


def _metrics(address: str) -> dict[str, float]:
    """Everything that Prometheus reads: name{label=value}: number."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        text = answer.read().decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_prometheus_reads_what_the_lab_does(tmp_path: Path, database_url: str) -> None:
    lab = LabFiles.make(tmp_path / "lab", database=database_url, metrics={"listen": "127.0.0.1:0"})

    async def body() -> None:
        async with lab_of(lab, clients=2) as (running, [exporter], [alice, bob]):
            lease = await alice.lease()
            await exporter.next()
            waiting = await bob.lease()
            listen = exporter.listen(short(lease.name))
            await exporter.status(ExporterStatus.LEASE_READY)
            near = await alice.call("Dial", lease_name=short(lease.name))
            far = await listen.read()
            async with alice.tunnel(near.router_token) as mine, exporter.tunnel(far.router_token) as theirs:
                await mine.write(b"\x0a\x01x")
                await theirs.read()
                seen = await asyncio.to_thread(_metrics, running.metrics)
            assert seen["jumpstarter_tunnels{}"] == 1
            assert seen["jumpstarter_leases{state=held}"] == seen["jumpstarter_leases{state=waiting}"] == 1
            assert seen["jumpstarter_queue_length{}"] == 1
            assert (seen["jumpstarter_exporters{state=online}"], seen["jumpstarter_exporters{state=offline}"]) == (1, 0)
            assert seen["jumpstarter_lease_acquisitions_total{result=success}"] == 1
            assert seen["jumpstarter_lease_acquisition_seconds_count{}"] == 1
            assert seen["jumpstarter_lease_acquisition_seconds_bucket{le=5.0}"] == 1
            assert seen["jumpstarter_dial_seconds_count{}"] == 1
            assert seen["jumpstarter_database_up{}"] == seen["jumpstarter_replicas{}"] == 1
            await alice.ask("DeleteLease", name=lease.name)
            await bob.ask("DeleteLease", name=waiting.name)
            await alice.lease("board=none")
            seen = await asyncio.to_thread(_metrics, running.metrics)
            assert seen["jumpstarter_lease_acquisitions_total{result=failure}"] == 1
            assert seen["jumpstarter_leases_ended_total{}"] == 3
            assert "c0" not in str(seen)  # no names

    asyncio.run(body())


def test_metrics_tell_of_a_database_that_has_gone(tmp_path: Path, postgres_url: str, postgres: PostgresServer) -> None:
    lab = LabFiles.make(tmp_path / "lab", database=postgres_url, metrics={"listen": "127.0.0.1:0"})

    async def body() -> None:
        async with lab_of(lab, exporters=0) as (running, _, [alice]):
            assert running.metrics is not None
            await asyncio.to_thread(postgres.stop)
            assert (await refusal(alice.ask("ListLeases", parent=HOME)))[0] == "UNAVAILABLE"
            seen = await asyncio.to_thread(_metrics, running.metrics)
            assert seen["jumpstarter_database_up{}"] == 0
            assert seen["jumpstarter_database_errors_total{kind=lost}"] > 0
            assert "jumpstarter_queue_length{}" not in seen  # not known is not 0
            postgres.start()

    asyncio.run(body())


def test_there_are_no_metrics_unless_they_are_asked_for(lab: LabFiles) -> None:
    async def body() -> None:
        async with controller(lab) as running:
            assert running.metrics is None

    asyncio.run(body())


async def _watch_health(lab: LabFiles, service: str) -> tuple[grpc.aio.Channel, Any]:
    channel = grpc.aio.secure_channel(lab.endpoint, grpc.ssl_channel_credentials(lab.ca))
    return channel, health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service))


def test_health_is_told_to_who_watches_and_ends_with_the_controller(lab: LabFiles) -> None:
    async def body() -> None:
        async with controller(lab):
            channel, watch = await _watch_health(lab, "jumpstarter.v1.ControllerService")
            async with asyncio.timeout(60):
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            unknown, other = await _watch_health(lab, "no.such.Service")
            async with asyncio.timeout(60):
                assert (await other.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            await unknown.close()
            # Begun before the end: what a stream has brought and nobody has taken yet is lost when the stream breaks.
            last = asyncio.create_task(watch.read())
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            assert (await last).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await channel.close()

    asyncio.run(body())


def test_the_controller_role_has_no_router(lab: LabFiles) -> None:
    async def body() -> None:
        async with running_controller(ControllerConfig.load(lab.config), "controller") as running:
            lab.endpoint = running.endpoint
            assert running.router is None
            alice = Peer(lab, lab.client("alice"), "Client")
            await alice.ask("ListLeases", parent=HOME)
            async with alice.tunnel(alice.token) as end:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await end.read()
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
            await alice.close()

    asyncio.run(body())


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"database": "postgresql://lab:sesame@/lab?host=/nowhere"}, "database postgresql://lab@/lab cannot be used"),
        ({"database": {"url": "lab.db", "passwordFile": "x"}}, "database: a passwordFile is for PostgreSQL"),
        ({"database": "mysql://lab"}, "database: expected a path or postgresql://USER@HOST/DATABASE"),
        ({"database": {"url": "postgresql://lab@/lab", "passwordFile": "none"}}, "password file .*none: No such file"),
        ({"metrics": {"listen": "192.0.2.1:1"}}, "metrics: cannot listen on 192.0.2.1:1"),
        ({"listen": "192.0.2.1:1"}, "cannot listen on 192.0.2.1:1: Cannot assign requested address$"),
        ({"tls": {"certificate": "server.crt", "key": "ca.key", "ca": "ca.crt"}}, "ca.key does not belong to certifi"),
        (
            {"tls": {"certificate": "server.key", "key": "server.key", "ca": "ca.crt"}},
            "server.key holds no certificate",
        ),
        ({"tls": {"certificate": "server.crt", "key": "ca.crt", "ca": "ca.crt"}}, "ca.crt holds no private key"),
        (
            {"tls": {"certificate": "server.crt", "key": "server.key", "ca": "server.crt"}},
            "has not signed .*server.crt",
        ),
        ({"tls": {"certificate": "none", "key": "server.key", "ca": "ca.crt"}}, "none cannot be read: [^(]*$"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_one_line(tmp_path: Path, settings: dict[str, Any], why: str) -> None:
    lab = LabFiles.make(tmp_path / "lab", **settings)
    argv = [sys.executable, "-m", "jumpstarter_controller", "serve", "--config", str(lab.config)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "sesame" not in done.stderr
    assert re.search(why, done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("lisen: 127.0.0.1:0", "lisen: there is no such field$"),
        ("leases: {ofline: 5s}", "leases.ofline: there is no such field$"),
        ("leases: []", "leases: expected a block of fields$"),
        ("kind: ExporterConfig", "kind: expected 'ControllerConfig', got \"ExporterConfig\"$"),
        ("listen: 127.0.0.1:99999", 'listen: expected HOST:PORT with a port of at most 65535, got "127.0.0.1:99999"$'),
        ("login: {listen: 127.0.0.1:80809}", "login.listen: expected HOST:PORT"),
        ('endpoint: "https://lab.example.org:1"', "endpoint: expected HOST:PORT"),
        ("namespace: ../x", 'namespace: namespace "../x" must be'),
        ("tokens: {lifetime: .inf}", "tokens.lifetime: Input should be less than"),
        ("tokens: {lifetime: .nan}", "tokens.lifetime: Input should be greater than"),
        ("database", "is not YAML: [^\n]*$"),
    ],
)
def test_a_wrong_field_is_named_in_one_line(tmp_path: Path, change: str, why: str) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    data = yaml.safe_load(lab.config.read_text())
    if ":" in change:
        data.pop(change.partition(":")[0], None)
    lab.config.write_text(f"{yaml.safe_dump(data)}\n{change}\n")
    with pytest.raises(ConfigurationError) as refused:
        ControllerConfig.load(lab.config)
    assert "\n" not in str(refused.value)
    assert re.search(why, str(refused.value))


def test_a_typo_explains_the_field_that_is_missing(tmp_path: Path) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    lab.config.write_text(lab.config.read_text().replace("listen:", "lisen:"))
    with pytest.raises(ConfigurationError, match='lisen: there is no such field; "listen" is missing'):
        ControllerConfig.load(lab.config)


def test_a_key_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    (lab.folder / "server.key").chmod(0o644)
    with lab.serving():
        pass
    assert "server.key can be read by others than its owner" in (lab.folder / "controller.log").read_text()


def test_half_of_a_renewed_certificate_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lab = LabFiles.make(tmp_path / "lab")
    certificate, key = lab.folder / "server.crt", lab.folder / "server.key"

    async def body() -> None:
        async with controller(lab):
            run_cli("ca", "issue", "--dir", lab.folder, "--out", "next", "127.0.0.1")
            (lab.folder / "next.crt").replace(certificate)
            await _serves(lab)
            assert "does not belong to certificate" in caplog.text and "the certificate in use stays" in caplog.text
            (lab.folder / "next.key").replace(key)
            caplog.set_level("INFO")
            await _serves(lab)
            assert "has been read again" in caplog.text

    asyncio.run(body())


async def _serves(lab: LabFiles) -> None:
    channel, watch = await _watch_health(lab, "")
    async with asyncio.timeout(60):
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    await channel.close()


def test_two_controllers_do_not_share_a_file(tmp_path: Path) -> None:
    lab = LabFiles.make(tmp_path / "lab")

    async def body() -> None:
        async with controller(lab):
            argv = [sys.executable, "-m", "jumpstarter_controller", "serve", "--config", str(lab.config)]
            done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert "another controller serves from database" in done.stderr.splitlines()[-1]

    asyncio.run(body())
