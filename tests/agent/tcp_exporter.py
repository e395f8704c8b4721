# SPDX-License-Identifier: Apache-2.0
"""An exporter on a TCP port, for tests of direct reach: ``python tcp_exporter.py '{"config": ..., "ca": ...}'``.

Prints its address, serves until its stdin is closed. Runs in a process of its own so that it can be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from jumpstarter.common.enums import ExporterStatus
from jumpstarter.config.exporter import ExporterConfigV1Alpha1
from jumpstarter.exporter.server import TcpListener, serve_session
from jumpstarter.exporter.session import Session


async def main() -> None:
    options = json.loads(sys.argv[1])
    files = {name: Path(options[name]).read_bytes() for name in ("certificate", "key", "client_ca") if name in options}
    listener = TcpListener(insecure=not files, passphrase=options.get("passphrase"), **files)
    config = ExporterConfigV1Alpha1.load_path(options["config"])
    with Session(root_device=config.instantiate(), name=config.name) as session:
        async with serve_session(session, listener) as addresses:
            session.update_status(ExporterStatus.LEASE_READY)
            print(addresses[0], flush=True)
            await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
