# SPDX-License-Identifier: Apache-2.0
"""Fake Tasmota device: keeps a relay or several, and speaks the firmware's MQTT dialect through a real broker."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion


class FakeTasmota:
    """relays: 1..count. stuck: relays that never move. silent: hears and does not answer. retain: PowerRetain is on."""

    def __init__(self, topic: str, count: int = 1, meter: bool = False) -> None:
        self.topic = topic
        self.relays = dict.fromkeys(range(1, count + 1), "OFF")
        self.stuck: set[int] = set()
        self.silent = False
        self.retain = False
        self.meter = meter
        self.commands: list[tuple[str, str]] = []
        self._listening = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"DVES_{topic}")
        self.client.will_set(f"tele/{topic}/LWT", "Offline", qos=1, retain=True)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._listening.set()
        self.client.on_message = self._on_message

    def _on_connect(self, client: paho.Client, *_: Any) -> None:
        client.publish(f"tele/{self.topic}/LWT", "Online", qos=1, retain=True)
        client.subscribe(f"cmnd/{self.topic}/#", qos=1)

    def _on_message(self, client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        name, payload = message.topic.rpartition("/")[2].upper(), message.payload.decode()
        self.commands.append((name, payload))
        if self.silent:
            return
        if name == "STATUS" and payload == "8":
            energy = {"ENERGY": {"Voltage": 231, "Current": 0.25, "Power": 57}} if self.meter else {}
            client.publish(f"stat/{self.topic}/STATUS8", json.dumps({"StatusSNS": {"Time": "now", **energy}}))
            return
        digits = name.removeprefix("POWER")
        relay = int(digits or 1)
        if not name.startswith("POWER") or relay not in self.relays:
            client.publish(f"stat/{self.topic}/RESULT", json.dumps({"Command": "Unknown"}))
            return
        if payload.upper() in ("ON", "OFF") and relay not in self.stuck:
            self.relays[relay] = payload.upper()
        name = "POWER" if len(self.relays) == 1 else f"POWER{relay}"
        state = self.relays[relay]
        client.publish(f"stat/{self.topic}/RESULT", json.dumps({name: state}))
        client.publish(f"stat/{self.topic}/{name}", state, retain=self.retain)

    @contextmanager
    def connected(self, port: int) -> Iterator[FakeTasmota]:
        """Connected to the broker at this port of the loopback; leaves politely, so without its last will."""
        self._listening.clear()  # of an earlier connection: a command that comes before the subscription is lost
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        try:
            assert self._listening.wait(10), "the fake device got no subscription"
            yield self
        finally:
            self.client.disconnect()
            self.client.loop_stop()

    def vanish(self) -> None:
        """Lose power: the broker publishes the last will."""
        self.client.loop_stop()
        socket = self.client.socket()
        assert socket is not None
        socket.close()

    def wait_connected_again(self) -> None:
        assert self._listening.wait(20), "the fake device did not come back"

    def forget_connection(self) -> None:
        self._listening.clear()
