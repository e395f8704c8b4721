# SPDX-License-Identifier: Apache-2.0
"""What ssh would make of a command line: its options, and where the command begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["option_set", "split_arguments"]

#: Options of ssh(1) that take an argument, of OpenSSH 9; all other letters are flags.
_WITH_ARGUMENT: Final = {
    "ssh": frozenset("BbcDEeFIiJLlmOopPQRSWw"),
    "scp": frozenset("cDFiJloPSX"),
    "sftp": frozenset("BbcDFiJloPRSsX"),
}


def split_arguments(args: Sequence[str], tool: str = "ssh") -> tuple[list[str], list[str]]:
    """Options of ssh (scp, sftp) and the rest, by the rules of getopt(3): flags may be joined ("-tt", "-vp22"), "--"
    ends the options, and so does the first word that is none. For ssh the rest is the remote command.

    Raises ValueError for an option without its argument.
    """
    known = _WITH_ARGUMENT[tool]
    options: list[str] = []
    rest = list(args)
    while rest and rest[0].startswith("-") and len(rest[0]) > 1:
        word = rest.pop(0)
        if word == "--":
            break
        options.append(word)
        letter = next((index for index, char in enumerate(word) if index and char in known), None)
        if letter is not None and letter == len(word) - 1:
            if not rest:
                raise ValueError(f"{tool} option {word} needs an argument")
            options.append(rest.pop(0))
    return options, rest


def option_set(options: Sequence[str], letter: str, keyword: str, tool: str = "ssh") -> bool:
    """Whether the options (as `split_arguments` gives them) set ``-letter`` or ``-o keyword=...``."""
    words = iter(options)
    for word in words:
        for index, char in enumerate(word[1:], 1):
            if char not in _WITH_ARGUMENT[tool]:
                continue
            value = word[index + 1 :] or next(words, "")
            if letter and char == letter:
                return True
            if (
                char == "o"
                and value.replace("=", " ").split(None, 1)[:1]
                and (value.replace("=", " ").split(None, 1)[0].lower() == keyword.lower())
            ):
                return True
            break
    return False
