# SPDX-License-Identifier: Apache-2.0
"""Run a command and turn how it ends into an exit code and, for failures, one red line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

__all__ = ["EXIT_CANCELLED", "EXIT_FAILURE", "exit_code_of", "report", "run"]

EXIT_FAILURE = 1
EXIT_CANCELLED = 2

logger = logging.getLogger(__name__)


def exit_code_of(result: object) -> int:
    """The exit code of a command that returned `result`: a whole number is one, anything else (True too) is success."""
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def report(message: str) -> None:
    """Write one red line to stderr (plain when stderr is no terminal)."""
    click.echo(click.style(f"Error: {' '.join(message.split())}", fg="red"), err=True)


def run(command: Callable[..., Any], args: Sequence[str] | None = None, **options: Any) -> int:
    """Run a click command to its end and return the exit code.

    0 success, the command's own code, 1 for errors, 2 for wrong usage and for a cancelled command.
    """
    try:
        code = exit_code_of(command(args=args, standalone_mode=False, **options))
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_CANCELLED
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        report(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Cancelled.", err=True)
        return EXIT_CANCELLED
    except BrokenPipeError:
        # The reader of our output left (`jmp ... | head`). Nothing to say, and nowhere to say it.
        _forget_stdout()
        return EXIT_FAILURE
    except SystemExit as ended:
        # click ends the program itself when it sees a reader leave (EPIPE), whatever it was asked for. It has put a
        # wrapper around the streams that only hides the same error later.
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        _forget_stdout()
        return exit_code_of(ended.code) or EXIT_FAILURE
    except BaseExceptionGroup as group:
        report(explain(_first(group)))
    except Exception as error:  # noqa: BLE001 - the last place: whatever it is becomes one line
        report(explain(error))
    return EXIT_FAILURE


def explain(error: BaseException) -> str:
    """One line for any exception."""
    from jumpstarter.common.exceptions import JumpstarterException

    if isinstance(error, JumpstarterException):
        return str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if isinstance(error, ImportError):
        from jumpstarter.common.extras import install_command_for

        command = "" if "pip install" in str(error) else install_command_for(error)
        return f"{error}; {command}" if command else str(error) or type(error).__name__
    if isinstance(error, (ValueError, TimeoutError, OSError)):
        return str(error) or type(error).__name__
    logger.debug("unexpected error", exc_info=error)
    return f"unexpected {type(error).__name__}: {error} (--log-level DEBUG shows where)"


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _forget_stdout() -> None:
    import os

    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
