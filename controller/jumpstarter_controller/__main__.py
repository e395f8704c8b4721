# SPDX-License-Identifier: Apache-2.0
"""`python -m jumpstarter_controller`."""

from jumpstarter_controller.main import main

main()
