# SPDX-License-Identifier: Apache-2.0
"""Protects: the console over a real exporter, with its positions (ours) and over the one raw stream of a 0.9 peer."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
from pathlib import Path

import pytest

from jumpstarter.client.aio import AsyncNode, connect
from jumpstarter.common.enums import ExporterStatus
from jumpstarter.exporter.server import UnixListener, serve_session
from jumpstarter.exporter.session import Session
from jumpstarter_agent.console import ConsoleSession, ConsoleSettings, NodeConsole
from jumpstarter_driver_pyserial.driver import PySerial


def _shell(home: Path) -> tuple[int, int]:
    """A shell on a terminal: its pid and our end of the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(home)
        os.execvpe("busybox", ["busybox", "ash", "-i"], {"PATH": os.environ["PATH"], "PS1": "# ", "TERM": "vt100"})
    return pid, terminal


@pytest.mark.parametrize("peer", ["ours", "0.9"])
def test_commands_and_files_through_an_exporter(tmp_path: Path, peer: str) -> None:
    async def scenario() -> None:
        pid, shell = _shell(tmp_path)
        serial = tmp_path / "serial.sock"
        try:
            driver = PySerial(url=f"unix-listen://{serial}")
            with Session(root_device=driver, name="bench") as session:
                async with serve_session(session, UnixListener(str(tmp_path / "s"))) as (path,):
                    session.update_status(ExporterStatus.LEASE_READY)
                    async with connect(path) as remote:
                        node: AsyncNode = remote.node("")
                        if peer == "0.9":
                            node.methods = None
                        await driver.ensure_open()
                        reader, writer = await asyncio.open_unix_connection(str(serial))
                        relay = asyncio.create_task(_relay(shell, reader, writer))
                        console = ConsoleSession(
                            NodeConsole(node, owner="test"), name="bench", settings=ConsoleSettings(quiet_kernel=False)
                        )
                        async with console:
                            content = bytes(range(256)) * 200
                            result = await console.exec("cat; exit 3", in_data=content)
                            assert (result.rc, result.stdout == content) == (3, True)
                            await console.put(content, str(tmp_path / "file"))
                            await console.fetch(str(tmp_path / "file"), tmp_path / "back")
                            assert (tmp_path / "back").read_bytes() == content
                            assert console.lost_bytes == 0
                        relay.cancel()
                        await asyncio.gather(relay, return_exceptions=True)
                        writer.close()
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(shell)

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def _relay(shell: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    loop.add_reader(shell, lambda: writer.write(os.read(shell, 65536)))
    try:
        while data := await reader.read(1024):
            await asyncio.to_thread(os.write, shell, data)
    finally:
        loop.remove_reader(shell)
