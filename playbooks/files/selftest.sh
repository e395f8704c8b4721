#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
# Runs on the device, sent there by the play: says what it is in lines of key=value and fails when something is wrong.
set -eu
echo "kernel=$(uname -r)"
echo "machine=$(uname -m)"
echo "uptime=$(cut -d ' ' -f 1 /proc/uptime)"
# stderr is kept apart from stdout, even over a serial line.
echo "selftest done" >&2
