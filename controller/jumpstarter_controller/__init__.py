# SPDX-License-Identifier: Apache-2.0
"""The controller: who may use which exporter, for how long, and the tunnel between the two."""
