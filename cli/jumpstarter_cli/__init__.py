# SPDX-License-Identifier: Apache-2.0
"""The commands `jmp` and `j`."""

import os

# Before anything imports gRPC: its own chatter about handshakes is not for the user, our error lines say it.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GLOG_minloglevel", "2")
