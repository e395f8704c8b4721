# SPDX-License-Identifier: Apache-2.0
"""Generated messages and stubs of the wire protocol, loaded on first use.

``from jumpstarter_protocol import jumpstarter_pb2, jumpstarter_pb2_grpc`` and so on for client, common, kubernetes,
router, telemetry and lab (what jumpstarter.lab adds).
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

_PACKAGES = {
    "client": "client.v1",
    "common": "v1",
    "jumpstarter": "v1",
    "kubernetes": "v1",
    "lab": "lab.v1",
    "router": "v1",
    "telemetry": "v1",
}
__all__ = [f"{name}_pb2{suffix}" for name in _PACKAGES for suffix in ("", "_grpc")]


def __getattr__(name: str) -> ModuleType:
    stem = name.removesuffix("_grpc").removesuffix("_pb2")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.jumpstarter.{_PACKAGES[stem]}.{name}")
