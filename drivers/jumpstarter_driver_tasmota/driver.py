# SPDX-License-Identifier: Apache-2.0
"""A relay with the Tasmota firmware, switched over MQTT.

Facts from Tasmota's documentation (MQTT, Commands): a command "POWER" goes to cmnd/TOPIC/POWER with ON or OFF, an empty
payload asks; each is answered on stat/TOPIC/POWER (ON or OFF) and stat/TOPIC/RESULT (JSON). The broker keeps "Online"
or "Offline" on tele/TOPIC/LWT. "STATUS 8" is answered on stat/TOPIC/STATUS8 with what the meter says.
"""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.switched import PowerError, SwitchedPower
from jumpstarter_driver_tasmota.link import Broker, MqttLink

__all__ = ["TasmotaPower"]

_PATIENCE = 5.0  # seconds, where no timeout is configured
_RESTART_PAUSE = 0.2  # seconds between tries to reach a broker that was there before
_STANDARD = re.compile(r"(?P<prefix>cmnd|stat)/(?P<topic>.+)/(?P<name>[^/]+)")


@dataclass(kw_only=True)
class TasmotaPower(SwitchedPower):
    """Switches a relay, and believes only what the device answers.

    host, port, transport ("tcp", "websockets", "unix"), websocket_path, client_id, username, password(_file): the
    broker. tls: encrypt; tls_ca: file of certificates to trust instead of the system's; tls_verify: False takes any
    certificate. cmnd_topic: "cmnd/TOPIC/POWER". stat_topic: "stat/TOPIC/POWER". lwt_topic: where "Offline" stands
    (default: tele/TOPIC/LWT when the topics are of that form, "" for none). on_payload, off_payload: the device's words
    (its StateText). timeout: seconds for connecting, and for an answer (default 5). off_at_reset, off_at_close: switch
    off when a session starts or ends.
    """

    needs: ClassVar[tuple[str, ...]] = ("paho",)

    host: str
    cmnd_topic: str
    stat_topic: str
    port: int = 1883
    tls: bool = True
    tls_ca: str | None = None
    tls_verify: bool = True
    client_id: str | None = None
    transport: Literal["tcp", "websockets", "unix"] = "tcp"
    websocket_path: str = "/mqtt"
    timeout: float | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    lwt_topic: str | None = None
    on_payload: str = "ON"
    off_payload: str = "OFF"
    off_at_reset: bool = False
    off_at_close: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cmnd_topic", "stat_topic", "lwt_topic"):
            _check_topic(name, getattr(self, name))
        if self.cmnd_topic == self.stat_topic:
            raise ConfigurationError("cmnd_topic and stat_topic are the same; the device answers on another one")
        if not self.host:
            raise ConfigurationError("host is empty")
        if not 1 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port}, must be 1 to 65535")
        if self.timeout is not None and not 0 < self.timeout <= 60:
            raise ConfigurationError(f"timeout is {self.timeout:g}, must be more than 0 and at most 60 seconds")
        if self.transport not in ("tcp", "websockets", "unix"):
            raise ConfigurationError(f'transport is "{self.transport}", must be tcp, websockets or unix')
        if not self.tls and self.tls_ca is not None:
            raise ConfigurationError("tls_ca without tls: true")
        if self.on_payload == self.off_payload:
            raise ConfigurationError(f'on_payload and off_payload are both "{self.on_payload}"')
        check_secret("password", self.password, self.password_file)
        if self.username is None and (self.password is not None or self.password_file is not None):
            raise ConfigurationError("password without username")
        self._patience = self.timeout or _PATIENCE
        self._lwt, self._ask_energy, self._energy = self._derived_topics()
        self._link: MqttLink | None = None
        self._used = False  # whether anything was asked of the device
        self._connecting = threading.Lock()
        self._over = False
        self._heard = threading.Condition()
        self._answers: dict[str, tuple[int, str]] = {}
        self._online: bool | None = None

    def _derived_topics(self) -> tuple[str, str, str]:
        """Topics of the last will, and of the meter's question and answer; empty when the topics are not Tasmota's."""
        match = _STANDARD.fullmatch(self.stat_topic)
        will = ask = answer = ""
        if match is not None and match["prefix"] == "stat" and self.cmnd_topic.startswith(f"cmnd/{match['topic']}/"):
            topic = match["topic"]
            will, ask, answer = f"tele/{topic}/LWT", f"cmnd/{topic}/STATUS", f"stat/{topic}/STATUS8"
        return (will if self.lwt_topic is None else self.lwt_topic), ask, answer

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_power.client.PowerClient"

    @property
    def target(self) -> str:
        """The relay, for messages."""
        return f"Tasmota relay {self.cmnd_topic}"

    @property
    def _broker_name(self) -> str:
        return self.host if self.transport == "unix" else f"{self.host}:{self.port}"

    # power

    def switch(self, on: bool) -> None:
        """Publish the command and wait for the device's answer, whatever it says."""
        self._question(self.cmnd_topic, self.on_payload if on else self.off_payload, self.stat_topic)

    def state(self) -> PowerState:
        """Ask the device."""
        payload = self._question(self.cmnd_topic, "", self.stat_topic)
        word = self._word(payload)
        return "on" if word == self.on_payload else "off" if word == self.off_payload else "unknown"

    def _word(self, payload: str) -> str:
        """The state in an answer: the answer itself, or the relay's key where stat_topic is .../RESULT."""
        if not payload.startswith("{"):
            return payload.strip()
        name = self.cmnd_topic.rpartition("/")[2].upper()
        try:
            document = json.loads(payload)
        except ValueError:
            raise PowerError(f"{self.target}: the answer on {self.stat_topic} is no JSON: {payload:.60}") from None
        for key in (name, "POWER" if name == "POWER1" else "POWER1"):  # a device with one relay says POWER
            if key in document:
                return str(document[key])
        return ""

    def measure(self) -> PowerReading:
        """Ask the meter. Raises `NotImplementedError` for devices without one."""
        if not self._ask_energy:
            return super().measure()
        payload = self._question(self._ask_energy, "8", self._energy)
        try:
            energy = json.loads(payload)["StatusSNS"]["ENERGY"]
            return PowerReading(voltage=_number(energy["Voltage"]), current=_number(energy["Current"]))
        except (KeyError, TypeError, ValueError, IndexError):
            raise NotImplementedError(f"{self.target}: the device has no meter for volts and amperes") from None

    def reset(self) -> None:
        """Switch off only with off_at_reset."""
        super().reset()
        with self._connecting:
            self._over = False
        if self.off_at_reset:
            self.off()

    def close(self) -> None:
        """Disconnect; switch off before only with off_at_close."""
        super().close()
        try:
            if self.off_at_close and self._used:
                self.off()
        except OSError as error:
            self.logger.error("%s: could not be switched off at the end: %s", self.target, error)
        finally:
            with self._connecting:  # not before a connection that is being made stands, or failed
                self._over = True
                self._disconnect()

    # questions

    def _question(self, topic: str, payload: str, answer_topic: str) -> str:
        """Publish, and return the first answer that came after it.

        Raises `ConnectionError` when the device is known to be offline, `TimeoutError` when there is no answer.
        """
        deadline = time.monotonic() + self._patience
        self._used = True
        link = self._connected(deadline)
        with self._heard:
            before = self._answers.get(answer_topic, (0, ""))[0]
        try:
            link.publish(topic, payload, deadline)
        except OSError:
            # What the broker did not take must not switch anything later.
            self._disconnect()
            raise

        def settled() -> bool:
            return self._answers.get(answer_topic, (0, ""))[0] != before or self._online is False

        with self._heard:
            self._heard.wait_for(settled, max(0.0, deadline - time.monotonic()))
            count, text = self._answers.get(answer_topic, (0, ""))
            if count != before:
                return text
            if self._online is False:
                raise ConnectionError(
                    f"{self.target}: the device is offline, says the broker {self._broker_name} ({self._lwt})"
                )
        known = "is online" if self._online else "was never seen there"
        raise TimeoutError(
            f"{self.target}: no answer on {answer_topic} within {self._patience:g} s; the device {known} "
            f"(broker {self._broker_name}): check the topics, and that they belong to this device"
        )

    def _connected(self, deadline: float) -> MqttLink:
        with self._connecting:
            if self._over:  # a call that was under way in its thread when the session ended
                raise ConnectionError(f"{self.target}: the session has ended")
            return self._connected_alone(deadline)

    def _connected_alone(self, deadline: float) -> MqttLink:
        link = self._link
        if link is not None and link.ready:
            return link
        # A lost connection is not waited for but made anew: what went wrong is then known, and not only that it did.
        self._disconnect()
        while True:
            try:
                return self._open()
            except ConnectionError:
                if link is None or time.monotonic() + _RESTART_PAUSE > deadline:
                    raise
            time.sleep(_RESTART_PAUSE)  # it was there a moment ago: a broker that restarts

    def _open(self) -> MqttLink:
        broker = Broker(
            host=self.host,
            port=self.port,
            transport=self.transport,
            websocket_path=self.websocket_path,
            client_id=self.client_id,
            username=self.username,
            password=read_secret("password", self.password, self.password_file),
            tls=self.tls,
            tls_ca=self.tls_ca,
            tls_verify=self.tls_verify,
        )
        optional = [topic for topic in (self._lwt, self._energy) if topic]
        link = MqttLink(broker, [self.stat_topic], optional, self._on_message, self._patience)
        self._link = link
        try:
            link.open()
        except BaseException:
            self._disconnect()
            raise
        return link

    def _disconnect(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        with self._heard:
            self._online = None

    def _on_message(self, topic: str, text: str, kept: bool) -> None:
        with self._heard:
            if topic == self._lwt:
                self._online = text.strip().lower() == "online"
            elif not kept:  # what the broker kept is an answer to somebody else's question of long ago
                self._answers[topic] = (self._answers.get(topic, (0, ""))[0] + 1, text)
            self._heard.notify_all()


def _number(value: Any) -> float:
    """A meter with several phases answers with a list; the first is ours."""
    return float(value[0] if isinstance(value, list) else value)


def _check_topic(name: str, topic: str | None) -> None:
    if topic is None or (topic == "" and name == "lwt_topic"):
        return
    if not topic or set(topic) & {"+", "#", "\0"} or len(topic.encode()) > 65535:
        raise ConfigurationError(f'{name} is "{topic}", must be one topic, without + and #')
