# SPDX-License-Identifier: Apache-2.0
"""What the controller remembers, in a database."""
