# SPDX-License-Identifier: Apache-2.0
"""What administrators do to the state, by the admin service or by commands on the controller's host."""
