# SPDX-License-Identifier: Apache-2.0
"""Leases: their times, their conditions, and who gets which exporter."""
