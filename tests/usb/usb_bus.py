# SPDX-License-Identifier: Apache-2.0
"""A USB/IP server with emulated devices that are plugged in and unplugged, and pyusb on top of it without a kernel.

`Bus` serves devices of the PyPI library usbip; the kernel of the test guest attaches them (guest_usb.py), or
`bridged` lets pyusb of this process see them.
"""

from __future__ import annotations

import array
import errno
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import usb.backend
import usb.backend.libusb1
import usb.core
import usbip.core
import usbip.host
import usbip.protocol
import usbip.transport


class Bus(usbip.transport.Transport):
    """One USB/IP server on a free port of the loopback. Devices are named on it 1-1, 1-2, ... and never renamed."""

    def __init__(self) -> None:
        self.devices: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._connections: dict[socket.socket, Any] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="usbip server", daemon=True).start()

    def plug(self, device: Any) -> str:
        """Plug a device in and return its name on the bus."""
        number = next(self._numbers)
        device.set_busid(f"1-{number}")
        device.busnum, device.devnum = 1, number + 1
        with self._lock:
            self.devices[device.busid] = device
        return str(device.busid)

    def unplug(self, device: Any) -> None:
        """Pull a device out: whoever uses it loses it at once."""
        with self._lock:
            self.devices.pop(device.busid, None)
            gone = [peer for peer, used in self._connections.items() if used is device]
        for peer in gone:
            _hang_up(peer)

    def serve(self, dev: Any) -> None:
        self.plug(dev)

    def connect(self) -> socket.socket:
        """A connection as a host makes it."""
        peer = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def close(self) -> None:
        """Stop serving."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            gone = list(self._connections)
        for peer in gone:
            _hang_up(peer)

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with self._lock:
            offered = [_Noting(device, self, peer) for device in self.devices.values()]
        try:
            usbip.protocol.serve_connection(peer, offered)
        finally:
            with self._lock:
                self._connections.pop(peer, None)

    def note(self, peer: socket.socket, device: Any) -> bool:
        """A host uses the device; tells whether it is the only one."""
        with self._lock:
            alone = device not in self._connections.values()
            self._connections[peer] = device
        return alone


class _Noting:
    """A device as one connection sees it; tells the bus when that connection takes it."""

    def __init__(self, device: Any, bus: Bus, peer: socket.socket) -> None:
        self._device, self._bus, self._peer = device, bus, peer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def reset_io(self) -> None:
        # For the library each connection is a fresh plug. Here a second one is a second program on the same machine.
        if self._bus.note(self._peer, self._device):
            self._device.reset_io()


def _hang_up(peer: socket.socket) -> None:
    try:
        peer.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it went by itself


# --- pyusb without a kernel ------------------------------------------------------------------------------------------


class Bridge(usb.backend.IBackend):
    """pyusb's backend over `Bus`. It keeps account of kernel drivers and claims as Linux does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.denied = False  # as for a user without a udev rule
        self.claimed: dict[tuple[str, int], Any] = {}
        self.kernel: dict[tuple[str, int], bool] = {}  # interfaces that usbhid has taken
        self.opens = 0

    def enumerate_devices(self) -> Iterator[Any]:
        yield from list(self.bus.devices.values())

    def get_parent(self, dev: Any) -> None:
        return None

    def get_device_descriptor(self, dev: Any) -> Any:
        told = dev.device_descriptor()
        names = (
            "bcdUSB bDeviceClass bDeviceSubClass bDeviceProtocol bMaxPacketSize0 idVendor idProduct bcdDevice "
            "iManufacturer iProduct iSerialNumber bNumConfigurations"
        ).split()
        fields = {name: getattr(told, name) for name in names}
        place = {"bus": dev.busnum, "address": dev.devnum, "port_number": 1, "port_numbers": (1,), "speed": 2}
        return SimpleNamespace(bLength=18, bDescriptorType=1, **fields, **place)

    def _descriptors(self, dev: Any, kind: int) -> list[bytes]:
        return [bytes(one) for one in usbip.core.iter_descriptors(dev.config_bytes()) if one[1] == kind]

    def get_configuration_descriptor(self, dev: Any, config: int) -> Any:
        if config:
            raise IndexError(config)
        raw = dev.config_bytes()
        return SimpleNamespace(
            bLength=9, bDescriptorType=2, wTotalLength=len(raw), bNumInterfaces=raw[4], bConfigurationValue=raw[5],
            iConfiguration=raw[6], bmAttributes=raw[7], bMaxPower=raw[8], extra_descriptors=[],
        )  # fmt: skip

    def _interfaces(self, dev: Any) -> list[tuple[bytes, list[bytes]]]:
        found: list[tuple[bytes, list[bytes]]] = []
        for one in usbip.core.iter_descriptors(dev.config_bytes()):
            if one[1] == 4:
                found.append((bytes(one), []))
            elif one[1] == 5:
                found[-1][1].append(bytes(one))
        return found

    def get_interface_descriptor(self, dev: Any, intf: int, alt: int, config: int) -> Any:
        if alt:
            raise IndexError(alt)
        raw = self._interfaces(dev)[intf][0]
        names = (
            "bLength bDescriptorType bInterfaceNumber bAlternateSetting bNumEndpoints bInterfaceClass "
            "bInterfaceSubClass bInterfaceProtocol iInterface"
        ).split()
        return SimpleNamespace(**dict(zip(names, raw, strict=True)), extra_descriptors=[])

    def get_endpoint_descriptor(self, dev: Any, ep: int, intf: int, alt: int, config: int) -> Any:
        raw = self._interfaces(dev)[intf][1][ep]
        return SimpleNamespace(
            bLength=7, bDescriptorType=5, bEndpointAddress=raw[2], bmAttributes=raw[3],
            wMaxPacketSize=raw[4] | raw[5] << 8, bInterval=raw[6], bRefresh=0, bSynchAddress=0, extra_descriptors=[],
        )  # fmt: skip

    def open_device(self, dev: Any) -> Any:
        if self.denied:
            raise usb.core.USBError("Access denied (insufficient permissions)", -3, errno.EACCES)
        self.opens += 1
        connection = usbip.host.Connection(self.bus.connect())
        try:
            connection.import_device(dev.busid)
        except usbip.core.USBError:
            connection.close()
            raise _gone() from None
        return SimpleNamespace(dev=dev, connection=connection)

    def close_device(self, dev_handle: Any) -> None:
        for key in [key for key, holder in self.claimed.items() if holder is dev_handle]:
            del self.claimed[key]
        dev_handle.connection.close()

    def get_configuration(self, dev_handle: Any) -> int:
        return 1

    def set_configuration(self, dev_handle: Any, config_value: int) -> None:
        raise AssertionError("a driver has no business with the configuration: it resets the device's other functions")

    def is_kernel_driver_active(self, dev_handle: Any, intf: int) -> bool:
        return self.kernel.get((dev_handle.dev.busid, intf), _is_hid(self._interfaces(dev_handle.dev)[intf][0]))

    def detach_kernel_driver(self, dev_handle: Any, intf: int) -> None:
        self.kernel[(dev_handle.dev.busid, intf)] = False

    def attach_kernel_driver(self, dev_handle: Any, intf: int) -> None:
        self.kernel[(dev_handle.dev.busid, intf)] = True

    def claim_interface(self, dev_handle: Any, intf: int) -> None:
        key = (dev_handle.dev.busid, intf)
        if self.is_kernel_driver_active(dev_handle, intf) or self.claimed.get(key, dev_handle) is not dev_handle:
            raise usb.core.USBError("Resource busy", -6, errno.EBUSY)
        self.claimed[key] = dev_handle

    def release_interface(self, dev_handle: Any, intf: int) -> None:
        self.claimed.pop((dev_handle.dev.busid, intf), None)

    def ctrl_transfer(
        self, dev_handle: Any, bmRequestType: int, bRequest: int, wValue: int, wIndex: int, data: Any, timeout: int
    ) -> int:
        with _as_libusb(dev_handle, timeout):
            if bmRequestType & 0x80:
                got = bytes(dev_handle.connection.control(bmRequestType, bRequest, wValue, wIndex, len(data)))
                data[: len(got)] = array.array("B", got)
                return len(got)
            dev_handle.connection.control(bmRequestType, bRequest, wValue, wIndex, bytes(data))
            return len(data)

    def intr_write(self, dev_handle: Any, ep: int, intf: int, data: Any, timeout: int) -> int:
        assert self.claimed.get((dev_handle.dev.busid, intf)) is dev_handle, "not claimed"
        with _as_libusb(dev_handle, timeout):
            return int(dev_handle.connection.transfer_out(ep & 15, bytes(data), interval=1))

    def intr_read(self, dev_handle: Any, ep: int, intf: int, buff: Any, timeout: int) -> int:
        with _as_libusb(dev_handle, timeout):
            got = bytes(dev_handle.connection.transfer_in(ep & 15, len(buff), interval=1))
            buff[: len(got)] = array.array("B", got)
            return len(got)


def _is_hid(interface: bytes) -> bool:
    return interface[5] == 3


def _gone() -> usb.core.USBError:
    return usb.core.USBError("No such device (it may have been disconnected)", -4, errno.ENODEV)


@contextmanager
def _as_libusb(handle: Any, timeout: int) -> Iterator[None]:
    """Time limit and errors as libusb has them."""
    handle.connection.sock.settimeout(timeout / 1000)
    try:
        yield
    except TimeoutError:
        raise usb.core.USBTimeoutError("Operation timed out", -7, errno.ETIMEDOUT) from None
    except usbip.core.Stall:
        raise usb.core.USBError("Pipe error", -9, errno.EPIPE) from None
    except (OSError, usbip.core.USBError) as error:
        raise _gone() from error


@contextmanager
def bridged(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bridge]:
    """Let pyusb of this process see the devices of *bus*, and only those."""
    bridge = Bridge(bus)
    monkeypatch.setattr(usb.backend.libusb1, "get_backend", lambda *_, **__: bridge)
    yield bridge
