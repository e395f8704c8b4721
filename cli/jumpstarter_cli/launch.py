# SPDX-License-Identifier: Apache-2.0
"""Run the user's shell or command and report its real exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

__all__ = ["launch", "shell_command"]

_NOT_FOUND = 127
_NOT_EXECUTABLE = 126


def launch(
    command: Sequence[str],
    environ: Mapping[str, str],
    context: str,
    motd: str = "",
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> int:
    """Run `command`, or an interactive shell without one, and return its exit code.

    context: shown in the prompt. motd: printed before an interactive shell. started: called with the process. 127: no
    such command, 126: it cannot be run, 128 + N: signal N ended it.
    """
    variables = dict(environ)
    variables["PATH"] = _path_with_j(variables.get("PATH", os.defpath))
    if not command:
        if motd:
            click.echo(motd)
        command, extra = shell_command(variables.get("SHELL") or "bash", context, _use_profiles())
        variables.update(extra)
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def forward(number: int, _: object) -> None:
        if process is not None:
            process.send_signal(number)
        else:
            early.append(number)  # the command runs already, or is about to, and we do not know it yet

    with _signals(forward):
        try:
            process = subprocess.Popen(list(command), env=variables)
        except FileNotFoundError:
            click.echo(f"{command[0]}: command not found", err=True)
            return _NOT_FOUND
        except OSError as error:
            click.echo(f"{command[0]}: {error.strerror or error}", err=True)
            return _NOT_EXECUTABLE
        for number in early:
            process.send_signal(number)
        if started is not None:
            started(process)
        code = process.wait()
    return code if code >= 0 else 128 - code


def shell_command(shell: str, context: str, use_profiles: bool) -> tuple[list[str], dict[str, str]]:
    """The command line of an interactive `shell` and the variables for its prompt."""
    name = Path(shell).name
    if name.endswith("bash"):
        prompt = rf"\[\e[90m\]\W \[\e[93m\]⚡\[\e[97m\]{context} \[\e[93m\]➤\[\e[0m\] "
        return [shell] if use_profiles else [shell, "--norc", "--noprofile"], {"PS1": prompt}
    if name.endswith("zsh"):
        options = [] if use_profiles else ["--no-rcs"]
        history = ["-o", "inc_append_history", "-o", "share_history"]
        return [shell, *options, *history], {"PS1": f"%F{{8}}%1~ %F{{yellow}}⚡%F{{white}}{context} %F{{yellow}}➤%f "}
    if name == "fish":
        prompt = (
            "function fish_prompt; set_color grey; printf '%s ' (basename $PWD); set_color yellow; printf '⚡'; "
            f"set_color white; printf '%s ' '{context}'; set_color yellow; printf '➤ '; set_color normal; end"
        )
        return [shell, "--init-command", prompt], {}
    return [shell], {"PS1": f"⚡{context} ➤ "}


def _use_profiles() -> bool:
    from jumpstarter.config.user import UserConfigV1Alpha1

    current = UserConfigV1Alpha1.current()
    return current is not None and current.shell.use_profiles


def _path_with_j(path: str) -> str:
    """`path`, and at its end this installation's folder if it has no `j` (jmp may be called by its full path)."""
    here = str(Path(sys.executable).parent)
    if shutil.which("j", path=path) is None and os.access(os.path.join(here, "j"), os.X_OK):
        return os.pathsep.join([path, here]) if path else here
    return path


@contextmanager
def _signals(forward: object) -> Iterator[None]:
    """While the command runs: keys like Ctrl-C are its business (the terminal sends them to it as well), a signal sent
    to us is passed on. Handlers, not SIG_IGN: that would be inherited by the command."""

    def nothing(_: int, __: object) -> None:
        return None

    handlers = {
        signal.SIGINT: nothing,
        signal.SIGQUIT: nothing,
        signal.SIGTERM: forward,
        signal.SIGHUP: forward,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
