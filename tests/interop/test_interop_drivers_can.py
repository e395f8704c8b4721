# SPDX-License-Identifier: Apache-2.0
"""CAN drivers and clients of the real Jumpstarter 0.9 against ours, both ways."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import can
import isotp
import pytest
from original_exporters import our_client, our_exporter, their_exporter

from jumpstarter.client.aio import connect
from jumpstarter_agent.errors import AgentError
from jumpstarter_agent.ops.can import _exchange as exchange
from jumpstarter_agent.ops.can import _Wish as Wish
from jumpstarter_driver_can.notation import format_frame, parse_frame

KIND = "jumpstarter_driver_can.driver"
BUS = {"interface": "virtual", "channel": "interop"}
EXPORT: dict[str, Any] = {
    "a": {"type": f"{KIND}.Can", "config": BUS},
    "b": {"type": f"{KIND}.Can", "config": BUS},
}
WAITS = {"blocking_send": True}
LINKS = {
    name: {"type": f"{KIND}.IsoTpPython", "config": {**BUS, "address": {"txid": tx, "rxid": rx}, "params": WAITS}}
    for name, tx, rx in (("left", 0x7E0, 0x7E8), ("right", 0x7E8, 0x7E0))
}  # fmt: skip

# What a user of 0.9 writes; run with its packages only.
PROGRAM = """
import can, isotp
from jumpstarter.utils.env import env
with env() as client:
    a, b = client.a, client.b
    print(a.channel_info, a.state.name, a.protocol.name)
    b.set_filters([{"can_id": 0x120, "can_mask": 0x7F0, "extended": False}])
    for ident in (0x111, 0x123, 0x124):
        a.send(can.Message(arbitration_id=ident, data=b"\\x00\\xff", is_extended_id=False), timeout=1)
    got = [b.recv(5), b.recv(5)]
    print([(m.arbitration_id, bytes(m.data).hex(), m.is_extended_id, m.dlc) for m in got])
    b.set_filters(None)
    task = a.send_periodic(can.Message(arbitration_id=0x55, data=b"x"), 0.02, autostart=False)
    task.start()
    print([next(iter(b)).arbitration_id for _ in range(3)])
    task.stop()
    nine = lambda m: m.data.__setitem__(0, 9)
    modified = a.send_periodic(can.Message(arbitration_id=0x56, data=b"\\x00"), 0.05, modifier_callback=nine)
    while (m := b.recv(5)).arbitration_id != 0x56:
        pass
    print(bytes(m.data).hex())
    modified.stop()
    for what in (a.flush_tx_buffer, lambda: setattr(a, "state", can.BusState.PASSIVE)):
        try:
            what()
        except NotImplementedError as error:
            print(type(error).__name__)
    left, right = client.left, client.right
    left.start(); right.start()
    left.send(bytes(range(200)))
    print(len(right.recv(block=True, timeout=5)), right.available(), left.transmitting(), right.recv())
    half = lambda **kw: isotp.Address(addressing_mode=isotp.AddressingMode.Normal_29bits, **kw)
    left.set_address(isotp.AsymmetricAddress(half(tx_only=True, txid=1), half(rx_only=True, rxid=2)))
    right.set_address(half(txid=2, rxid=1))
    right.send(b"other addresses")
    print(left.recv(True, 5))
    left.stop(); right.stop()
    a.shutdown()
"""


def test_a_client_of_the_original_uses_our_buses_and_links(original: Path, tmp_path: Path) -> None:
    with our_exporter(original, tmp_path, {**EXPORT, **LINKS}) as theirs:
        said = theirs.python(PROGRAM)
    assert said.splitlines() == [
        "Virtual bus channel interop ACTIVE CAN_20",
        "[(291, '00ff', False, 2), (292, '00ff', False, 2)]",
        "[85, 85, 85]",
        "09",
        "DriverMethodNotImplemented",
        "DriverMethodNotImplemented",
        "200 False False None",
        "bytearray(b'other addresses')" if "bytearray" in said else "b'other addresses'",
    ]


# 0.9 cannot be told an ISO-TP address in a configuration file (its exporter refuses the mapping), so its links have no
# test in this direction.
def test_our_client_uses_buses_of_the_original(original: Path, tmp_path: Path) -> None:
    with their_exporter(original, tmp_path, EXPORT) as address:
        with our_client(address) as client:
            _drive(client.a, client.b)
        asyncio.run(_play(address))


def _drive(a: Any, b: Any) -> None:
    assert (a.channel_info, a.state, a.protocol) == (
        "Virtual bus channel interop",
        can.BusState.ACTIVE,
        can.CanProtocol.CAN_20,
    )
    b.set_filters([{"can_id": 0x120, "can_mask": 0x7F0, "extended": False}])
    for ident in (0x111, 0x123):
        a.send(can.Message(arbitration_id=ident, data=b"\x00\xff", is_extended_id=False))
    got = b.recv(5)
    assert (got.arbitration_id, bytes(got.data), got.is_extended_id) == (0x123, b"\x00\xff", False)
    b.set_filters(None)
    assert a.send_many([can.Message(arbitration_id=5, is_fd=True, data=bytes(64))] * 3) == 3
    assert [bytes(b.recv(5).data) for _ in range(3)] == [bytes(64)] * 3
    task = a.send_periodic(can.Message(arbitration_id=0x55, data=b"x"), 0.02)
    assert [b.recv(5).arbitration_id for _ in range(3)] == [0x55] * 3
    task.stop()
    with pytest.raises(NotImplementedError):
        a.flush_tx_buffer()
    while b.recv(0.2) is not None:
        pass
    with can.Notifier(a, [], timeout=0.2) as left, can.Notifier(b, [], timeout=0.2) as right:
        stacks = [
            isotp.NotifierBasedCanStack(
                bus, notifier, address=isotp.Address(txid=tx, rxid=rx), params={"blocking_send": True}
            )
            for bus, notifier, tx, rx in ((a, left, 1, 2), (b, right, 2, 1))
        ]
        for one in stacks:
            one.start()
        stacks[0].send(bytes(200), send_timeout=30)
        assert stacks[1].recv(True, 10) == bytes(200)
        for one in stacks:
            one.stop()


async def _play(address: str) -> None:
    """What the action `can` does with an exporter that has no `exchange`."""
    wish = {"periodic": [], "period": 1.0, "duration": None, "stop": [], "request": None, "response": None}
    async with connect(address, insecure=True) as session:
        a, b = session.node("a"), session.node("b")
        for text in ("111#00", "123#0A0B"):
            await a.call("send", parse_frame(text), 1.0)
        wanted = Wish(frames=[], expect=[{"id": "123", "data": "0A*"}], timeout=5.0, fresh=False, **wish)
        assert [format_frame(frame) for frame in await exchange(b, wanted)] == ["123#0A0B"]
        with pytest.raises(AgentError, match="no frame 123#0A. within 0.3 s; no other came") as late:
            await exchange(b, Wish(**{**vars(wanted), "timeout": 0.3}))
        assert late.value.code == "timeout"
