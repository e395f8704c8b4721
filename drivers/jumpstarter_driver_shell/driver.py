# SPDX-License-Identifier: Apache-2.0
"""Commands on the exporter, by name: for hardware that has a tool but no driver."""

from __future__ import annotations

import codecs
import os
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, export
from jumpstarter_driver_shell.rules import checked_arguments, checked_environment

if TYPE_CHECKING:
    from jumpstarter.common.process import Process

__all__ = ["TIMED_OUT", "Shell"]

TIMED_OUT: Final = 199
"""Exit status of a command whose time was over."""

_PIECE: Final = 1 << 17
"""Bytes in one item: what a terminal's control bytes grow to in JSON must stay below gRPC's limit."""
_KEPT: Final = 1 << 18
"""Bytes of each stream that `Shell.run_method` returns, for the same reason."""
_GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL."""
_FIELDS: Final = ("command", "description", "timeout")

Chunk = tuple[bytes, bytes, int | None]


@dataclass(kw_only=True)
class Shell(Driver):
    """Runs the commands of its configuration.

    methods: by name a command, or ``{command, description, timeout}``. Names that begin with ``_`` are left out of
    lists and menus. shell: program and options that get the command as next argument; then come the method's name
    (``$0``) and the client's arguments (``$1``...). timeout: seconds a method may run that has none of its own. cwd:
    where commands run.
    env: variables for all commands. pass_env: names (globs such as ``HTTP_*``) of the exporter's variables that
    commands see besides those in `jumpstarter.common.commands.BASE_ENVIRONMENT`. allow_env: names (globs) that clients
    may set; by default all but `jumpstarter_driver_shell.rules.BLOCKED`.
    """

    driver_type: ClassVar[str] = "shell"

    methods: dict[str, str | dict[str, str | int | float]]
    shell: list[str] = field(default_factory=lambda: ["bash", "-c"])
    timeout: float = 300
    cwd: str | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)
    pass_env: list[str] = field(default_factory=list)
    allow_env: list[str] | None = None
    _running: set[Process] = field(init=False, default_factory=set, repr=False)
    _methods: dict[str, tuple[str, float]] = field(init=False, default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shell or not all(self.shell):
            raise ConfigurationError("shell: at least a program is required, such as [bash, -c]")
        default = _seconds("timeout", self.timeout)
        for name, method in self.methods.items():
            self._methods[name] = _parse(name, method, default)
            if isinstance(method, Mapping) and method.get("description"):
                self.methods_description.setdefault(name, str(method["description"]))

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_shell.client.ShellClient"

    @export(readonly=True)
    def get_methods(self) -> list[str]:
        """Names of the methods, without those that begin with an underscore."""
        return [name for name in self._methods if not name.startswith("_")]

    @export
    async def call_method(self, method: str, env: Any = None, *args: Any) -> AsyncGenerator[Any, None]:
        """Run a method: yields ``(stdout, stderr, None)`` as it comes, and at the end the rest with the exit status.

        The status is negative for a signal, 199 when the time was over. What is not UTF-8 arrives as U+FFFD; see
        `call_method_raw`.
        """
        decode = [codecs.getincrementaldecoder("utf-8")(errors="replace").decode for _ in range(2)]
        async with aclosing(self._run(method, env, args)) as items:
            async for stdout, stderr, code in items:
                yield decode[0](stdout, code is not None), decode[1](stderr, code is not None), code

    @export
    async def call_method_raw(self, method: str, env: Any = None, *args: Any) -> AsyncGenerator[Any, None]:
        """`call_method` with every byte as it was: pieces are text where they are UTF-8, and bytes where not."""
        texts = (_Text(), _Text())
        async with aclosing(self._run(method, env, args)) as items:
            async for stdout, stderr, code in items:
                final = code is not None
                yield texts[0].feed(stdout, final), texts[1].feed(stderr, final), code

    @export(concurrent=True)
    async def run_method(self, method: str, args: list[Any] | None = None, env: Any = None) -> dict[str, Any]:
        """Run a method to its end: ``{rc, stdout, stderr, truncated}``; of much output only the end is kept."""
        kept = (bytearray(), bytearray())
        code, truncated = 0, False
        async with aclosing(self._run(method, env, args or ())) as items:
            async for *streams, ended in items:
                for buffer, data in zip(kept, streams, strict=True):
                    buffer += data
                    truncated |= len(buffer) > _KEPT
                    del buffer[:-_KEPT]
                code = code if ended is None else ended
        stdout, stderr = (buffer.decode(errors="replace") for buffer in kept)
        return {"rc": code, "stdout": stdout, "stderr": stderr, "truncated": truncated}

    def close(self) -> None:
        """End of the session: what still runs ends with it."""
        running = tuple(self._running)
        for process in running:  # all at once: what ignores SIGTERM costs one second, not one each
            process.kill_rest = True
            process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 1
        for process in running:
            process.stop(max(0.0, end - time.monotonic()))
        super().close()

    async def _run(self, method: str, env: Any, args: Any) -> AsyncGenerator[Chunk, None]:
        from jumpstarter.common.commands import base_environment, stream_command

        if method not in self._methods:
            raise ValueError(f'no method "{method}"; there are {", ".join(self.get_methods()) or "none"}')
        command, timeout = self._methods[method]
        arguments = checked_arguments(args)
        variables = checked_environment(env, self.allow_env)
        if self.cwd is not None and not os.path.isdir(self.cwd):
            raise ValueError(f'method "{method}": field cwd: {self.cwd} is not a directory on the exporter host')
        # Names only: values may be anybody's secrets.
        self.logger.info("method %s: %d arguments, variables %s", method, len(arguments), ", ".join(variables) or "-")
        items = stream_command(
            [*self.shell, command, method, *arguments],
            env={**base_environment(self.pass_env), **self.env, **variables},
            name=method,
            cwd=self.cwd,
            timeout=timeout,
            grace=_GRACE,
            running=self._running,
            kill_rest=False,  # `start-server &` is a method like any other
        )
        async with aclosing(items):
            try:
                async for stdout, stderr, code in items:
                    for piece in _pieces(stdout, stderr, code):
                        yield piece
            except TimeoutError as error:
                self.logger.warning("method %s: %s", method, error)
                yield b"", f"\nmethod {method}: timeout, ended after {timeout:g} s\n".encode(), TIMED_OUT


class _Text:
    """Turns bytes into text where they are UTF-8. A character that is cut at the end of a piece waits for the next."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, final: bool) -> str | bytes:
        """What to send for these bytes."""
        data, self._rest = self._rest + data, b""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if final or error.end != len(data) or error.reason != "unexpected end of data":
                return data
            data, self._rest = data[: error.start], data[error.start :]
            return data.decode()


