# SPDX-License-Identifier: Apache-2.0
"""The groups of commands of `jumpstarter-controller`."""
