# SPDX-License-Identifier: Apache-2.0
"""The command `jmp`."""

from __future__ import annotations

import sys

import click

from jumpstarter_cli.lazy import Entry, LazyGroup

__all__ = ["jmp", "main"]

#: Also the command line's table of contents: a test holds it against the commands.
COMMANDS = {
    "admin": Entry("jumpstarter_cli.admin:admin", "Administer a lab: clients, exporters, policies, the audit log."),
    "auth": Entry("jumpstarter_cli.auth:auth", "Look at, refresh or rotate your token."),
    "completion": Entry("jumpstarter_cli.completion:completion", "Print a completion script for a shell."),
    "config": Entry("jumpstarter_cli.config:config", "Manage client and exporter configurations."),
    "create": Entry("jumpstarter_cli.get:create", "Create a lease."),
    "delete": Entry("jumpstarter_cli.get:delete", "Give leases back."),
    "driver": Entry("jumpstarter_cli.driver:driver", "Show the drivers that are installed here."),
    "get": Entry("jumpstarter_cli.get:get", "Show the exporters and leases of a lab."),
    "login": Entry("jumpstarter_cli.login:login", "Log in to a lab."),
    "run": Entry("jumpstarter_cli.run:run", "Run an exporter."),
    "shell": Entry("jumpstarter_cli.shell:shell", "Open a shell, or run a command, with an exporter at hand."),
    "update": Entry("jumpstarter_cli.get:update", "Change a lease."),
    "version": Entry("jumpstarter_cli.version:version", "Show the version."),
}


@click.group(
    cls=LazyGroup,
    entries=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], case_sensitive=False),
    default=None,
    help="How much to log to stderr (default: INFO for run, else WARNING).",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json", "text"]),
    default="auto",
    help="Log format of run. auto: JSON unless stderr is a terminal.",
)
@click.pass_context
def jmp(ctx: click.Context, log_level: str | None, log_format: str) -> None:
    """Work with the devices of a lab."""
    ctx.obj = {"log_level": log_level.upper() if log_level else None, "log_format": log_format}
    if ctx.invoked_subcommand not in (None, "run"):
        from jumpstarter_cli.logs import setup

        setup(ctx.obj["log_level"] or "WARNING")


def main() -> None:
    """Entry point of `jmp`: always exits with the command's real exit code."""
    from jumpstarter_cli.errors import run

    sys.exit(run(jmp.main, prog_name="jmp"))


if __name__ == "__main__":
    main()
