# SPDX-License-Identifier: Apache-2.0
"""The console of a DUTLink board: the terminal that the kernel gives it, found by the board's serial number."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass, field

from jumpstarter.common.usb_sysfs import terminals_of
from jumpstarter_driver_dutlink.board import DUTLINK, DutlinkConfig
from jumpstarter_driver_pyserial.driver import PySerial
from jumpstarter_driver_pyserial.ports import Port, PortFactory

__all__ = ["DutlinkSerial"]


@dataclass(kw_only=True)
class DutlinkSerial(PySerial, DutlinkConfig):
    """The board's own console. Fields: those of `PySerial` but the url, which is found each time the port is opened."""

    url: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.url = f"dutlink://{self.serial or 'any'}"  # for messages; a scheme, so that nobody looks for a file
        super().__post_init__()

    def _port_factory(self) -> PortFactory:
        return _BoardFactory(self)

    def find_terminal(self) -> str:
        """Path of the board's terminal; blocking. Raises OSError when there is none, RuntimeError when several."""
        serial = self.true_serial()
        found = terminals_of(DUTLINK.ids[0], serial)
        if not found:
            raise FileNotFoundError(
                errno.ENOENT, f'the kernel has made no terminal for DUTLink "{serial}" (module cdc_acm missing?)'
            )
        if len(found) > 1:
            paths = ", ".join(terminal.path for terminal in found)
            raise RuntimeError(f'DUTLink "{serial}" has several terminals ({paths}): name one with alternate_console')
        return found[0].path


class _BoardFactory(PortFactory):
    """Opens the terminal the board has now: after it was unplugged, that may be another one."""

    def __init__(self, driver: DutlinkSerial) -> None:
        self.name = f"console of {driver.target}"
        self._driver = driver

    async def open(self) -> Port:
        driver = self._driver
        try:
            path = await asyncio.to_thread(driver.find_terminal)
        except RuntimeError as error:
            raise OSError(errno.ENOTUNIQ, str(error)) from error
        port = PySerial(
            url=path,
            baudrate=driver.baudrate,
            disable_hupcl=driver.disable_hupcl,
            bytesize=driver.bytesize,
            parity=driver.parity,
            stopbits=driver.stopbits,
            rtscts=driver.rtscts,
            xonxoff=driver.xonxoff,
            exclusive=driver.exclusive,
            check_present=False,
        )
        return await port.hub.factory.open()
