# SPDX-License-Identifier: Apache-2.0
"""The user's documents are promises: every example in them runs against our packages as it is written."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).resolve().parent


def _python_of_api_reference() -> str:
    text = (HERE / "api-reference.txt").read_text()
    return text[text.index("from anyio import connect_tcp") : text.rindex("\nhello")]


def _python_of_drivers_md() -> str:
    match = re.search(r"```\{testcode\}\n(.*?)```", (HERE / "drivers.md").read_text(), re.DOTALL)
    assert match
    return match[1]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _run(folder: Path, source: str) -> str:
    (folder / "example.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_example_of_the_api_reference_prints_what_the_document_shows(tmp_path: Path) -> None:
    assert _run(tmp_path, _python_of_api_reference()).splitlines()[-1] == "hello"


def test_example_of_the_drivers_document_passes_its_own_assertions(tmp_path: Path) -> None:
    _run(tmp_path, _python_of_drivers_md())


def test_example_of_the_driver_classes_document_prints_what_the_document_shows(tmp_path: Path) -> None:
    # That document lost its indentation; its lines are those of drivers.md, with a print at the end.
    flat = (HERE / "driver-classes.txt").read_text()
    flat = flat[flat.index("from sys import modules") : flat.rindex("Response for test")]
    indented = _python_of_drivers_md().replace(
        'assert client.query("test") == "Response for test"', 'print(client.query("test"))'
    )
    assert _lines(flat) == _lines(indented)
    assert _run(tmp_path, indented) == "Response for test\n"


def test_stream_of_the_example_reaches_a_server(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(peer.recv(100).upper())

        thread = threading.Thread(target=answer)
        thread.start()
        source = (
            _python_of_drivers_md()
            .replace('"example.com"', '"127.0.0.1"')
            .replace("remote_port=80", f"remote_port={server.getsockname()[1]}")
        )
        tail = """
    with client.stream("create_stream") as stream:
        stream.send(b"ping")
        assert stream.receive() == b"PING"
"""
        _run(tmp_path, source.rstrip() + tail)
        thread.join(10)


def test_example_of_the_adapters_document_forwards_a_port(capsys: pytest.CaptureFixture[str]) -> None:
    # The document lost its indentation too: the same lines stand indented beside it.
    source = (HERE / "adapters_example.txt").read_text()
    flat = (HERE / "adapters.txt").read_text()
    flat = flat[flat.index("from contextlib import contextmanager") : flat.index("Advanced Usage")]
    assert _lines(flat) == _lines(source)

    class Client:
        connected = threading.Event()

        def connect(self) -> object:
            self.connected.set()
            return object()

    client = Client()
    names: dict[str, object] = {"client": client}
    exec(compile(source.replace("local_port=8080", "local_port=0"), "adapters.txt", "exec"), names)
    names["example_usage"]()  # type: ignore[operator]
    assert "Service available at 127.0.0.1:" in capsys.readouterr().out
    with names["TcpPortforwardAdapter"](client) as address, socket.create_connection(address):  # type: ignore[operator]
        assert client.connected.wait(10)


def test_exporter_configuration_of_the_drivers_document_is_understood() -> None:
    from jumpstarter.common.importlib import import_class
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1
    from jumpstarter.driver import Driver

    match = re.search(r"```yaml\n(.*?)```", (HERE / "drivers.md").read_text(), re.DOTALL)
    assert match
    config = ExporterConfigV1Alpha1.model_validate(yaml.safe_load(match[1]))
    assert config.metadata.name == "demo"
    qemu = config.export["qemu"]
    assert qemu.type is not None
    driver = import_class(qemu.type, unsafe=True, base=Driver)(**qemu.config)
    try:
        assert driver.mem == "1G"
        assert driver.smp == 2
    finally:
        driver.close()
    serial = config.export["serial"]
    assert serial.type is not None
    assert import_class(serial.type, unsafe=True, base=Driver)


@pytest.mark.parametrize("name", ["adapters.txt", "api-reference.txt", "driver-classes.txt", "drivers.md"])
def test_copies_of_the_documents_are_current(name: str) -> None:
    original = HERE.parents[2] / "shared" / "seeds" / name
    if original.exists():
        assert original.read_text() == (HERE / name).read_text()
