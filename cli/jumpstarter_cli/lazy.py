# SPDX-License-Identifier: Apache-2.0
"""Command groups that import a command only when it runs.

`jmp --help` and completion list commands from a table of texts; nothing behind a command is imported for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import click

__all__ = ["ALIASES", "Entry", "LazyGroup"]

#: Short forms, valid in every group that has the command.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "admin": ("a",),
    "client": ("clients", "c"),
    "config": ("conf",),
    "create": ("c",),
    "delete": ("del", "d", "rm"),
    "exporter": ("exporters", "e"),
    "get": ("g",),
    "exporters": ("exporter", "e"),
    "import": ("i",),
    "lease": ("leases", "l"),
    "leases": ("lease", "l"),
    "list": ("ls",),
    "policy": ("policies", "p"),
    "shell": ("sh", "s"),
    "token": ("tokens", "t"),
    "update": ("u",),
    "version": ("ver", "v"),
}


class Entry(NamedTuple):
    """Where a command is ("module:attribute") and its line in the help of the group."""

    target: str
    help: str


class LazyGroup(click.Group):
    """A group over a table of `Entry`. Commands may be named by an alias or by a unique beginning of the name."""

    def __init__(self, *args: Any, entries: Mapping[str, Entry], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = dict(entries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, sorted."""
        return sorted(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, alias or unique beginning."""
        name = self._find(ctx, cmd_name)
        return self._load(name) if name else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Like click, but help texts show the full name of the command."""
        _, command, rest = super().resolve_command(ctx, args)
        return (command.name if command else None), command, rest

    def _find(self, ctx: click.Context, name: str) -> str | None:
        if name in self.entries:
            return name
        found = [full for full in self.entries if name in ALIASES.get(full, ())]
        found = found or sorted(full for full in self.entries if full.startswith(name))
        if len(found) > 1:
            ctx.fail(f'"{name}" is ambiguous, too many matches: {", ".join(found)}')
        return found[0] if found else None

    def _load(self, name: str) -> click.Command:
        module, _, attribute = self.entries[name].target.partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.entries[name].help) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete command names from the table."""
        from click.shell_completion import CompletionItem

        items = [CompletionItem(n, help=e.help) for n, e in sorted(self.entries.items()) if n.startswith(incomplete)]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]
