# SPDX-License-Identifier: Apache-2.0
"""The operations of the agent, one module per noun. `OPERATIONS` maps the ``op`` of a request to its function."""

from __future__ import annotations

from ..context import OperationFunction
from . import (
    admin,
    agent_ops,
    call,
    can,
    console,
    controller,
    files,
    flash,
    forward,
    gpio,
    lease,
    operation,
    power,
    recording,
    screenshot,
    serving,
    storage,
    stream,
)

__all__ = ["BACKGROUND", "OPERATIONS"]

OPERATIONS: dict[str, OperationFunction] = {
    "access_policy": admin.admin_policy,
    "boot": console.boot,
    "call": call.call,
    "can": can.can,
    "client": admin.admin_client,
    "console": console.console,
    "console_attach": console.attach,
    "console_exec": console.exec_command,
    "console_fetch": console.fetch,
    "console_put": console.put,
    "console_reset": console.reset,
    "copy_from": files.copy_from,
    "copy_to": files.copy_to,
    "exporter": admin.admin_exporter,
    "exporter_info": controller.exporters,
    "flash": flash.flash,
    "forward": forward.forward,
    "gpio": gpio.gpio,
    "http": serving.http,
    "lease": lease.lease,
    "lease_info": lease.lease_info,
    "operation": operation.operation,
    "ping": agent_ops.ping,
    "power": power.power,
    "recording": recording.recording,
    "screenshot": screenshot.screenshot,
    "shutdown": agent_ops.shutdown,
    "storage": storage.storage,
    "stream": stream.stream,
    "tftp": serving.tftp,
    "uboot": console.uboot,
}

BACKGROUND = frozenset({"boot", "call", "copy_from", "copy_to", "flash", "storage"})
"""Operations that take ``wait: false`` and then run on as an operation with an id."""
