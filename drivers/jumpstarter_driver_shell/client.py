# SPDX-License-Identifier: Apache-2.0
"""Client of `Shell`: each method of the configuration is a Python method and a command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from jumpstarter.client import DriverClient
from jumpstarter.common.exceptions import DriverError

if TYPE_CHECKING:
    import click

__all__ = ["ShellClient"]


@dataclass(kw_only=True)
class ShellClient(DriverClient):
    """``client.name("argument", VARIABLE="value")`` runs a method, shows its output and returns its exit status."""

    _names: list[str] | None = field(init=False, default=None, repr=False)

    def __getattr__(self, name: str) -> Callable[..., int]:
        # Only called for what the class does not have. Private names are looked up by copy, pickle and dataclasses.
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        known = self.get_methods()
        if name not in known:
            raise AttributeError(f'driver "{self.path}" has no method {name!r}; it has {", ".join(known) or "none"}')

        def execute(*args: str, **env: str) -> int:
            return self.call_method(name, *args, **env)

        execute.__name__ = name
        return execute

    def get_methods(self) -> list[str]:
        """Names of the methods."""
        if self._names is None:
            self._names = [str(name) for name in self.call("get_methods")]
        return self._names

    def call_method(self, name: str, /, *args: str, **env: str) -> int:
        """Run a method, also one whose name is no Python name; its output goes to stdout and stderr as it comes.

        Returns the exit status: negative for a signal, 199 when its time was over.
        """
        # Peers of 0.9 have no bytes: there, what is not UTF-8 comes as replacement characters.
        how = "call_method_raw" if self.has_method("call_method_raw") else "call_method"
        status: int | None = None
        for stdout, stderr, code in self.streamingcall(how, name, env, *args):
            _show(stdout, sys.stdout)
            _show(stderr, sys.stderr)
            if code is not None:
                status = int(code)
        if status is None:
            raise DriverError(f'method "{name}": its output ended, and no exit status came: it was broken off')
        return status

    def cli(self) -> click.Group:
        """One command for each method; its exit status is the command's."""
        import click

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        def shell() -> None:
            """Run commands on the exporter."""

        def add(name: str) -> None:
            @click.command(
                name,
                help=self.methods_description.get(name) or f"Run {name} on the exporter.",
                context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
            )
            @click.option("--env", "-e", "variables", multiple=True, metavar="KEY=VALUE", help="Set a variable for it.")
            @click.argument("args", nargs=-1, type=click.UNPROCESSED)
            def command(variables: tuple[str, ...], args: tuple[str, ...]) -> None:
                status = self.call_method(name, *args, **_variables(variables))
                if status:
                    # As a shell tells of a signal.
                    raise click.exceptions.Exit(status if status > 0 else 128 - status)

            shell.add_command(command)

        for name in self.get_methods():
            add(name)
        return shell


def _variables(pairs: tuple[str, ...]) -> dict[str, str]:
    import click

    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            # Without the text: it may be a value whose name was forgotten.
            raise click.BadParameter("is not KEY=VALUE", param_hint="'--env'")
        found[name] = value
    return found


def _show(data: str | bytes, stream: IO[str]) -> None:
    if not data:
        return
    if isinstance(data, str):
        stream.write(data)
    else:
        stream.flush()
        raw: Any = getattr(stream, "buffer", None)
        if raw is None:  # somebody's text stream: a test, a notebook
            stream.write(data.decode(errors="replace"))
        else:
            raw.write(data)
    stream.flush()
