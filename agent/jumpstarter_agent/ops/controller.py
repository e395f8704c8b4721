# SPDX-License-Identifier: Apache-2.0
"""exporter_info: what a lab's controller knows. Takes no lease."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ..context import Context
from ..controllers import ClientRef
from ..errors import AgentError
from ..request import Args

__all__ = ["client_ref", "exporters"]


def client_ref(args: Args) -> ClientRef:
    """Which client configuration the request names."""
    return ClientRef(args.optional_text("client"), args.optional_text("client_config"))


async def exporters(ctx: Context) -> dict[str, Any]:
    """The exporters with these labels, or the one of this name, as a list of plain objects."""
    args = ctx.args
    ref = client_ref(args)
    selector, name = args.text("selector", ""), args.optional_text("name")
    hidden = args.flag("hidden_labels", False)
    args.finish()
    controller = await ctx.agent.controllers.get(ref)
    found = await controller.list_exporters(selector, show_hidden_labels=hidden)
    if name is not None:
        found = [exporter for exporter in found if exporter.name == name]
        if not found:
            among = f' among those with "{selector}"' if selector else ""
            raise AgentError("not_found", f'the lab has no exporter "{name}"{among}')
    return {"changed": False, "exporters": [_exporter(exporter) for exporter in sorted(found, key=lambda e: e.name)]}


def _exporter(exporter: Any) -> dict[str, Any]:
    from jumpstarter.common.enums import ExporterStatus

    ready = exporter.status in (ExporterStatus.AVAILABLE, ExporterStatus.UNSPECIFIED)
    # A peer that does not know the field has no disabled exporters.
    enabled = exporter.enabled is not False
    return {
        "name": exporter.name,
        "namespace": exporter.namespace,
        "labels": dict(exporter.labels),
        "deprecated_labels": dict(exporter.deprecated_labels or {}),
        "online": bool(exporter.online),
        "enabled": enabled,
        "available": bool(exporter.online and enabled and ready and not exporter.lease),
        "status": exporter.status.name,
        "status_message": exporter.status_message,
        "drivers": {driver.path: driver.client for driver in exporter.drivers or () if driver.path},
        "lease": exporter.lease or None,
        "client": exporter.client or None,
        "lease_ends": _time(exporter.lease_ends),
    }


def _time(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat(timespec="seconds")
