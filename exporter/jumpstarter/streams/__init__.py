# SPDX-License-Identifier: Apache-2.0
"""Byte streams between clients, exporters and devices."""
