# SPDX-License-Identifier: Apache-2.0
"""USB devices that drivers talk to themselves, with pyusb: found anew for each use, and errors that say what to do.

A device is opened for one operation and closed again. So it may be unplugged and plugged in at any time, another
program can use it in between, and constructing a driver touches no hardware. Everything here blocks: call it from a
worker thread.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["UsbDevice", "UsbKind", "UsbReport", "usb_opened"]

_ENGLISH = 0x0409
_BUSY_FOR = 3.0  # seconds to wait for another program that holds the interface
_BUSY_PAUSE = 0.05
_log = logging.getLogger(__name__)
_report_locks: dict[tuple[int, int], threading.Lock] = {}
_report_locks_guard = threading.Lock()
_late: set[tuple[int, int]] = set()  # devices that still owe an answer, by place; they may give it to the next question
_LATE_PAUSE = 100  # milliseconds in which an answer that is there already is read


@dataclass(frozen=True, kw_only=True)
class UsbKind:
    """What to look for.

    name: for messages, with the article left out ("YKUSH board"). ids: vendor and product ids. product: the product
    string it must have, where the ids alone do not tell. serial_ids: ids that only count when a serial number is asked
    for, because other devices have them too.
    """

    name: str
    ids: Sequence[tuple[int, int]]
    product: str | None = None
    serial_ids: Sequence[tuple[int, int]] = ()

    def where(self, serial: str | None) -> str:
        """How messages call the device with that serial number."""
        return f'{self.name} "{serial}"' if serial else self.name

    def looked_for(self, serial: str | None) -> str:
        """The ids, for messages."""
        ids = [*self.ids, *(self.serial_ids if serial else ())]
        return ", ".join(f"{vendor:04x}:{product:04x}" for vendor, product in ids)


@dataclass
class UsbDevice:
    """An open device. name: for messages; serial: "" when it has none; bus, address: where the kernel put it."""

    name: str
    serial: str
    timeout: float
    _device: Any = field(repr=False)

    @property
    def vendor_product(self) -> tuple[int, int]:
        """Its ids."""
        return self._device.idVendor, self._device.idProduct

    @property
    def place(self) -> tuple[int, int]:
        """Bus and address: what /sys/bus/usb/devices/*/busnum and devnum hold."""
        return int(self._device.bus or 0), int(self._device.address or 0)

    def interface(self, usb_class: int, subclass: int, protocol: int) -> int:
        """Number of the interface of that class. Raises OSError when the device has none."""
        with self.explained("read its descriptors"):
            for found in self._device.get_active_configuration():
                if (found.bInterfaceClass, found.bInterfaceSubClass, found.bInterfaceProtocol) == (
                    usb_class,
                    subclass,
                    protocol,
                ):
                    return int(found.bInterfaceNumber)
        raise OSError(
            errno.ENODEV,
            f"{self.name}: has no interface {usb_class:02x}/{subclass:02x}/{protocol:02x}: another firmware?",
        )

    def control_out(self, request_type: int, request: int, value: int, index: int, what: str) -> None:
        """A control transfer to the device, without data. what: for messages, an infinitive ("switch to the DUT")."""
        with self.explained(what):
            self._device.ctrl_transfer(request_type, request, value, index, None, self._milliseconds)

    def control_in(self, request_type: int, request: int, value: int, index: int, length: int, what: str) -> bytes:
        """A control transfer from the device."""
        with self.explained(what):
            return bytes(self._device.ctrl_transfer(request_type, request, value, index, length, self._milliseconds))

    @contextmanager
    def reports(self) -> Iterator[UsbReport]:
        """The HID interface for this program alone; the kernel's driver has it back afterwards."""
        with _report_locks_guard:
            lock = _report_locks.setdefault(self.place, threading.Lock())
        with lock, self.explained("use it"):
            interface = self._device.get_active_configuration()[(0, 0)]
            number = interface.bInterfaceNumber
            detached = self._claim(number)
            try:
                reports = UsbReport(self, list(interface))
                if self.place in _late:
                    reports.drain()
                    _late.discard(self.place)
                yield reports
            finally:
                self._release(number, attach=detached)

    def _claim(self, number: int) -> bool:
        """Take the interface; tells whether the kernel's driver had it."""
        import usb.core
        import usb.util

        deadline = time.monotonic() + _BUSY_FOR
        detached = False
        try:
            while True:
                # In each turn: another program that has just finished gives the interface back to the kernel.
                detached = _kernel_driver_detached(self._device, number) or detached
                try:
                    usb.util.claim_interface(self._device, number)
                    return detached
                except usb.core.USBError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > deadline:
                        raise
                    time.sleep(_BUSY_PAUSE)
        except BaseException:
            if detached:
                self._attach(number)
            raise

    def _release(self, number: int, *, attach: bool) -> None:
        import usb.core
        import usb.util

        try:
            usb.util.release_interface(self._device, number)
        except usb.core.USBError as error:  # unplugged: it is released then, and what was asked of it is decided
            _log.debug("%s: release: %s", self.name, error)
        if attach:
            self._attach(number)

    def _attach(self, number: int) -> None:
        import usb.core

        try:
            self._device.attach_kernel_driver(number)
        except usb.core.USBError as error:
            # The next program has the interface already, or it was unplugged. Neither makes the operation a failure.
            _log.debug("%s: the kernel's driver was not given it back: %s", self.name, error)

    @contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn pyusb's errors within the block into ours: one line, and a type for each kind of failure."""
        import usb.core

        try:
            yield
        except usb.core.USBError as error:
            raise explanation(error, self.name, what, self.timeout) from error

    @property
    def _milliseconds(self) -> int:
        return int(self.timeout * 1000)


class UsbReport:
    """Reports of a HID interface through its interrupt endpoints."""

    def __init__(self, device: UsbDevice, endpoints: Sequence[Any]) -> None:
        self._device = device
        into = [endpoint for endpoint in endpoints if endpoint.bEndpointAddress & 0x80]
        out = [endpoint for endpoint in endpoints if not endpoint.bEndpointAddress & 0x80]
        if not into or not out:
            raise OSError(errno.ENODEV, f"{device.name}: has no interrupt endpoints both ways: not a board we know")
        self._in, self._out = into[0], out[0]

    def exchange(self, report: bytes, what: str) -> bytes:
        """Send a report and return the answer."""
        milliseconds = int(self._device.timeout * 1000)
        try:
            with self._device.explained(what):
                self._out.write(report, milliseconds)
                return bytes(self._in.read(len(report), milliseconds))
        except TimeoutError:
            _late.add(self._device.place)
            raise

    def drain(self) -> None:
        """Forget answers that came too late: taken for those to later questions, they would tell the wrong state."""
        import usb.core

        try:
            for _ in range(16):
                self._in.read(self._in.wMaxPacketSize, _LATE_PAUSE)
        except usb.core.USBTimeoutError:
            return


@contextmanager
def usb_opened(kind: UsbKind, serial: str | None, timeout: float) -> Iterator[UsbDevice]:
    """The one device of *kind* (with that serial number), open. timeout: seconds per transfer.

    Raises FileNotFoundError when there is none, RuntimeError when there are several and nothing tells which is meant.
    """
    import usb.core
    import usb.util

    name = kind.where(serial)
    seen: list[Any] = []
    try:
        fitting = _candidates(kind, serial, name, timeout, seen)
        if not fitting:
            others = [str(found) for found in _serials(kind, seen) if found]
            there = f"; connected: {', '.join(others)}" if serial and others else ""
            raise FileNotFoundError(
                f"{name} is not there (looked for USB {kind.looked_for(serial)}): plugged in and powered?{there}"
            )
        if len(fitting) > 1:
            found = ", ".join(text or "(no serial number)" for _, text in fitting)
            raise RuntimeError(f"{len(fitting)} devices are a {kind.name} ({found}): name one with serial:")
        device, text = fitting[0]
        yield UsbDevice(name=kind.where(text), serial=text, timeout=timeout, _device=device)
    finally:
        for device in seen:
            usb.util.dispose_resources(device)


def explanation(error: OSError, name: str, what: str, timeout: float) -> OSError:
    """The exception that says it in our words."""
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return PermissionError(
                errno.EACCES, f"{name}: no permission to {what}: give this user access with a udev rule (see docs)"
            )
        case errno.ENODEV | errno.ENOENT | errno.EIO | errno.ESHUTDOWN | errno.EPROTO:
            return ConnectionError(f"{name}: cannot {what}: it was unplugged or does not answer ({error.strerror})")
        case errno.ETIMEDOUT:
            return TimeoutError(f"{name}: cannot {what}: no answer within {timeout:g} s")
        case errno.EBUSY:
            return OSError(errno.EBUSY, f"{name}: cannot {what}: another program on the exporter host holds it")
        case errno.EPIPE:
            return OSError(errno.EPIPE, f"{name}: refused to {what}: not the firmware this driver knows?")
    return OSError(error.errno or errno.EIO, f"{name}: cannot {what}: {error.strerror or error}")


def _candidates(kind: UsbKind, serial: str | None, name: str, timeout: float, seen: list[Any]) -> list[tuple[Any, str]]:
    """Devices that fit, with their serial numbers. What was looked at is added to *seen*."""
    import usb.core

    ids = {*kind.ids, *(kind.serial_ids if serial else ())}
    try:
        devices = usb.core.find(find_all=True, custom_match=lambda one: (one.idVendor, one.idProduct) in ids)
    except usb.core.NoBackendError:
        raise OSError(
            errno.ENOSYS, f"{name}: libusb is not installed on the exporter host (Debian: apt-get install libusb-1.0-0)"
        ) from None
    fitting = []
    silent: OSError | None = None
    for device in devices:
        seen.append(device)
        try:
            by_product = kind.product is not None and (device.idVendor, device.idProduct) in kind.ids
            if by_product and _string(device, device.iProduct) != kind.product:
                continue
            found = _string(device, device.iSerialNumber)
        except usb.core.USBError as error:
            if error.errno in (errno.ENODEV, errno.EIO, errno.ENOENT):
                continue  # unplugged while we looked
            silent = silent or explanation(error, name, "open it", timeout)
            continue
        if serial is None or found == serial:
            fitting.append((device, found))
    # One that hides its name is no reason against the one that was named, but against a choice among unnamed ones.
    if silent is not None and (serial is None or not fitting):
        raise silent
    return fitting


def _serials(kind: UsbKind, devices: Sequence[Any]) -> Iterator[str]:
    import usb.core

    for device in devices:
        try:
            yield _string(device, device.iSerialNumber)
        except usb.core.USBError:
            yield ""  # only for a message about another one


def _string(device: Any, index: int) -> str:
    """A string descriptor. With the language given: pyusb hides a missing permission when it asks for languages."""
    import usb.util

    return str(usb.util.get_string(device, index, _ENGLISH) or "") if index else ""


def _kernel_driver_detached(device: Any, number: int) -> bool:
    """Take the interface from the kernel's driver, as libusb demands; False when it had none."""
    import usb.core

    try:
        if not device.is_kernel_driver_active(number):
            return False
    except NotImplementedError:  # a platform without such drivers
        return False
    try:
        device.detach_kernel_driver(number)
    except usb.core.USBError as error:
        if error.errno != errno.ENOENT:
            raise
        return False  # another program was quicker, and gives it back
    return True
