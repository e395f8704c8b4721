# SPDX-License-Identifier: Apache-2.0
"""Artifacts in OCI registries (https://github.com/opencontainers/distribution-spec), by the ``oras`` library.

Everything that comes from a registry is compared with its digest. Blocking: for worker threads.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import json
import os
import re
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Artifact", "Credentials", "Layer", "Reference", "Registry", "find_credentials", "is_insecure"]

_TIMEOUTS: Final = (10.0, 60.0)
"""Seconds: to connect, and between two pieces of an answer."""
_CHUNK: Final = 1 << 20
_LARGEST_MANIFEST: Final = 4 << 20
_ACCEPT: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_TITLE: Final = "org.opencontainers.image.title"
_REGISTRIES_CONF: Final = ("~/.config/containers/registries.conf", "/etc/containers/registries.conf")
_REFERENCE = re.compile(
    r"(?P<registry>[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]+)?)/"
    r"(?P<repository>[a-z0-9]+(?:(?:[./]|_{1,2}|-+)[a-z0-9]+)*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """``registry/repository:tag`` or ``registry/repository@sha256:...``."""

    registry: str
    repository: str
    tag: str
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """A reference, with or without ``oci://``. A name without registry gets the first one that
        ``unqualified-search-registries`` of registries.conf lists, docker.io otherwise. Raises ValueError."""
        name = text.removeprefix("oci://")
        first, slash, _ = name.partition("/")
        if not slash or not (set(first) & set(".:") or first == "localhost"):
            name = f"{_unqualified_registry()}/{name}"
        found = _REFERENCE.fullmatch(name)
        if found is None:
            raise ValueError(f"{text!r} is no OCI reference like registry.example/team/image:tag")
        return cls(found["registry"], found["repository"], found["tag"] or "latest", found["digest"])

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


@dataclass(frozen=True)
class Credentials:
    """Login of a registry."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True)
class Layer:
    """A blob of an artifact. title: file name, None when it has none."""

    digest: str
    size: int
    media_type: str
    title: str | None


@dataclass(frozen=True)
class Artifact:
    """What a reference stands for now: the digest of its manifest, and its blobs."""

    reference: Reference
    digest: str
    layers: tuple[Layer, ...]


def find_credentials(
    reference: Reference,
    username: str | None = None,
    password: str | None = None,
    *,
    trusted: bool = True,
    env: Mapping[str, str] = os.environ,
) -> Credentials | None:
    """The login for a registry, None to go without: what is given, else ``OCI_USERNAME`` and ``OCI_PASSWORD``, else
    the first that ``REGISTRY_AUTH_FILE``, ``$XDG_RUNTIME_DIR/containers/auth.json``,
    ``~/.config/containers/auth.json`` or ``~/.docker/config.json`` has for it.

    trusted: whether the reference is this host's own; ``OCI_USERNAME`` and ``OCI_PASSWORD`` name no registry, and one
    that a client chose must not get them. Raises ValueError for half a login, or a file that is no JSON.
    """
    environment = (env.get("OCI_USERNAME"), env.get("OCI_PASSWORD")) if trusted else (None, None)
    for name, pair in (
        ("oci_username and oci_password", (username, password)),
        ("OCI_USERNAME and OCI_PASSWORD", environment),
    ):
        user, secret = pair
        if user and secret:
            return Credentials(user, secret)
        if user or secret:
            raise ValueError(f"{name}: give both or neither")
    for path in _auth_files(env):
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise ValueError(f"registry logins {path}: {error.strerror}") from None
        except ValueError:
            raise ValueError(f"registry logins {path}: no JSON") from None
        found = _login_in(data, reference, path)
        if found is not None:
            return found
    return None


def _auth_files(env: Mapping[str, str]) -> Iterator[Path]:
    if env.get("REGISTRY_AUTH_FILE"):
        yield Path(env["REGISTRY_AUTH_FILE"])
    if env.get("XDG_RUNTIME_DIR"):
        yield Path(env["XDG_RUNTIME_DIR"]) / "containers" / "auth.json"
    home = Path(env.get("HOME") or "~").expanduser()
    yield home / ".config" / "containers" / "auth.json"
    yield home / ".docker" / "config.json"


