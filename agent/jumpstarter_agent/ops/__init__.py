# SPDX-License-Identifier: Apache-2.0
"""The operations of the agent, one module per noun. `OPERATIONS` maps the ``op`` of a request to its function."""

from __future__ import annotations

from ..context import OperationFunction
from . import agent_ops, call, console, files, flash, forward, lease, operation, power, recording, storage, stream

__all__ = ["BACKGROUND", "OPERATIONS"]

OPERATIONS: dict[str, OperationFunction] = {
    "boot": console.boot,
    "call": call.call,
    "console": console.console,
    "console_attach": console.attach,
    "console_exec": console.exec_command,
    "console_fetch": console.fetch,
    "console_put": console.put,
    "console_reset": console.reset,
    "copy_from": files.copy_from,
    "copy_to": files.copy_to,
    "flash": flash.flash,
    "forward": forward.forward,
    "lease": lease.lease,
    "lease_info": lease.lease_info,
    "operation": operation.operation,
    "ping": agent_ops.ping,
    "power": power.power,
    "recording": recording.recording,
    "shutdown": agent_ops.shutdown,
    "storage": storage.storage,
    "stream": stream.stream,
    "uboot": console.uboot,
}

BACKGROUND = frozenset({"boot", "call", "copy_from", "copy_to", "flash", "storage"})
"""Operations that take ``wait: false`` and then run on as an operation with an id."""
