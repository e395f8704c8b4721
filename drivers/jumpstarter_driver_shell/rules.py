# SPDX-License-Identifier: Apache-2.0
"""Which variables a client may set for a command, and which of the exporter's own a command sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

__all__ = ["BLOCKED", "checked_arguments", "checked_environment"]

#: Names no client may set: they decide which program runs, or what a shell or an interpreter executes before it.
BLOCKED: Final = (
    "LD_*", "BASH_FUNC_*", "PATH", "PYTHON*", "BASH_ENV", "KUBECONFIG", "HOME",
    "ENV", "SHELLOPTS", "BASHOPTS", "PS4", "PROMPT_COMMAND", "IFS", "PERL5*", "RUBY*", "NODE_OPTIONS", "GCONV_PATH",
    "BASH_*", "ZDOTDIR", "CDPATH", "GLIBC_TUNABLES", "LUA_INIT*", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS", "AWK*PATH", "SSH_ASKPASS", "SUDO_ASKPASS", "LESSOPEN", "LESSCLOSE", "*PAGER", "EDITOR",
    "VISUAL", "GIT_*", "JMP_*", "JUMPSTARTER_*",
)  # fmt: skip


def checked_environment(variables: Any, allowed: Sequence[str] | None) -> dict[str, str]:
    """A client's variables. Raises ValueError, naming the variable but never its value.

    allowed: names (globs) that may be set; None for all but `BLOCKED`.
    """
    if variables is None:
        return {}
    if not isinstance(variables, Mapping):
        raise ValueError(f"the environment must be a mapping of names to texts, not {type(variables).__name__}")
    for name, value in variables.items():
        if not isinstance(name, str) or not name.isidentifier() or not name.isascii():
            raise ValueError(f"environment variable {name!r}: not a name (letters, digits and underscores)")
        if any(fnmatchcase(name, pattern) for pattern in BLOCKED):
            raise ValueError(f"environment variable {name}: may not be set by a client")
        if allowed is not None and not any(fnmatchcase(name, pattern) for pattern in allowed):
            raise ValueError(f"environment variable {name}: is not in allow_env ({', '.join(allowed) or 'none are'})")
        if not isinstance(value, str):
            raise ValueError(f"environment variable {name}: must be a text, not {type(value).__name__}")
        if "\0" in value:
            raise ValueError(f"environment variable {name}: holds a NUL byte")
    return dict(variables)


def checked_arguments(arguments: Sequence[Any]) -> list[str]:
    """A client's arguments. Raises ValueError for what no program can be given."""
    for number, value in enumerate(arguments, 1):
        if not isinstance(value, str):
            raise ValueError(f"argument {number} must be a text, not {type(value).__name__}")
        if "\0" in value:
            raise ValueError(f"argument {number} holds a NUL byte")
    return list(arguments)
