#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fake: probe-rs with a chip behind a probe, as a program. The chip is the folder $FAKE of the script's own directory.

Recorded from probe-rs' documentation and `--help`: its commands, the options it takes from PROBE_RS_* variables, how
`read` prints (words in hexadecimal, without 0x, separated by blanks), errors as "Error: ..." with causes on stderr and
exit status 1, and wrong arguments with status 2.

Files there: ``memory`` (64 KiB of RAM at 0x20000000), ``flash`` (256 KiB at 0x08000000), ``log`` (one JSON line per
run), ``fault`` (what shall go wrong: "no-probe", "no-chip", "bad-write", "hang", "garbage").
"""

import json
import os
import struct
import sys
import time
from pathlib import Path

HOME = Path(__file__).resolve().parent
RAM, FLASH = 0x20000000, 0x08000000


def fail(message: str, *causes: str, status: int = 1) -> None:
    sys.stderr.write(f"Error: {message}\n")
    if causes:
        sys.stderr.write("\nCaused by:\n" + "".join(f"    {n}: {cause}\n" for n, cause in enumerate(causes)))
    sys.exit(status)


def usage(message: str) -> None:
    sys.stderr.write(f"error: {message}\n\nUsage: probe-rs <COMMAND>\n\nFor more information, try '--help'.\n")
    sys.exit(2)


def fault() -> str:
    path = HOME / "fault"
    return path.read_text() if path.exists() else ""


def attach() -> None:
    """What each command that needs the chip does first."""
    if fault() == "hang":
        time.sleep(600)
    if fault() == "no-probe":
        fail("Could not open probe", "No debug probes were found.")
    if os.environ.get("PROBE_RS_PROBE", "1366:1015") != "1366:1015":
        fail("Could not open probe", "The selected probe was not found.")
    if os.environ.get("PROBE_RS_CHIP") != "STM32F401RE":
        fail("Failed to attach to chip", "No chip was given, and it could not be detected.")
    if fault() == "no-chip":
        fail(
            "Connecting to the chip was unsuccessful.",
            "An ARM specific error occurred.",
            "Target device did not respond.",
        )


def area(address: int) -> tuple[Path, int]:
    for base, name in ((RAM, "memory"), (FLASH, "flash")):
        if base <= address < base + (HOME / name).stat().st_size:
            return HOME / name, address - base
    fail("Failed to read memory", f"An error with the usage of the probe occurred: bus fault at {address:#010x}")
    raise AssertionError


def read(width: str, address: str, words: str) -> None:
    size = {"b8": 1, "b16": 2, "b32": 4, "b64": 8}.get(width)
    if size is None:
        usage(f"invalid value '{width}' for '<WIDTH>'")
    attach()
    if fault() == "garbage":
        print("WARN something else")
        return
    path, offset = area(int(address, 0))
    data = path.read_bytes()[offset : offset + size * int(words)]
    code = {1: "B", 2: "H", 4: "I", 8: "Q"}[size]
    print(" ".join(f"{value:0{2 * size}x}" for (value,) in struct.iter_unpack(f"<{code}", data)), end=" \n")


def download(args: list[str]) -> None:
    options: dict[str, str] = {}
    verify = False
    files = []
    while args:
        word = args.pop(0)
        if word == "--verify":
            verify = True
        elif word in ("--binary-format", "--base-address"):
            options[word] = args.pop(0)
        elif word.startswith("-"):
            usage(f"unexpected argument '{word}' found")
        else:
            files.append(word)
    data = Path(files[0]).read_bytes()
    kind = options.get("--binary-format", "elf")
    if kind == "elf" and not data.startswith(b"\x7fELF"):
        fail("Failed to load ELF data.", "Unknown file magic")
    address = int(options.get("--base-address", "0x08000000"), 0)
    attach()
    flash = bytearray((HOME / "flash").read_bytes())
    offset = address - FLASH
    flash[offset : offset + len(data)] = data if fault() != "bad-write" else b"\x55" + data[1:]
    (HOME / "flash").write_bytes(flash)
    if verify and flash[offset : offset + len(data)] != data:
        fail("Failed to flash the ELF file", "Flash content verification failed.")
    sys.stdout.write("     Finished in 0.05s\n")


def main(args: list[str]) -> None:
    with (HOME / "log").open("a") as log:
        seen = {key: value for key, value in os.environ.items() if key.startswith(("PROBE_RS_", "JMP_", "SECRET"))}
        log.write(json.dumps({"args": args, "env": seen}) + "\n")
    command, rest = args[0], args[1:]
    if command == "read":
        read(*rest)
    elif command == "download":
        download(rest)
    elif command == "erase":
        attach()
        (HOME / "flash").write_bytes(b"\xff" * (256 << 10))
    elif command == "reset":
        attach()
    elif command == "info":
        attach()
        print("Probing target via SWD\n\nARM Chip with debug port Default:\nDebug Port: DPv1, DP Designer: ARM Ltd")
    else:
        usage(f"unrecognized subcommand '{command}'")


main(sys.argv[1:])
