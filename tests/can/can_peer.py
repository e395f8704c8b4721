# SPDX-License-Identifier: Apache-2.0
"""The other end of a CAN bus in a process of its own: python-can on udp_multicast, without anything of ours.

Run as ``python can_peer.py GROUP PORT``; answers each frame with id 0x700 by one with id 0x708 and the data reversed,
and each 0x600 (data: big endian count) by that many frames 0x601 with a running number. Says "ready" on stdout.
"""

from __future__ import annotations

import struct
import sys

import can


def main() -> None:
    group, port = sys.argv[1], int(sys.argv[2])
    # hop_limit 0: the group is this machine's only.
    with can.Bus(interface="udp_multicast", channel=group, port=port, hop_limit=0) as bus:
        print("ready", flush=True)
        while True:
            msg = bus.recv(60)
            if msg is None:
                return
            if msg.arbitration_id == 0x700:
                bus.send(can.Message(arbitration_id=0x708, data=bytes(msg.data)[::-1], is_extended_id=False))
            elif msg.arbitration_id == 0x600:
                for number in range(int.from_bytes(msg.data, "big")):
                    bus.send(can.Message(arbitration_id=0x601, data=struct.pack(">I", number), is_extended_id=False))
            elif msg.arbitration_id == 0x7FF:
                return


if __name__ == "__main__":
    main()
