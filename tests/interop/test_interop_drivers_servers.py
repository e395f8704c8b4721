# SPDX-License-Identifier: Apache-2.0
"""Storage, HTTP and TFTP drivers and clients of the real Jumpstarter 0.9 against ours, both ways."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

from original_exporters import our_client, our_exporter, their_exporter

# What a user of 0.9 writes; run with its packages only.
PROGRAM = """
import json, subprocess, sys, urllib.request
from pathlib import Path
import opendal
from jumpstarter.utils.env import env
folder = Path(sys.argv[1])
out = {}
with env() as client:
    files = client.files
    files.write_bytes("a/b.txt", b"hello")
    out["bytes"] = files.read_bytes("a/b.txt").decode()
    found = files.stat("a/b.txt")
    out["stat"] = [found.content_length, found.mode.is_file(), files.stat("a/").mode.is_dir()]
    out["hash"] = files.hash("a/b.txt"), files.hash("a/b.txt", "md5")
    files.write_from_path("image", folder / "image")
    files.read_into_path("image", folder / "back")
    files.write_from_path("other", "image", opendal.Operator("fs", root=str(folder)))
    out["hashes"] = [files.hash("image"), files.hash("other")]
    files.copy("image", "copy"); files.rename("copy", "moved"); files.create_dir("empty/")
    out["exists"] = [files.exists(path) for path in ("copy", "moved", "empty/")]
    out["list"] = sorted(files.list("/")); out["scan"] = sorted(files.scan("a/"))
    file = files.open("a/b.txt", "rb")
    out["file"] = [file.readable(), file.writable(), file.seekable(), file.seek(2), file.read_bytes().decode()]
    out["file"].append(file.tell())
    file.close()
    out["closed"] = file.closed
    out["capability"] = [files.capability().copy, files.capability().presign_read]
    out["created"] = sorted(files.get_created_resources())
    files.delete("moved"); files.remove_all("a/"); files.delete("nope")
    out["left"] = sorted(files.scan("/"))
    try:
        files.read_bytes("../image")
        out["escape"] = "read it"
    except Exception as error:
        out["escape"] = str(error)
    client.http.start()
    url = client.http.put_file("web/image", folder / "image")
    got = urllib.request.urlopen(url).read()
    out["http"] = [url.startswith(client.http.get_url()), len(got), client.http.get_host()]
    client.http.stop()
    client.tftp.start()
    client.tftp.storage.write_from_path("boot/image", folder / "image")
    address = f"tftp://{client.tftp.get_host()}:{int(client.tftp.get_port())}/boot/image"
    out["tftp"] = len(subprocess.run(["curl", "-sS", "-m", "20", address], capture_output=True, check=True).stdout)
    client.tftp.stop()
print(json.dumps(out))
"""


def _drivers(folder: Path, port: int) -> dict[str, Any]:
    return {
        "files": {
            "type": "jumpstarter_driver_opendal.driver.Opendal",
            "config": {"scheme": "fs", "kwargs": {"root": str(folder / "files")}},
        },
        "http": {
            "type": "jumpstarter_driver_http.driver.HttpServer",
            "config": {"root_dir": str(folder / "www"), "host": "127.0.0.1", "port": 0},
        },
        "tftp": {
            "type": "jumpstarter_driver_tftp.driver.Tftp",
            "config": {"root_dir": str(folder / "tftp"), "host": "127.0.0.1", "port": port},
        },
    }


def test_a_client_of_the_original_uses_our_storage_and_servers(original: Path, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "image").write_bytes(content)
    with our_exporter(original, tmp_path, _drivers(tmp_path, 0)) as theirs:
        said = theirs.python(PROGRAM, tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    out = json.loads(said.splitlines()[-1])
    assert "leads out of the storage" in out.pop("escape")
    assert out == {
        "bytes": "hello",
        "stat": [5, True, True],
        "hash": [hashlib.sha256(b"hello").hexdigest(), hashlib.md5(b"hello").hexdigest()],
        "hashes": [digest, digest],
        "exists": [False, True, True],
        "list": ["/", "a/", "empty/", "image", "moved", "other"],
        "scan": ["a/", "a/b.txt"],
        "file": [True, False, True, 2, "llo", 5],
        "closed": True,
        "capability": [True, False],
        "created": ["a/b.txt", "empty", "image", "moved", "other"],
        "left": ["/", "empty/", "image", "other"],
        "http": [True, len(content), "127.0.0.1"],
        "tftp": len(content),
    }
    assert (tmp_path / "back").read_bytes() == content


def test_our_client_uses_storage_and_servers_of_the_original(original: Path, tmp_path: Path) -> None:
    content = os.urandom(3_000_001)
    (tmp_path / "image").write_bytes(content)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as boot:
        boot.bind(("127.0.0.1", 0))
        boot_port = int(boot.getsockname()[1])  # the original cannot choose a port itself
    with their_exporter(original, tmp_path, _drivers(tmp_path, boot_port)) as address, our_client(address) as client:
        _drive(client, tmp_path, content, boot_port)


def _drive(client: Any, folder: Path, content: bytes, boot_port: int) -> None:
    files = client.files
    files.write_bytes("a/b.txt", b"hello")
    assert files.read_bytes("a/b.txt") == b"hello"
    assert (files.stat("a/b.txt").content_length, files.stat("a/").mode.is_dir()) == (5, True)
    assert files.put("image", folder / "image").changed is True
    assert files.put("image", folder / "image").changed is False
    assert files.get("image", folder / "back").sha256 == hashlib.sha256(content).hexdigest()
    assert (folder / "back").read_bytes() == content
    files.copy("image", "copy")
    files.rename("copy", "moved")
    assert sorted(files.list("/")) == ["/", "a/", "image", "moved"]
    assert files.capability().copy is True
    file = files.open("a/b.txt", "rb")
    assert (file.seek(2), file.read_bytes(), file.tell()) == (2, b"llo", 5)
    file.close()
    assert files.get_created_resources() == {"a/b.txt", "image", "moved"}
    client.http.start()
    with urllib.request.urlopen(client.http.put_file("image", folder / "image"), timeout=20) as response:
        assert response.read() == content
    client.http.stop()
    client.tftp.start()
    client.tftp.put_file("image", folder / "image")
    assert client.tftp.get_port() == boot_port
    client.tftp.stop()
