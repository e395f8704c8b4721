# SPDX-License-Identifier: Apache-2.0
"""The agent: one process per Ansible run that holds leases, exporter sessions, consoles and the recording.

Ansible's own processes fork and may not hold gRPC channels; they talk to the agent over a unix socket with length
prefixed JSON (`framing`). Importing this package imports nothing else: `proxy` has to start fast.
"""