def _pieces(stdout: bytes, stderr: bytes, code: int | None) -> list[Chunk]:
    """One item as several of which none is too large; the exit status comes with the last."""
    count = max(1, -(-len(stdout) // _PIECE), -(-len(stderr) // _PIECE))
    return [
        (
            stdout[n * _PIECE : (n + 1) * _PIECE],
            stderr[n * _PIECE : (n + 1) * _PIECE],
            code if n == count - 1 else None,
        )
        for n in range(count)
    ]


def _parse(name: Any, method: Any, timeout: float) -> tuple[str, float]:
    """Command and timeout of a method of the configuration."""
    where = f"methods.{name}"
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{where}: a method's name must be a text that is not empty")
    if isinstance(method, str):
        method = {"command": method}
    if not isinstance(method, Mapping):
        raise ConfigurationError(f"{where}: must be a command, or a mapping of {', '.join(_FIELDS)}")
    if unknown := sorted(set(method) - set(_FIELDS)):
        raise ConfigurationError(f"{where}.{unknown[0]}: unknown; a method has {', '.join(_FIELDS)}")
    command = method.get("command")
    if not isinstance(command, str) or not command.strip():
        raise ConfigurationError(f"{where}.command: is required, and must be a text that is not empty")
    if "\0" in command:
        raise ConfigurationError(f"{where}.command: holds a NUL byte")
    return command, _seconds(f"{where}.timeout", method.get("timeout", timeout))


def _seconds(where: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not 0 < seconds < 1e9:
        raise ConfigurationError(f"{where}: must be a number of seconds above 0, not {value!r}")
    return seconds
