# SPDX-License-Identifier: Apache-2.0
"""The calls of Corellium's REST API that virtual devices need. Shapes: PyPI corellium-api 0.4.2 (models)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote

from jumpstarter.common.exceptions import JumpstarterException

__all__ = ["ApiClient", "CorelliumApiException", "Device", "Instance", "Project"]

T = TypeVar("T")
_CONNECT_SECONDS: Final = 10.0


class CorelliumApiException(JumpstarterException):
    """The API refused a call, or answered with what makes no sense. ``status``: of HTTP, 0 when that was not it."""

    def __init__(self, message: str = "", status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Project:
    """A project."""

    id: str
    name: str


@dataclass(frozen=True)
class Device:
    """A kind of device that can be made."""

    name: str
    flavor: str
    model: str


@dataclass(frozen=True)
class Instance:
    """A virtual device. state: on, off, booting, deleting, creating, restoring, paused, rebooting or error."""

    id: str
    name: str
    state: str
    error: str = ""


class ApiClient:
    """Blocking calls. The token is asked for each time, and goes nowhere but into the request's header."""

    def __init__(self, host: str, token: Callable[[], str], timeout: float = 30.0) -> None:
        """host: name, with a port if need be. timeout: seconds the server may take to answer."""
        self.host = host
        self._token = token
        self._timeout = timeout

    def get_project(self, reference: str) -> Project:
        """By name or id. Raises ValueError that lists those there are."""
        found = [Project(_text(one, "id"), _text(one, "name")) for one in self._list("/v1/projects")]
        return _pick(found, reference, lambda one: (one.name, one.id), "project", self.host)

    def get_device(self, model: str) -> Device:
        """By model. Raises ValueError that lists those there are."""
        listed = self._list("/v1/models")
        found = [Device(_text(one, "name"), _text(one, "flavor"), _text(one, "model")) for one in listed]
        return _pick(found, model, lambda one: (one.model,), "device model", self.host)

    def get_instance(self, reference: str, project: Project | None = None) -> Instance | None:
        """By name or id, in that project if given; None when there is none."""
        for one in self._list("/v1/instances"):
            if reference not in (one.get("name"), one.get("id")):
                continue
            if project is None or one.get("project") in (None, project.id):
                return _instance(one)
        return None

    def create_instance(self, name: str, project: Project, device: Device, os_version: str, os_build: str) -> Instance:
        """Make an instance; it is being created when this returns."""
        wanted = {
            "name": name, "project": project.id, "flavor": device.flavor, "os": os_version, "osbuild": os_build
        }  # fmt: skip
        return _instance(_mapping(self._call("POST", "/v1/instances", json=wanted), "a new instance"))

    def set_instance_state(self, instance: Instance, state: str) -> None:
        """Ask for "on" or "off"."""
        self._call("PUT", f"/v1/instances/{quote(instance.id, safe='')}/state", json={"state": state})

    def destroy_instance(self, instance: Instance) -> None:
        """Delete it."""
        self._call("DELETE", f"/v1/instances/{quote(instance.id, safe='')}")

    def get_console_url(self, instance: Instance, console: str) -> str:
        """WebSocket URL of a console of a running instance. Raises ValueError that lists the consoles there are."""
        path = f"/v1/instances/{quote(instance.id, safe='')}"
        details = _mapping(self._call("GET", path), "an instance")
        consoles = details.get("consoles") or []
        found = [(_text(one, "name"), _text(one, "id")) for one in consoles if isinstance(one, Mapping)]
        identity = _pick(found, console, lambda one: (one[0],), f"console of {instance.name}", self.host)[1]
        answer = self._call("GET", f"{path}/console", params={"type": identity.removeprefix("port-")})
        url = _text(_mapping(answer, "a console"), "url")
        if not url.startswith(("wss://", "ws://")):
            raise CorelliumApiException(f"{self.host}: the console's address is no WebSocket")
        return url

    def _list(self, path: str) -> list[Mapping[str, Any]]:
        answer = self._call("GET", path)
        if not isinstance(answer, list) or not all(isinstance(one, Mapping) for one in answer):
            raise CorelliumApiException(f"{self.host}: GET {path} did not answer with a list")
        return answer

    def _call(self, method: str, path: str, **options: Any) -> Any:
        import requests

        where = f"{self.host}: {method} {path}"

        def authorize(request: Any) -> Any:
            # As an `auth` of its own: with a plain header, an entry for the host in .netrc would win.
            request.headers["Authorization"] = f"Bearer {self._token()}"
            return request

        try:
            answer = requests.request(
                method, f"https://{self.host}/api{path}", auth=authorize, allow_redirects=False,
                timeout=(_CONNECT_SECONDS, self._timeout), **options,
            )  # fmt: skip
        except requests.Timeout:
            raise TimeoutError(f"{where}: no answer within {self._timeout:g} s") from None
        except requests.RequestException as error:
            raise ConnectionError(f"{where}: {_reason(error)}") from None
        try:
            value = answer.json() if answer.content else None
        except ValueError:
            value = None
            if answer.ok:
                raise CorelliumApiException(f"{where}: the answer is no JSON", answer.status_code) from None
        if not 200 <= answer.status_code < 300:
            said = value.get("error") if isinstance(value, Mapping) else None
            field = value.get("field") if isinstance(value, Mapping) else None
            text = f"{said}{f' (field {field})' if field else ''}" if said else answer.reason
            raise CorelliumApiException(f"{where}: {answer.status_code}: {text}", answer.status_code)
        return value


def _instance(value: Mapping[str, Any]) -> Instance:
    # Only what is needed is looked at: new fields must not break anything.
    return Instance(
        id=_text(value, "id"), name=str(value.get("name") or ""), state=str(value.get("state") or ""),
        error=str(value.get("error") or ""),
    )  # fmt: skip


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CorelliumApiException(f"the API did not answer with {what}")
    return value


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str) or not found:
        raise CorelliumApiException(f'the API answered without "{key}", or with one that is no text')
    return found


def _pick(found: list[T], wanted: str, names: Callable[[T], tuple[str, ...]], what: str, host: str) -> T:
    for one in found:
        if wanted in names(one):
            return one
    known = ", ".join(sorted({names(one)[0] for one in found})[:20]) or "none"
    raise ValueError(f'{host} has no {what} "{wanted}"; it has {known}')


def _reason(error: Exception) -> str:
    """The innermost cause: requests wraps it in the names of its own classes."""
    cause: BaseException = error
    while (inner := getattr(cause, "reason", None) or cause.__cause__ or cause.__context__) is not None:
        if not isinstance(inner, BaseException) or inner is cause:
            break
        cause = inner
    return str(getattr(cause, "strerror", None) or cause)
