# SPDX-License-Identifier: Apache-2.0
"""Images from a registry: onto a machine's disk by the exporter, and by U-Boot through a network flasher."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from flasher_boards import image, sha256_of
from oci_registry import OciRegistry

from jumpstarter.client.imaging import ImagingError
from jumpstarter.common.utils import serve

SIZE = 3 << 20


@pytest.fixture
def machine(tmp_path: Path, registry_server: OciRegistry, closed_registry: OciRegistry) -> Iterator[Any]:
    from jumpstarter_driver_qemu.driver import Qemu

    hosts = [registry_server.host, closed_registry.host]
    board = Qemu(arch="aarch64", vnc=False, state_dir=str(tmp_path / "state"), insecure_registries=hosts)
    with serve(board) as client:
        yield client


def content(tmp_path: Path) -> Path:
    return tmp_path / "state" / "root"


def test_artifact_is_flashed_verified_and_not_twice(machine: Any, registry_server: OciRegistry, tmp_path: Path) -> None:
    source = image(tmp_path, SIZE)
    packed = tmp_path / "disk.img.xz"
    packed.write_bytes(lzma.compress(source.read_bytes(), preset=0))
    notes = tmp_path / "notes.txt"
    notes.write_text("read me")
    url = f"oci://{registry_server.host}/lab/os:v1"
    registry_server.push("lab/os:v1", {"disk.img.xz": packed, "notes.txt": notes})
    first = machine.flasher.flash(url)
    assert (first.changed, first.verified, first.target, first.sha256) == (True, True, "root", sha256_of(source))
    assert content(tmp_path).read_bytes() == source.read_bytes()
    again = machine.flasher.flash(url)
    assert (again.changed, again.verified, again.sha256) == (False, True, first.sha256)

    # the way that 0.9 clients do it
    outputs = list(machine.flasher.streamingcall("flash_oci", url, "root"))
    assert outputs[-1][2] == 0 and first.sha256 in outputs[-1][0]
    result = CliRunner().invoke(machine.cli(), ["flasher", "flash", url])
    assert result.exit_code == 0 and "root: nothing to do" in result.output, result.output

    with open(content(tmp_path), "r+b") as file:
        file.write(b"scribble")
    mended = machine.flasher.flash(url)
    assert mended.changed and content(tmp_path).read_bytes() == source.read_bytes()


def test_layer_that_is_an_archive_with_one_disk(machine: Any, registry_server: OciRegistry, tmp_path: Path) -> None:
    source = image(tmp_path, SIZE, seed=2)
    archive = tmp_path / "layer.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("disk/"), io.BytesIO())
        tar.add(source, "disk/os.img")
    registry_server.push("lab/vm:v1", {"layer": archive}, "application/vnd.oci.image.layer.v1.tar+gzip")
    result = machine.flasher.flash(f"oci://{registry_server.host}/lab/vm:v1")
    assert result.verified and content(tmp_path).read_bytes() == source.read_bytes()


def test_what_cannot_be_fetched_is_one_clear_error(
    machine: Any,
    registry_server: OciRegistry,
    closed_registry: OciRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = image(tmp_path, SIZE, seed=3)
    registry_server.push("lab/two:v1", {"a.img": source, "b.img": source})
    registry_server.push("lab/bad:v1", {"a.img": source})
    closed_registry.push("lab/os:v1", {"a.img": source})
    host, closed = registry_server.host, closed_registry.host
    for name, message in (
        (f"{host}/lab/two:v1", "cannot tell which of its files is the image; it has a.img, b.img"),
        (f"{host}/lab/none:v1", f"registry {host} has no {host}/lab/none:v1; nothing was written"),
        ("127.0.0.1:9/lab/os:v1", "registry 127.0.0.1:9 cannot be reached"),
        (f"{host}/LAB", "is no OCI reference"),
        (f"{closed}/lab/os:v1", f"registry {closed} refuses"),
    ):
        with pytest.raises(ImagingError, match=message) as error:
            machine.flasher.flash(f"oci://{name}")
        assert "\n" not in str(error.value)
    options = {"username": "lab", "password": "s3cret-word"}
    events = list(machine.flasher.streamingcall("flash_oci_image", f"oci://{closed}/lab/os:v1", None, options))
    assert events[-1]["event"] == "result" and events[-1]["sha256"] == sha256_of(source)
    monkeypatch.setenv("OCI_USERNAME", "lab")
    with pytest.raises(ImagingError, match="OCI_USERNAME and OCI_PASSWORD: give both or neither"):
        machine.flasher.flash(f"oci://{closed}/lab/os:v1")
    monkeypatch.setenv("OCI_PASSWORD", "s3cret-word")  # of the client; the exporter gives its own to nobody
    assert machine.flasher.flash(f"OCI://{closed}/lab/os:v1", force=True).verified
    monkeypatch.undo()
    registry_server.damage(sha256_of(source))
    with pytest.raises(ImagingError, match="arrived damaged"):
        machine.flasher.flash(f"oci://{host}/lab/bad:v1", force=True)
    assert machine.flasher.call("flash_state")["record"]["state"] == "incomplete"


def test_network_flasher_takes_them_too(
    served: Callable[..., Any], registry_server: OciRegistry, tmp_path: Path
) -> None:
    source = image(tmp_path, SIZE, seed=4)
    registry_server.push("lab/board:v1", {"os.img": source})
    client, _ = served(insecure_registries=[registry_server.host])
    url = f"oci://{registry_server.host}/lab/board:v1"
    result = client.storage.flash(url, retries=1)
    assert result.verified and sha256_of(tmp_path / "disk.img", SIZE) == sha256_of(source) == result.sha256
    assert client.storage.flash(url).changed is False
