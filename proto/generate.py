# SPDX-License-Identifier: Apache-2.0
"""Generate the Python stubs of every .proto file below this folder into ``jumpstarter_protocol``.

``python proto/generate.py`` writes them; ``--check`` exits 1 when what is checked in is not current.
The stubs live inside the package ``jumpstarter_protocol`` and not at the path the proto package names, because
``jumpstarter`` is the runtime's import name; their imports of one another are rewritten accordingly.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "jumpstarter_protocol"
_IMPORT = re.compile(r"^(\s*)(from|import) (jumpstarter\.(?:v1|client\.v1|lab\.v1|admin\.v1))\b", re.MULTILINE)
_REFERENCE = re.compile(r"\bjumpstarter\.((?:client\.|lab\.|admin\.)?v1)\b(?=\.\w+_pb2|\s+import)")


def generate(out: Path) -> list[Path]:
    """Write the stubs below ``out`` and return their paths."""
    import google.api
    from grpc_tools import protoc

    protos = sorted(p.relative_to(HERE) for p in (HERE / "jumpstarter").rglob("*.proto"))
    well_known, google_api = files("grpc_tools") / "_proto", [str(Path(p).parent.parent) for p in google.api.__path__]
    includes = [str(HERE), str(well_known), *google_api]
    target = out / PACKAGE
    target.mkdir(parents=True, exist_ok=True)
    code = protoc.main(
        ["protoc", *(f"-I{path}" for path in includes), f"--python_out={target}", f"--mypy_out=quiet:{target}"]
        + [f"--plugin=protoc-gen-mypy={Path(sys.executable).with_name('protoc-gen-mypy')}"]
        + [f"--grpc_python_out={target}", *map(str, protos)]
    )
    if code:
        raise SystemExit(f"protoc failed with exit code {code}")
    written = sorted(p for p in (target / "jumpstarter").rglob("*") if p.suffix in (".py", ".pyi"))
    for path in written:
        text = path.read_text()
        if path.suffix == ".pyi":
            text = _REFERENCE.sub(rf"{PACKAGE}.jumpstarter.\1", text)
        else:
            text = _IMPORT.sub(rf"\1\2 {PACKAGE}.\3", text)
        path.write_text(text)
    for folder in {path.parent for path in written} | {
        target / "jumpstarter",
        target / "jumpstarter" / "client",
        target / "jumpstarter" / "admin",
        target / "jumpstarter" / "lab",
    }:
        (folder / "__init__.py").write_text("")
    return sorted(p for p in (target / "jumpstarter").rglob("*") if p.suffix in (".py", ".pyi"))


def stale() -> list[str]:
    """Names of generated files that differ from what is checked in."""
    with tempfile.TemporaryDirectory() as tmp:
        fresh = {p.relative_to(tmp): p.read_text() for p in generate(Path(tmp))}
        present = [p for p in (HERE / PACKAGE / "jumpstarter").rglob("*.py*") if p.suffix in (".py", ".pyi")]
        here = {p.relative_to(HERE): p.read_text() for p in present}
        return sorted(str(p) for p in fresh.keys() | here.keys() if fresh.get(p) != here.get(p))


def main() -> int:
    """Entry point of ``make proto``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 when stale")
    if not parser.parse_args().check:
        generate(HERE)
        return 0
    names = stale()
    for name in names:
        print(f"not current: {name} (run: make proto)", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    raise SystemExit(main())
