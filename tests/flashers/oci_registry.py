# SPDX-License-Identifier: Apache-2.0
"""Debian's docker-registry on a free port, and pushing to it with the oras library."""

from __future__ import annotations

import base64
import json
import queue
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class OciRegistry:
    """A running registry. host: ``127.0.0.1:port``."""

    def __init__(self, host: str, folder: Path, login: tuple[str, str] | None) -> None:
        self.host = host
        self.folder = folder
        self.login = login

    def push(self, name: str, files: dict[str, Path], kind: str = "application/octet-stream") -> str:
        """Push files (title: path) as an artifact; the digest of its manifest."""
        import oras.client
        import oras.defaults
        import oras.oci

        client = oras.client.OrasClient(
            hostname=self.host, insecure=True, auth_backend="basic" if self.login else "token"
        )
        if self.login:
            client.auth.set_basic_auth(*self.login)
        container = client.get_container(f"{self.host}/{name}")
        manifest = oras.oci.NewManifest()
        for title, path in files.items():
            layer = oras.oci.NewLayer(str(path), kind, is_dir=False)
            layer["annotations"] = {oras.defaults.annotation_title: title}
            assert client.upload_blob(str(path), container, layer).status_code in (200, 201, 202)
            manifest["layers"].append(layer)
        empty = self.folder.parent / "empty.json"
        empty.write_text("{}")
        config = oras.oci.NewLayer(str(empty), "application/vnd.oci.empty.v1+json", is_dir=False)
        client.upload_blob(str(empty), container, config)
        manifest["config"] = config
        response = client.upload_manifest(manifest, container)
        assert response.status_code == 201, response.text
        digest = response.headers["Docker-Content-Digest"]
        assert isinstance(digest, str) and digest.startswith("sha256:")
        return digest

    def push_bundle(self, name: str, folder: Path) -> str:
        """A flasher bundle's folder."""
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self.push(name, files)

    def damage(self, sha256: str) -> None:
        """Change a byte of a blob in the registry's storage."""
        path = self.folder / "docker/registry/v2/blobs/sha256" / sha256[:2] / sha256 / "data"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@contextmanager
def registry(folder: Path, login: tuple[str, str] | None = None) -> Iterator[OciRegistry]:
    """Run one below ``folder``; with ``login`` it asks for that."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info", "formatter": "json"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "cache": {"blobdescriptor": ""}},
        "http": {"addr": "127.0.0.1:0", "secret": "of no importance"},
    }
    del config["storage"]["cache"]
    if login is not None:
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
        import bcrypt

        hashed = bcrypt.hashpw(login[1].encode(), bcrypt.gensalt(4)).decode()
        (folder / "htpasswd").write_text(f"{login[0]}:{hashed}\n")
    (folder / "config.yml").write_text(json.dumps(config))
    program = shutil.which("docker-registry")
    assert program is not None, "install docker-registry"
    process = subprocess.Popen(
        [program, "serve", str(folder / "config.yml")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        said = ""
        while (line := lines.get(timeout=20)) is not None:
            said += line
            if found := re.search(r"listening on (127\.0\.0\.1:\d+)", line):
                yield OciRegistry(found[1], folder / "data", login)
                return
        raise AssertionError(f"the registry did not start: {said}")
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            reader.join(5)


def auth_file(path: Path, entries: dict[str, tuple[str, str]]) -> Path:
    """A containers-auth.json with these logins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    auths = {
        key: {"auth": base64.b64encode(f"{user}:{word}".encode()).decode()} for key, (user, word) in entries.items()
    }
    path.write_text(json.dumps({"auths": auths}))
    return path
