# SPDX-License-Identifier: Apache-2.0
"""Espressif's esptool as it is, with a pyserial that waits 5 ms where it waits 50 ms for an RFC 2217 server's answer.

Run as ``python -P -m esptool ...`` is: the arguments up to "esptool" are skipped.
"""

import runpy
import sys
import time
import types

import serial.rfc2217

serial.rfc2217.time = types.SimpleNamespace(time=time.time, sleep=lambda seconds: time.sleep(min(seconds, 0.005)))
sys.argv[1:] = sys.argv[sys.argv.index("esptool") + 1 :]
runpy.run_module("esptool", run_name="__main__", alter_sys=True)
