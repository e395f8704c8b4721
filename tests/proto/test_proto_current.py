# SPDX-License-Identifier: Apache-2.0
"""The wire: generated code is current, and field numbers are those existing peers use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jumpstarter_protocol import client_pb2, common_pb2, jumpstarter_pb2, kubernetes_pb2, router_pb2, telemetry_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "proto" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


NUMBERS = {
    (jumpstarter_pb2, "RegisterRequest"): "labels=1 reports=2",
    (jumpstarter_pb2, "DriverInstanceReport"): "uuid=1 parent_uuid=2 labels=3 description=4 methods_description=5",
    (jumpstarter_pb2, "UnregisterRequest"): "reason=2",
    (jumpstarter_pb2, "ListenResponse"): "router_endpoint=1 router_token=2",
    (jumpstarter_pb2, "StatusResponse"): "leased=1 lease_name=2 client_name=3 context=4",
    (jumpstarter_pb2, "DialResponse"): "router_endpoint=1 router_token=2",
    (jumpstarter_pb2, "ReportStatusRequest"): "status=1 message=2 release_lease=3",
    (jumpstarter_pb2, "GetReportResponse"): "uuid=1 labels=2 reports=3 alternative_endpoints=4 motd=5",
    (jumpstarter_pb2, "Endpoint"): "endpoint=1 certificate=2 client_certificate=3 client_private_key=4",
    (jumpstarter_pb2, "DriverCallRequest"): "uuid=1 method=2 args=3",
    (jumpstarter_pb2, "DriverCallResponse"): "uuid=1 result=2",
    (jumpstarter_pb2, "StreamingDriverCallRequest"): "uuid=1 method=2 args=3",
    (jumpstarter_pb2, "StreamingDriverCallResponse"): "uuid=1 result=2",
    (
        jumpstarter_pb2,
        "LogStreamResponse",
    ): "uuid=1 severity=2 message=3 source=4 driver_type=5 operation=6 timestamp=7 structured_fields=8",
    (jumpstarter_pb2, "GetStatusResponse"): "status=1 message=2 status_version=3 previous_status=4",
    (jumpstarter_pb2, "EndSessionResponse"): "success=1 message=2",
    (
        jumpstarter_pb2,
        "GetLeaseResponse",
    ): "duration=1 selector=2 begin_time=3 end_time=4 exporter_uuid=5 conditions=6",
    (jumpstarter_pb2, "TelemetryEndpoint"): "endpoint=1 certificate=2 min_severity=3",
    (router_pb2, "StreamRequest"): "payload=1 frame_type=2",
    (router_pb2, "StreamResponse"): "payload=1 frame_type=2",
    (kubernetes_pb2, "LabelSelectorRequirement"): "key=1 operator=2 values=3",
    (kubernetes_pb2, "LabelSelector"): "match_expressions=1 match_labels=2",
    (
        kubernetes_pb2,
        "Condition",
    ): "type=1 status=2 observedGeneration=3 lastTransitionTime=4 reason=5 message=6",
    (
        telemetry_pb2,
        "LogEntry",
    ): "timestamp=1 severity=2 message=3 component=4 exporter=5 lease=6 client=7 operation=8 result=9 driver_type=10 "
    "extra_fields=11 namespace=12",
    (
        client_pb2,
        "Exporter",
    ): "name=1 labels=2 online=3 status=4 status_message=5 enabled=6 deprecated_labels=7",
    (
        client_pb2,
        "Lease",
    ): "name=1 selector=2 duration=3 effective_duration=4 begin_time=5 effective_begin_time=6 end_time=7 "
    "effective_end_time=8 client=9 exporter=10 conditions=11 exporter_name=12 tags=13 allow_disabled=14 context=15 "
    "deprecated_labels=16",
    (client_pb2, "ListExportersRequest"): "parent=1 page_size=2 page_token=3 filter=4 show_hidden_labels=5",
    (client_pb2, "ListLeasesRequest"): "parent=1 page_size=2 page_token=3 filter=4 only_active=5 tag_filter=6",
    (client_pb2, "CreateLeaseRequest"): "parent=1 lease_id=2 lease=3",
    (client_pb2, "RotateTokenResponse"): "token=1 expiry=2",
}


@pytest.mark.parametrize(("where", "fields"), NUMBERS.items(), ids=lambda v: v[1] if isinstance(v, tuple) else "")
def test_field_numbers_are_those_of_the_protocol(where: tuple[object, str], fields: str) -> None:
    module, name = where
    descriptor = getattr(module, name).DESCRIPTOR
    assert " ".join(f"{f.name}={f.number}" for f in sorted(descriptor.fields, key=lambda f: f.number)) == fields


def test_services_have_the_methods_of_the_protocol() -> None:
    def methods(module: object, service: str) -> list[str]:
        return sorted(module.DESCRIPTOR.services_by_name[service].methods_by_name)  # type: ignore[attr-defined]

    assert methods(jumpstarter_pb2, "ControllerService") == sorted(
        "Register Unregister ReportStatus Listen Status Dial GetLease RequestLease ReleaseLease ListLeases "
        "GetServiceEndpoints".split()
    )
    assert methods(jumpstarter_pb2, "ExporterService") == sorted(
        "GetReport DriverCall StreamingDriverCall LogStream Reset GetStatus EndSession".split()
    )
    assert methods(client_pb2, "ClientService") == sorted(
        "GetExporter ListExporters GetLease ListLeases CreateLease UpdateLease DeleteLease RotateToken".split()
    )
    assert dict(router_pb2.FrameType.items()) == {
        "FRAME_TYPE_DATA": 0,
        "FRAME_TYPE_RST_STREAM": 3,
        "FRAME_TYPE_PING": 6,
        "FRAME_TYPE_GOAWAY": 7,
    }
    assert common_pb2.ExporterStatus.Value("EXPORTER_STATUS_LEASE_READY") == 4
