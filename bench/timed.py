# SPDX-License-Identifier: Apache-2.0
"""``timed.py N COMMAND...``: run a command N times and report the median of its wall seconds."""

import json
import statistics
import subprocess
import sys
import time

count, *command = sys.argv[1:]
times = []
for _ in range(int(count)):
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    times.append(time.perf_counter() - started)
print("READY " + json.dumps({"median": statistics.median(times)}), flush=True)
