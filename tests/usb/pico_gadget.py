# SPDX-License-Identifier: Apache-2.0
"""Fake: a Pico in its bootloader as a USB device of the test guest. Runs in the guest: argv is the volume's image.

The kernel's mass-storage gadget shows the image on an emulated USB host controller (dummy_hcd), so the exporter sees a
disk with FAT on a bus. When all blocks of a UF2 file have come in, the device leaves the bus, as a board that reboots
does: in the middle of whatever the file system still wants to write.
"""

import hashlib
import os
import struct
import sys
import time

IMAGE = sys.argv[1]
GADGET = f"/sys/kernel/config/usb_gadget/{os.path.basename(IMAGE)}"


def write(name: str, text: str) -> None:
    with open(f"{GADGET}/{name}", "w") as file:
        file.write(text)


def plug() -> None:
    for folder in ("", "/configs/c.1", "/functions/mass_storage.0", "/strings/0x409"):
        os.makedirs(GADGET + folder, exist_ok=True)
    write("idVendor", "0x2e8a")
    write("idProduct", "0x0003")
    write("strings/0x409/serialnumber", "E0C9125B0D9B")
    write("functions/mass_storage.0/lun.0/removable", "1")
    write("functions/mass_storage.0/lun.0/file", IMAGE)
    os.symlink(f"{GADGET}/functions/mass_storage.0", f"{GADGET}/configs/c.1/mass_storage.0")
    write("UDC", os.listdir("/sys/class/udc")[0])


def unplug() -> None:
    write("UDC", "\n")


def remove() -> None:
    os.unlink(f"{GADGET}/configs/c.1/mass_storage.0")
    for folder in ("/configs/c.1", "/functions/mass_storage.0", "/strings/0x409", ""):
        os.rmdir(GADGET + folder)


def program() -> bytes:
    """What has arrived, once all of it has."""
    with open(IMAGE, "rb") as file:
        data = file.read()
    blocks = {}
    total = 0
    for start in range(0, len(data), 512):
        head = struct.unpack_from("<8I", data, start)
        if head[:2] == (0x0A324655, 0x9E5D5157):
            blocks[head[5]] = data[start + 32 : start + 32 + head[4]]
            total = head[6]
    if not total or len(blocks) < total:
        return b""
    return b"".join(blocks[index] for index in range(total))


plug()
print("plugged", flush=True)
try:
    while not (taken := program()):
        time.sleep(0.02)
finally:
    unplug()
    remove()
print("took", hashlib.sha256(taken).hexdigest(), flush=True)
