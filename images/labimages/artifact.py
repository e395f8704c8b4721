# SPDX-License-Identifier: Apache-2.0
"""Where built images live and how a build that has nothing to do is recognised."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "build" / "images"
CACHE = ROOT / "build" / "cache"


def inputs_digest(sources: Mapping[str, bytes], options: Mapping[str, Any]) -> str:
    """SHA-256 over the builders' own source and the options of this build."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name in sorted(sources):
        digest.update(f"\0{name}\0{len(sources[name])}\0".encode() + sources[name])
    return digest.hexdigest()


def builder_sources(board: str) -> dict[str, bytes]:
    """Every file of images/ that *board*'s image is made from: a change in any of them means building again."""
    directory = ROOT / "images"
    script = directory / f"{board.replace('-', '_')}.py"
    parts = [script, *(directory / "labimages").glob("*.py"), *(directory / "files" / board).rglob("*")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in parts if path.is_file()}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file at *path*, which is made when it is not there; waits for whoever holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(
    board: str,
    output: Path,
    options: Mapping[str, Any],
    build: Callable[[Path], dict[str, Any]],
    *,
    force: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Call build(temporary path) and move what it wrote to *output*, unless that was done before with the same inputs.

    Returns (facts, built): facts are what build returned with the image's path, size in bytes and sha256 added; they
    are kept in OUTPUT.json beside the image. Two processes that build the same image do it one after the other.
    """
    facts_path = output.with_suffix(".json")
    with locked(output.with_name(f".{output.name}.lock")):
        digest = inputs_digest(builder_sources(board), {"board": board, **options})
        if not force and output.exists() and facts_path.exists():
            facts: dict[str, Any] = json.loads(facts_path.read_text())
            held = output.stat()
            if facts.get("inputs") == digest and facts.get("state") == [held.st_size, held.st_mtime_ns]:
                return facts, False
        temporary = output.with_name(f".{output.name}.new")
        try:
            facts = build(temporary)
            facts.update(image=str(output), size=temporary.stat().st_size, sha256=sha256_file(temporary), inputs=digest)
            os.replace(temporary, output)
        finally:
            temporary.unlink(missing_ok=True)
        held = output.stat()
        facts["state"] = [held.st_size, held.st_mtime_ns]
        facts_path.write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
        return facts, True
