# SPDX-License-Identifier: Apache-2.0
"""Names of the environment variables, in one place. Standard library only."""

from __future__ import annotations

# What a shell, a hook or a lease hands to the programs in it.
JUMPSTARTER_HOST = "JUMPSTARTER_HOST"  # unix socket path or host:port of the exporter session
JMP_EXPORTER = "JMP_EXPORTER"  # name of the exporter behind JUMPSTARTER_HOST
JMP_EXPORTER_LABELS = "JMP_EXPORTER_LABELS"  # k=v,k=v
JMP_LEASE = "JMP_LEASE"  # name of an existing lease
JMP_J_SOCKET = "JMP_J_SOCKET"  # socket of the warm process that runs `j` commands (ours; optional)

# How to reach and whom to trust.
JMP_GRPC_INSECURE = "JMP_GRPC_INSECURE"  # "1": the endpoint speaks plain text
JUMPSTARTER_GRPC_INSECURE = "JUMPSTARTER_GRPC_INSECURE"  # older name of the same
JMP_GRPC_PASSPHRASE = "JMP_GRPC_PASSPHRASE"  # shared secret of a standalone exporter
JMP_GRPC_PASSPHRASE_FILE = "JMP_GRPC_PASSPHRASE_FILE"  # file with that secret (ours)
JMP_GRPC_TLS_CA = "JMP_GRPC_TLS_CA"  # PEM file with the CA of the endpoint (ours)
JMP_GRPC_TLS_CERT = "JMP_GRPC_TLS_CERT"  # PEM file with the client certificate (ours)
JMP_GRPC_TLS_KEY = "JMP_GRPC_TLS_KEY"  # PEM file with its key (ours)
JMP_DRIVERS_ALLOW = "JMP_DRIVERS_ALLOW"  # csv of globs, or "UNSAFE"
JMP_DRIVERS_UNSAFE = "JMP_DRIVERS_UNSAFE"  # "1" or "true": no allow list
JMP_SUPPRESS_DRIVER_WARNINGS = "_JMP_SUPPRESS_DRIVER_WARNINGS"  # "1": no warning for a missing client class

# A whole client identity from the environment.
JMP_NAMESPACE = "JMP_NAMESPACE"
JMP_NAME = "JMP_NAME"
JMP_ENDPOINT = "JMP_ENDPOINT"
JMP_TOKEN = "JMP_TOKEN"
JMP_REFRESH_TOKEN = "JMP_REFRESH_TOKEN"

# Which file to read.
JMP_CLIENT_CONFIG_HOME = "JMP_CLIENT_CONFIG_HOME"  # base directory instead of $XDG_CONFIG_HOME/jumpstarter
JMP_CLIENT_CONFIG = "JMP_CLIENT_CONFIG"  # path of a client configuration
JMP_CLIENT = "JMP_CLIENT"  # alias of a client configuration

# Hooks.
JMP_MOTD_FILE = "JMP_MOTD_FILE"
LEASE_NAME = "LEASE_NAME"
CLIENT_NAME = "CLIENT_NAME"

_TRUE = frozenset({"1", "true", "yes", "on"})


def is_true(value: str | None) -> bool:
    """True for 1, true, yes, on (any case); False for everything else, None included."""
    return value is not None and value.strip().lower() in _TRUE
