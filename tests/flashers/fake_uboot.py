# SPDX-License-Identifier: Apache-2.0
"""Fake: U-Boot's prompt on a terminal, for what the real one in QEMU takes too long for.

Knows dhcp, setenv, printenv and tftpboot (a file of the folder given as argument); ``booti`` becomes a BusyBox shell.
"""

from __future__ import annotations

import os
import shlex
import sys
import termios
import tty
from pathlib import Path


def say(text: str) -> None:
    os.write(1, text.replace("\n", "\r\n").encode())


def run(words: list[str], env: dict[str, str], folder: Path) -> int:
    """One command; its exit status."""
    name, *rest = words
    if name == "echo":
        say(" ".join(rest).replace("$?", env["?"]) + "\n")
    elif name == "setenv":
        if len(rest) > 1:
            env[rest[0]] = " ".join(rest[1:])
        else:
            env.pop(rest[0], None)
    elif name == "printenv":
        if rest[0] not in env:
            say(f'## Error: "{rest[0]}" not defined\n')
            return 1
        say(f"{rest[0]}={env[rest[0]]}\n")
    elif name == "dhcp":
        env["ipaddr"] = env["gatewayip"] = "192.0.2.1"
        say("DHCP client bound to address 192.0.2.1 (1 ms)\n")
    elif name == "tftpboot":
        path = folder / rest[1]
        if not path.is_file():
            say("TFTP error: 'file not found' (1)\n")
            return 1
        say(f"Bytes transferred = {path.stat().st_size} (0 hex)\n")
    elif name == "booti":
        say("\nStarting kernel ...\n\n")
        termios.tcsetattr(0, termios.TCSANOW, saved)
        os.execv("/bin/busybox", ["sh", "-i"])
    else:
        say(f"Unknown command '{name}'\n")
        return 1
    return 0


saved = termios.tcgetattr(0)
tty.setraw(0)
say("\nU-Boot 2023.01 (Fake)\n\n=> ")
env: dict[str, str] = {"?": "0"}
line = ""
while data := os.read(0, 1024):
    for char in data.decode():
        if char == "\x03":
            line = ""
            say("<INTERRUPT>\n=> ")
        elif char in "\r\n":
            say("\n")
            for command in line.split(";"):
                if words := shlex.split(command):
                    env["?"] = str(run(words, env, Path(sys.argv[1])))
            line = ""
            say("=> ")
        else:
            line += char
            say(char)