def _login_in(data: Any, reference: Reference, path: Path) -> Credentials | None:
    auths = data.get("auths") if isinstance(data, dict) else None
    if not isinstance(auths, dict):
        return None
    # The longest prefix wins, as in containers-auth.json(5); docker writes URLs.
    name = f"{reference.registry}/{reference.repository}"
    while True:
        for key in (name, f"https://{name}", f"https://{name}/v1/"):
            entry = auths.get(key)
            if isinstance(entry, dict) and entry.get("auth"):
                try:
                    user, colon, secret = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
                except (binascii.Error, UnicodeDecodeError, TypeError):
                    colon = ""
                if not colon:
                    raise ValueError(f"registry logins {path}: auths.{key}.auth is no base64 of user:password")
                return Credentials(user, secret)
        if "/" not in name:
            return None
        name = name.rpartition("/")[0]


def _unqualified_registry() -> str:
    for name in _REGISTRIES_CONF:
        try:
            found = tomllib.loads(Path(name).expanduser().read_text()).get("unqualified-search-registries")
        except (OSError, ValueError):  # not there, or not ours to mend
            continue
        if isinstance(found, list) and found:
            return str(found[0])
    return "docker.io"


class Registry:
    """One registry, for one reference's repository."""

    def __init__(self, reference: Reference, credentials: Credentials | None, *, insecure: bool = False) -> None:
        """insecure: speak plain HTTP. Nothing is sent yet. Raises ImportError without the ``oras`` library."""
        import oras.container
        import oras.provider

        self.reference = reference
        host = "registry-1.docker.io" if reference.registry == "docker.io" else reference.registry
        repository = reference.repository
        if reference.registry == "docker.io" and "/" not in repository:
            repository = f"library/{repository}"
        self._container = oras.container.Container(f"{host}/{repository}:{reference.tag}")
        self._container.digest = reference.digest
        self._credentials = credentials
        self._insecure = insecure
        self._host = host
        self._provider: Any = None
        self._response: Any = None
        self._stopped = False
        self._make = oras.provider.Registry

    def artifact(self) -> Artifact:
        """What the reference stands for. Raises OSError subclasses (ConnectionError, PermissionError,
        FileNotFoundError), ValueError for what is no artifact."""
        reference = self.reference
        path = self._container.manifest_url()
        with self._request(f"{self._scheme}://{path}", {"Accept": ", ".join(_ACCEPT)}) as response:
            body = b""
            deadline = time.monotonic() + _TIMEOUTS[1]
            for chunk in self._pieces(response, 4096):
                body += chunk
                if len(body) > _LARGEST_MANIFEST:
                    raise ValueError(f"{reference}: its manifest is larger than {_LARGEST_MANIFEST} bytes")
                if time.monotonic() > deadline:
                    raise ConnectionError(f"registry {self._host} sends its manifest too slowly")
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        if reference.digest is not None and digest != reference.digest:
            raise ValueError(f"{reference}: the registry sent a manifest with digest {digest}")
        try:
            layers = tuple(_layer(one) for one in json.loads(body)["layers"])
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{reference}: is no artifact with layers (an index of several images?)") from None
        return Artifact(reference, digest, layers)

    def blob(self, layer: Layer) -> Iterator[bytes]:
        """The bytes of a blob; ValueError at the end when they are not those of its digest."""
        digest, size = hashlib.sha256(), 0
        url = f"{self._scheme}://{self._container.get_blob_url(layer.digest)}"
        with self._request(url, {}) as response:
            for chunk in self._pieces(response, _CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if size > layer.size:
                    raise ValueError(f"{self.reference}: blob {layer.digest} is larger than its {layer.size} bytes")
                yield chunk
        if f"sha256:{digest.hexdigest()}" != layer.digest:
            raise ValueError(f"{self.reference}: blob {layer.digest} arrived damaged ({size} of {layer.size} bytes)")

    def download(self, layer: Layer, path: Path, progress: Callable[[int], None] = lambda done: None) -> None:
        """A blob into a new file; ``progress`` gets the bytes so far, and what it raises passes through."""
        done = 0
        with open(path, "xb") as file:
            for chunk in self.blob(layer):
                file.write(chunk)
                done += len(chunk)
                progress(done)

    @property
    def _scheme(self) -> str:
        return "http" if self._insecure else "https"

    def stop(self) -> None:
        """From any thread: end the transfer that runs; whoever waits for its next piece gets ConnectionError."""
        self._stopped = True
        if (response := self._response) is not None:
            with contextlib.suppress(ValueError, RuntimeError, OSError):  # it has ended, or has not begun
                response.raw.shutdown()

    def _pieces(self, response: Any, length: int) -> Iterator[bytes]:
        import requests

        # stop() sets its mark and then looks for a response, this does the reverse: one of the two sees the other.
        self._response = response
        try:
            for piece in () if self._stopped else response.iter_content(length):
                if self._stopped:
                    break
                yield piece
            if self._stopped:
                raise ConnectionError(f"registry {self._host}: the transfer was stopped")
        except requests.exceptions.RequestException as error:
            raise ConnectionError(f"registry {self._host}: the transfer broke off: {_brief(error)}") from None
        finally:
            self._response = None

    def _request(self, url: str, headers: dict[str, str]) -> Any:
        import requests

        try:
            if self._provider is None:
                self._provider = self._connect()
            # Not the library's own retries: they sleep for minutes on a registry that is not there.
            ask = self._make.do_request.__wrapped__
            response = ask(self._provider, url, "GET", headers=headers, stream=True)
        except requests.exceptions.RequestException as error:
            scheme = " by plain HTTP" if self._insecure else ""
            raise ConnectionError(f"registry {self._host} cannot be reached{scheme}: {_brief(error)}") from None
        except ValueError as error:  # the library's word for "no login helps"
            raise PermissionError(f"registry {self._host} refuses {self.reference}: {error}") from None
        if response.status_code in (401, 403):
            who = f"the login {self._credentials.username!r}" if self._credentials else "anybody without login"
            raise PermissionError(f"registry {self._host} refuses {self.reference} to {who}")
        if response.status_code == 404:
            raise FileNotFoundError(f"registry {self._host} has no {self.reference}")
        if response.status_code >= 300:
            raise ConnectionError(f"registry {self._host}: {self.reference}: HTTP {response.status_code}")
        return response

    def _connect(self) -> Any:
        """A session that knows the kind of login this registry wants, and never waits without end."""
        import requests

        session = requests.Session()
        try:
            with session.get(f"{self._scheme}://{self._host}/v2/", timeout=_TIMEOUTS, stream=True) as response:
                challenge = response.headers.get("WWW-Authenticate", "")
        finally:
            session.close()
        kind = "basic" if challenge.lower().startswith("basic") else "token"
        if kind == "basic" and self._credentials is None:
            raise PermissionError(f"registry {self._host} refuses {self.reference} to anybody without login")
        provider = self._make(hostname=self._host, insecure=self._insecure, auth_backend=kind)
        provider.session.request = functools.partial(provider.session.request, timeout=_TIMEOUTS)
        if self._credentials is not None:
            provider.auth.set_basic_auth(self._credentials.username, self._credentials.password)
        return provider


def is_insecure(reference: Reference, insecure_registries: Sequence[str]) -> bool:
    """Whether the configuration allows plain HTTP for the reference's registry."""
    return reference.registry in insecure_registries


def _layer(data: Mapping[str, Any]) -> Layer:
    digest = str(data["digest"])
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ValueError(f"digest {digest!r}")
    title = (data.get("annotations") or {}).get(_TITLE)
    return Layer(digest, int(data["size"]), str(data["mediaType"]), str(title) if title else None)


def _brief(error: Exception) -> str:
    """An error of `requests` in a few words: the innermost reason."""
    text = str(error)
    found = re.search(r"(?:\] |: )([A-Z][^:'\"()\[\]]+)['\")]*$", text)
    return found.group(1) if found else text
