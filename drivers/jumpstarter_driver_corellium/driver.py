# SPDX-License-Identifier: Apache-2.0
"""Virtual devices of Corellium: made, switched and destroyed through its REST API, with a console over a WebSocket."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import ClassVar, Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver, call_cancelled, export
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_corellium.api import ApiClient, Instance
from jumpstarter_driver_corellium.console import ConsolePortFactory
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.driver import VirtualPowerInterface
from jumpstarter_driver_pyserial.console import ConsoleDriver

__all__ = ["Corellium", "CorelliumConsole", "CorelliumPower"]

_HOST, _TOKEN, _RETRIES, _INTERVAL = (f"CORELLIUM_API_{name}" for name in ("HOST", "TOKEN", "RETRIES", "INTERVAL"))
#: States from which an instance gets where it is going by itself.
_MOVING: Final = ("booting", "rebooting", "creating", "restoring")
#: Seconds within which a console that is connected is taken, when the exporter has much to do.
_CONSOLE_WITHIN: Final = 15.0


@dataclass(kw_only=True)
class Corellium(Driver):
    """A virtual device, with the children ``power`` and ``serial``.

    project_id: name or id. device_name: of the instance, which is made when it is switched on for the first time.
    device_flavor: model to make it of. device_os, device_build: of its firmware. console_name: the console that
    ``serial`` is.
    api_host, api_token_file (or api_token): where the API is and its token; by default the variables
    CORELLIUM_API_HOST and CORELLIUM_API_TOKEN (or CORELLIUM_API_TOKEN_FILE) of the exporter. api_retries, api_interval:
    how often, and every how many seconds, to look whether a device has come to its new state; by default the variables
    CORELLIUM_API_RETRIES and CORELLIUM_API_INTERVAL, or 12 and 5. api_timeout: seconds the API may take to answer.
    """

    driver_type: ClassVar[str] = "composite"
    needs: ClassVar[tuple[str, ...]] = ("requests", "websockets")

    project_id: str
    device_name: str
    device_flavor: str
    device_os: str = "1.1.1"
    device_build: str = "Critical Application Monitor (Baremetal)"
    console_name: str = "Primary Compute Non-Secure"
    api_host: str | None = None
    api_token: str | None = field(default=None, repr=False)
    api_token_file: str | None = None
    api_retries: int | None = None
    api_interval: float | None = None
    api_timeout: float = 30.0
    api: ApiClient = field(init=False, repr=False)
    console: CorelliumConsole = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("project_id", "device_name", "device_flavor"):
            if not getattr(self, name):
                raise ConfigurationError(f"corellium: {name} is empty")
        host = self.api_host or self.get_env_var(_HOST)
        if "/" in host or "@" in host or host.split() != [host]:
            raise ConfigurationError(
                f'corellium: the API\'s host is "{host}", must be a name such as app.corellium.com'
            )
        if self.api_token is None and self.api_token_file is None:
            self.api_token_file = os.environ.get(f"{_TOKEN}_FILE") or None
            if self.api_token_file is None:
                self.api_token = self.get_env_var(_TOKEN)
        check_secret("api_token", self.api_token, self.api_token_file, required=True)
        if self.api_retries is None:
            self.api_retries = int(_number(_RETRIES, 12, int))
        if self.api_interval is None:
            self.api_interval = _number(_INTERVAL, 5, float)
        for name, least in (("api_retries", 1), ("api_interval", 0.0), ("api_timeout", 0.001)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"corellium: {name} is {getattr(self, name):g}, must be at least {least:g}")
        self.api = ApiClient(host, self._token, self.api_timeout)
        self.console = CorelliumConsole(parent=self)
        self.children["power"] = CorelliumPower(parent=self)
        self.children["serial"] = self.console

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_corellium.client.CorelliumClient"

    @staticmethod
    def get_env_var(name: str) -> str:
        """A variable of the exporter that must be set. Raises ConfigurationError."""
        value = os.environ.get(name)
        if value is None:
            raise ConfigurationError(f'corellium: missing "{name}" environment variable')
        if not value.strip():
            raise ConfigurationError(f'corellium: "{name}" environment variable is empty')
        return value.strip()

    def console_url(self) -> str:
        """Where the console is. Raises ValueError when the device does not run. Blocks."""
        instance = self.instance()
        if instance is None or instance.state != "on":
            state = instance.state if instance is not None else "not there"
            raise ValueError(f'the device "{self.device_name}" is {state}: switch it on to have its console')
        return self.api.get_console_url(instance, self.console_name)

    def instance(self) -> Instance | None:
        """The device as it is now; None when there is none. Blocks."""
        return self.api.get_instance(self.device_name, self.api.get_project(self.project_id))

    def _token(self) -> str:
        return str(read_secret("api_token", self.api_token, self.api_token_file))


@dataclass(kw_only=True)
class CorelliumPower(VirtualPowerInterface, Driver):
    """Power of the device: made when it is switched on first, destroyed by ``off(destroy=True)``."""

    parent: Corellium = field(repr=False)
    _turn: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)

    @export
    def on(self) -> None:  # type: ignore[override]  # the interface allows either colour
        """Make the device if it does not exist, and start it; returns when it reports that it is on."""
        parent = self.parent
        with self._turn:
            project = parent.api.get_project(parent.project_id)
            instance = parent.api.get_instance(parent.device_name, project)
            if instance is not None and instance.state == "deleting":
                self._wait(instance, "", "deleted")
                instance = None
            if instance is None:
                device = parent.api.get_device(parent.device_flavor)
                instance = parent.api.create_instance(
                    parent.device_name, project, device, parent.device_os, parent.device_build
                )
                self.logger.info("instance %s created", instance.id)
            elif instance.state != "on" and instance.state not in _MOVING:
                parent.api.set_instance_state(instance, "on")
            self._wait(instance, "on", "on")
        parent.console.device_is_on()

    @export
    def off(self, destroy: bool = False) -> None:  # type: ignore[override]
        """Stop the device, and destroy it if asked to; returns when it reports that it is off, or gone."""
        api = self.parent.api
        with self._turn:
            instance = self.parent.instance()
            if instance is None:
                return  # what does not exist is off, and was looked for
            if instance.state == "deleting":
                self._wait(instance, "", "deleted")
                return
            if instance.state != "off" and not (destroy and instance.state in ("error", "creating")):
                api.set_instance_state(instance, "off")
                self._wait(instance, "off", "off")
            if destroy:
                api.destroy_instance(instance)
                self._wait(instance, "", "deleted")

    @export(readonly=True)
    def status(self) -> PowerState:
        """ "on" or "off" (also when it does not exist), "unknown" while it is on its way."""
        instance = self.parent.instance()
        if instance is None or instance.state == "off":
            return "off"
        return "on" if instance.state == "on" else "unknown"

    @export(readonly=True)
    def read(self) -> Generator[PowerReading, None, None]:  # type: ignore[override]
        """A virtual device draws nothing."""
        raise NotImplementedError("a virtual device has no power to measure")
        yield PowerReading(voltage=0, current=0)

    def _wait(self, instance: Instance, state: str, what: str) -> None:
        """Until the instance has that state; "" for until it is gone."""
        parent = self.parent
        assert parent.api_retries is not None and parent.api_interval is not None
        seen = instance.state
        for attempt in range(parent.api_retries + 1):
            if attempt:
                self._pause(parent.api_interval)
            now = parent.api.get_instance(instance.id)
            seen = now.state if now is not None else ""
            if seen == state:
                return
            if seen == "error" and state:
                reason = f": {now.error}" if now is not None and now.error else ""
                raise OSError(f'the device "{parent.device_name}" is in state error{reason}')
            if now is None:
                raise OSError(f'the device "{parent.device_name}" was deleted while it should become {what}')
        raise TimeoutError(
            f'the device "{parent.device_name}" is {seen or "gone"}, and not {what}, after '
            f"{parent.api_retries * parent.api_interval:g} s"
        )

    @staticmethod
    def _pause(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if call_cancelled():
                raise OSError("cancelled")
            time.sleep(min(left, 0.2))


@dataclass(kw_only=True)
class CorelliumConsole(ConsoleDriver):
    """The device's console, read while the device is on. baudrate: accepted for compatibility, there is no line."""

    parent: Corellium = field(repr=False)
    baudrate: int = 115200
    _port: ConsolePortFactory = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hub.explain_absence = lambda: self._port.refusal

    def _port_factory(self) -> ConsolePortFactory:
        parent = self.parent
        self._port = ConsolePortFactory(f'console "{parent.console_name}" of {parent.device_name}', parent.console_url)
        return self._port

    def device_is_on(self) -> None:
        """Connect now. From any thread."""
        self._port.look_again()
        self.hub.kick()

    async def _ready(self) -> None:
        await self.hub.settled()
        if not self.hub.open:
            await self._port.offer()
            self.hub.kick()
            await self.hub.wait_open(_CONSOLE_WITHIN)
            self._port.close()  # should the hub have found its own way meanwhile


def _number(name: str, default: float, kind: Callable[[str], float]) -> float:
    """A number from a variable of the exporter."""
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    try:
        return kind(text)
    except ValueError:
        raise ConfigurationError(f'corellium: "{name}" environment variable is "{text}", no number') from None
