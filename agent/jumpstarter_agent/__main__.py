# SPDX-License-Identifier: Apache-2.0
"""``python -m jumpstarter_agent``: started by the plugins, once per Ansible run."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from .agent import Agent, Watched
from .errors import AgentError


def main(argv: list[str] | None = None) -> int:
    """Run the agent; exit status 1 with one line on stderr when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m jumpstarter_agent", description=__doc__)
    parser.add_argument("--dir", required=True, type=Path, help="private directory of this agent (made when missing)")
    parser.add_argument("--watch-pid", type=int, help="process whose end ends the agent")
    parser.add_argument("--watch-start", help="its start time (field 22 of /proc/PID/stat)")
    parser.add_argument("--detached", metavar="NAME", help="hold the detached lease NAME instead of watching a process")
    parser.add_argument("--ready-fd", type=int, help="descriptor that gets one byte once the agent serves")
    options = parser.parse_args(argv)
    if (options.watch_pid is None) == (options.detached is None):
        parser.error("give either --watch-pid with --watch-start or --detached")
    if (options.watch_pid is None) != (options.watch_start is None):
        parser.error("--watch-pid and --watch-start go together")
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    watched = Watched(options.watch_pid, options.watch_start) if options.watch_pid is not None else None
    agent: Agent | None = None
    try:
        agent = Agent(options.dir.absolute(), watched, options.detached)
        asyncio.run(agent.serve(options.ready_fd))
    except AgentError as error:
        print(f"jumpstarter_agent: {error.message}", file=sys.stderr, flush=True)
        return 1
    except OSError as error:
        print(f"jumpstarter_agent: {error.filename or options.dir}: {error.strerror}", file=sys.stderr, flush=True)
        return 1
    finally:
        if agent is not None:
            agent.has_ended()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
