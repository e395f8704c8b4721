# SPDX-License-Identifier: Apache-2.0
"""Conveniences for scripts and tests."""
