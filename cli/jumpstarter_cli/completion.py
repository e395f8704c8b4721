# SPDX-License-Identifier: Apache-2.0
"""`jmp completion`."""

from __future__ import annotations

import click

__all__ = ["completion"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for a shell.

    For example: source <(jmp completion bash)
    """
    from click.shell_completion import get_completion_class

    from jumpstarter_cli.jmp import jmp

    found = get_completion_class(shell)
    assert found is not None  # click brings all three
    click.echo(found(jmp, {}, "jmp", "_JMP_COMPLETE").source())
