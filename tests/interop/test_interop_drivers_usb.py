# SPDX-License-Identifier: Apache-2.0
"""The clients of Jumpstarter 0.9 with our drivers of USB boards."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal
from original_exporters import TheirClient

for area in ("storage", "usb"):
    sys.path.insert(0, str(Path(__file__).parents[1] / area))

from usb_boards import Dutlink as DutlinkBoard  # noqa: E402
from usb_boards import SDWire as SDWireBoard  # noqa: E402
from usb_boards import Ykush as YkushBoard  # noqa: E402
from usb_bus import Bus, bridged  # noqa: E402
from usb_slots import slot  # noqa: E402

from jumpstarter.common.enums import ExporterStatus  # noqa: E402
from jumpstarter.exporter.server import UnixListener, serve_session  # noqa: E402
from jumpstarter.exporter.session import Session  # noqa: E402
from jumpstarter_driver_composite.driver import Composite  # noqa: E402
from jumpstarter_driver_dutlink.driver import Dutlink  # noqa: E402
from jumpstarter_driver_sdwire.driver import SDWire  # noqa: E402
from jumpstarter_driver_yepkit.driver import Ykush  # noqa: E402

THEIR_CLIENT = """
import sys
from jumpstarter.utils.env import env
with env() as client:
    client.ykush.off(); client.ykush.on(); client.ykush.off()
    client.dut.power.on()
    print([(r.voltage, r.current) for r, _ in zip(client.dut.power.read(), range(2))])
    client.dut.power.rescue()
    client.dut.power.off()
    client.card.flash(sys.argv[1])
    client.card.host()
    client.card.read_local_file(sys.argv[2])
    client.card.dut()
    client.dut.storage.flash(sys.argv[1])
    client.dut.storage.off()
    print(sorted(type(one).__name__ for one in (client.ykush, client.card, client.dut, client.dut.storage)))
"""


def test_clients_of_the_original_drive_our_usb_drivers(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    image, dumped = tmp_path / "image", tmp_path / "dumped"
    image.write_bytes(os.urandom(1 << 20))
    with ExitStack() as stack:
        bus = Bus()
        stack.callback(bus.close)
        stack.enter_context(bridged(bus, monkeypatch))
        card = stack.enter_context(slot(tmp_path / "card"))
        stick = stack.enter_context(slot(tmp_path / "stick"))
        ykush, sdwire = YkushBoard("YK1"), SDWireBoard("sdw1", on_switch=card.switched)
        dutlink = DutlinkBoard("dl1", on_storage=stick.switched)
        for board in (ykush, sdwire, dutlink):
            bus.plug(board.usb)
        root = Composite(
            children={
                "ykush": Ykush(serial="YK1", port="1"),
                "card": SDWire(serial="sdw1", storage_device=str(card.path)),
                "dut": Dutlink(serial="dl1", storage_device=str(stick.path)),
            }
        )
        portal = stack.enter_context(start_blocking_portal())
        session = stack.enter_context(Session(root_device=root))
        path = tmp_path / "socket"
        stack.enter_context(portal.wrap_async_context_manager(serve_session(session, UnixListener(str(path)), grace=0)))
        session.update_status(ExporterStatus.LEASE_READY)
        said = TheirClient(original, path).python(THEIR_CLIENT, image, dumped)
        lines = [line for line in said.splitlines() if line.startswith("[")]
        assert lines == [
            "[(5.0, 0.42), (5.0, 0.42)]",
            "['CompositeClient', 'PowerClient', 'StorageMuxFlasherClient', 'StorageMuxFlasherClient']",
        ]
        assert ykush.ports == {1: False, 2: True, 3: True}
        assert [value for request, value in dutlink.requests if request == 1] == [1, 4, 0]
        assert (sdwire.side, dutlink.storage) == ("dut", "off")
        assert card.backing.read_bytes()[: 1 << 20] == stick.backing.read_bytes()[: 1 << 20] == image.read_bytes()
        assert dumped.read_bytes() == card.backing.read_bytes()
