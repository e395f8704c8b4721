# SPDX-License-Identifier: Apache-2.0
"""Where configuration files live, and how they are read and written.

Directories are 0700, files 0600 and replaced atomically (a reader sees the old or the new file, never half of one, and
after a power cut one of the two). Every failure is one line that starts with the file.
"""

from __future__ import annotations

import builtins
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jumpstarter.common.exceptions import ConfigurationError, FileNotFoundError
from jumpstarter.config.env import JMP_CLIENT_CONFIG_HOME

SUFFIX = ".yaml"

#: A file that goes on after this is a device or an image, given by mistake.
_MAX_BYTES = 16 << 20

#: Exporters that an administrator, or the original's packages, installed: read, never written.
SYSTEM_DIRECTORY = Path("/etc/jumpstarter/exporters")


def config_home() -> Path:
    """Base directory of the user's configuration, read from the environment at each call.

    $JMP_CLIENT_CONFIG_HOME, else $XDG_CONFIG_HOME/jumpstarter, else ~/.config/jumpstarter.
    """
    explicit = os.environ.get(JMP_CLIENT_CONFIG_HOME)
    if explicit:
        return Path(explicit).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "jumpstarter"


def check_alias(alias: str, what: str = "configuration") -> str:
    """Return `alias` if it can be a file name of ours, else raise `ConfigurationError`.

    Refused: the empty name, "." and "..", anything with a path separator or a NUL: an alias never leaves its
    directory.
    """
    if not alias or alias in (".", "..") or any(sign in alias for sign in ("/", "\\", "\0")):
        raise ConfigurationError(
            f"{what} alias {alias!r} is not valid: it must be a plain name without path separators"
        )
    return alias


def exporter_paths(alias: str) -> tuple[Path, Path]:
    """Where the exporter configuration `alias` may be: the user's file, then the system's."""
    name = f"{check_alias(alias, 'exporter')}{SUFFIX}"
    return config_home() / "exporters" / name, SYSTEM_DIRECTORY / name


def read_yaml(path: Path) -> dict[str, Any]:
    """Read one YAML document that must be a mapping.

    Raises `FileNotFoundError` when there is no such file, `ConfigurationError` when it cannot be read, is no YAML or
    no mapping.
    """
    import yaml

    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
        if len(raw) > _MAX_BYTES:
            raise ConfigurationError(f"{path}: is no configuration file: it has more than {_MAX_BYTES >> 20} MiB")
        text = raw.decode("utf-8")
    except builtins.FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    try:
        data = yaml.load(text, Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConfigurationError(f"{path}: is not valid YAML: {where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise ConfigurationError(f"{path}: is empty")
    if not isinstance(data, dict):
        raise ConfigurationError(f"{path}: must be a YAML mapping, is a {type(data).__name__}")
    return data


@cache
def _loader() -> Any:
    """The safe loader, but a key that is there twice is an error: one of two drivers would silently be missing."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if key.value in seen:
                        raise yaml.constructor.ConstructorError(
                            None, None, f'key "{key.value}" is there twice', key.start_mark
                        )
                    seen.add(key.value)
            return super().construct_mapping(node, deep)

    return Loader


def dump_yaml(data: Mapping[str, Any]) -> str:
    """The YAML text of `data`, keys in the given order."""
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def make_private_directory(path: Path) -> None:
    """Create `path` and its missing parents with mode 0700, whatever the umask. Existing ones are left as they are."""
    missing = []
    current = path
    while not current.exists():
        missing.append(current)
        current = current.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            continue  # another process was faster
        directory.chmod(0o700)


def check_writable(path: Path) -> None:
    """Raise `ConfigurationError` unless a file can be made beside `path`. For before there is a secret to lose."""
    try:
        make_private_directory(path.parent)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`: mode 0600, atomically, flushed to the disk together with its directory entry.

    Raises `ConfigurationError` naming the file.
    """
    try:
        make_private_directory(path.parent)
        # mkstemp creates the file 0600 before anything is in it.
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be written: {error.strerror or error}") from None


def aliases(directory: Path) -> list[str]:
    """Names of the configurations in `directory`, sorted; [] when it does not exist."""
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.is_file()]
    except builtins.FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(f"{directory}: cannot be listed: {error.strerror or error}") from None
    return sorted(n[: -len(SUFFIX)] for n in names if n.endswith(SUFFIX) and not n.startswith("."))
