# SPDX-License-Identifier: Apache-2.0
"""A connection to an MQTT broker that asks questions: publish a command, wait for the answer on another topic.

paho keeps the connection in a thread of its own. A lost connection stays lost (`ready`): its owner makes a new link,
which subscribes before anything is asked, and what the old one could not deliver is never delivered. Left to itself
paho would do that minutes later, and switch something on when nobody expects it.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import paho.mqtt.client as paho

__all__ = ["Broker", "MqttLink"]

_KEEPALIVE = 15  # seconds; a broker that fell silent is noticed after at most one and a half of it


@dataclass(frozen=True, kw_only=True)
class Broker:
    """Where the broker is and how it knows us. host: name, address, or path of a socket for the transport "unix"."""

    host: str
    port: int
    transport: Literal["tcp", "websockets", "unix"]
    websocket_path: str
    client_id: str | None
    username: str | None
    password: str | None = field(repr=False)
    tls: bool
    tls_ca: str | None
    tls_verify: bool

    @property
    def name(self) -> str:
        """For messages."""
        return self.host if self.transport == "unix" else f"{self.host}:{self.port}"


class MqttLink:
    """A connection with its subscriptions. topics: those that must be granted; optional: those that may be refused.

    heard: called in paho's thread for each message: topic, text, and whether the broker had kept it.
    """

    def __init__(
        self,
        broker: Broker,
        topics: list[str],
        optional: list[str],
        heard: Callable[[str, str, bool], None],
        timeout: float,
    ) -> None:
        self._broker = broker
        self._topics, self._optional = topics, optional
        self._heard = heard
        self._timeout = timeout
        self._changed = threading.Condition()
        self._ready = False
        self._refused: OSError | None = None
        self._awaited: dict[int, bool] = {}
        self._client = self._make_client()

    def _make_client(self) -> paho.Client:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        broker = self._broker
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=broker.client_id or "",
            transport=broker.transport,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._timeout
        if broker.transport == "websockets":
            client.ws_set_options(path=broker.websocket_path)
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        if broker.tls:
            client.tls_set_context(_tls_context(broker))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        return client

    def open(self) -> None:
        """Connect and subscribe. Raises `ConnectionError`, `TimeoutError`, `PermissionError`."""
        name = self._broker.name
        deadline = time.monotonic() + self._timeout
        try:
            self._client.connect(self._broker.host, self._broker.port, keepalive=_KEEPALIVE)
        except TimeoutError:
            raise TimeoutError(f"MQTT broker {name}: no answer within {self._timeout:g} s") from None
        except ssl.SSLError as error:
            why = getattr(error, "verify_message", "") or error.reason or "the connection is not TLS"
            raise ConnectionError(f"MQTT broker {name}: TLS failed: {why} (tls_ca names its authority)") from None
        except OSError as error:
            why = error.strerror or str(error) or "it ended the connection"
            raise ConnectionError(f"MQTT broker {name}: {why}{self._tls_hint()}") from None
        self._client.loop_start()
        self._wait_ready(deadline)

    def _tls_hint(self) -> str:
        return "" if self._broker.tls else "; does it want tls: true?"

    def close(self) -> None:
        """Disconnect and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def ready(self) -> bool:
        """Whether the connection stands and its subscriptions are granted."""
        with self._changed:
            return self._ready

    def _wait_ready(self, deadline: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._refused is not None, deadline - time.monotonic())
            if self._refused is not None:
                raise self._refused
            if not self._ready:
                raise TimeoutError(
                    f"MQTT broker {self._broker.name}: not connected within {self._timeout:g} s{self._tls_hint()}"
                )

    def publish(self, topic: str, payload: str, deadline: float) -> None:
        """Send, and wait until the broker has it. Raises `TimeoutError`, `ConnectionError`."""
        message = self._client.publish(topic, payload, qos=1)
        try:
            message.wait_for_publish(max(0.0, deadline - time.monotonic()))
        except (RuntimeError, ValueError) as error:
            raise ConnectionError(f"MQTT broker {self._broker.name}: {topic} could not be published: {error}") from None
        if not message.is_published():
            raise TimeoutError(f"MQTT broker {self._broker.name}: did not take {topic} within {self._timeout:g} s")

    # what paho calls, in its thread

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            if reason.is_failure:
                self._refused = PermissionError(
                    f"MQTT broker {self._broker.name}: refuses us: {reason} (username, password, client_id)"
                )
                self._changed.notify_all()
                return
            self._refused = None
            for topic in self._topics + self._optional:
                _, number = client.subscribe(topic, qos=1)
                if number is not None:
                    self._awaited[number] = topic in self._topics

    def _on_subscribe(self, client: paho.Client, userdata: Any, number: int, reasons: Any, properties: Any) -> None:
        with self._changed:
            needed = self._awaited.pop(number, False)
            if needed and any(reason.is_failure for reason in reasons):
                self._refused = PermissionError(
                    f"MQTT broker {self._broker.name}: does not let us read {', '.join(self._topics)}"
                )
            self._ready = not self._awaited
            self._changed.notify_all()

    def _on_disconnect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        with self._changed:
            self._ready = False
            self._awaited.clear()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        self._heard(message.topic, message.payload.decode("utf-8", "replace"), message.retain)


def _tls_context(broker: Broker) -> ssl.SSLContext:
    from jumpstarter.common.exceptions import ConfigurationError

    try:
        context = ssl.create_default_context(cafile=broker.tls_ca)
    except OSError as error:  # SSLError, for a file without certificates, is one
        raise ConfigurationError(f"tls_ca: {broker.tls_ca}: {error.strerror or 'no certificates in it'}") from None
    if not broker.tls_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
