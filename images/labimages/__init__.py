# SPDX-License-Identifier: Apache-2.0
"""Parts the demo image builders are made of; standard library only, so that they run before any venv exists."""
