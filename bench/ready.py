# SPDX-License-Identifier: Apache-2.0
"""``ready.py PORT COMMAND...``: run a command as a worker that is ready once it accepts connections on PORT."""

import socket
import subprocess
import sys
import time

port, *command = sys.argv[1:]
with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
    while child.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.01)
            continue
        print("READY {}", flush=True)
        sys.stdin.read()
        break
    child.terminate()
