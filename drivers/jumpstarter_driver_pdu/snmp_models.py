# SPDX-License-Identifier: Apache-2.0
"""PDUs that are switched over SNMP: the columns and numbers of their MIBs.

Each row was read in the MIB (or the vendor's page) that it names. A column is followed by the outlet's index.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jumpstarter_driver_pdu.model import Model, outlet_index
from jumpstarter_driver_power.common import PowerReading, PowerState

if TYPE_CHECKING:
    from jumpstarter_driver_pdu.driver import Pdu

__all__ = ["SNMP_MODELS", "Columns"]

_ENTERPRISES = "1.3.6.1.4.1"


@dataclass(frozen=True)
class Columns:
    """on, off: the column that switches, the number it takes. state: the column that tells, its numbers of on and off.

    prefix: what stands before the outlet's number in the index, when a configuration gives only the number.
    """

    on: tuple[str, int]
    off: tuple[str, int]
    state: tuple[str, tuple[int, ...], tuple[int, ...]]
    prefix: str = ""


class SnmpBackend:
    """An outlet behind an SNMP agent."""

    def __init__(self, pdu: Pdu, columns: Columns) -> None:
        from jumpstarter_driver_snmp.access import Agent, Outlet, StateColumn

        outlet = str(pdu.outlet)
        index = outlet if "." in outlet or not columns.prefix else f"{columns.prefix}.{outlet}"
        column, on, off = columns.state
        self._outlet = Outlet(
            (f"{columns.on[0]}.{index}", columns.on[1]),
            (f"{columns.off[0]}.{index}", columns.off[1]),
            (StateColumn(f"{column}.{index}", on, off),),
        )
        self._settings = pdu.snmp_settings()
        self._agent = Agent(pdu.host, pdu.effective_port, pdu.timeout, pdu.retries)

    def switch(self, on: bool) -> None:
        """SET."""
        self._outlet.switch(self._agent, self._settings.credentials(), on)

    def state(self) -> PowerState:
        """GET."""
        return self._outlet.state(self._agent, self._settings.credentials())

    def measure(self) -> PowerReading:
        """Not offered: few of these devices measure single outlets."""
        raise NotImplementedError("this PDU's driver cannot measure")

    def close(self) -> None:
        """Let the engine go."""
        self._agent.close()


def _model(title: str, source: str, columns: Columns) -> Model:
    outlets = "number" if not columns.prefix else f"number (index {columns.prefix}.NUMBER), or the whole index"
    return Model(
        title=title,
        source=source,
        kind="snmp",
        port=161,
        outlets=outlets,
        check=outlet_index(columns.prefix),
        make=lambda pdu: SnmpBackend(pdu, columns),
    )


def _same(
    column: str, on: int, off: int, state: tuple[str, tuple[int, ...], tuple[int, ...]] | None = None, prefix: str = ""
) -> Columns:
    """Columns of a device that switches on and off in one column, and tells the state there or in `state`."""
    return Columns((column, on), (column, off), state or (column, (on,), (off,)), prefix)


_RARITAN = f"{_ENTERPRISES}.13742"
_APC = f"{_ENTERPRISES}.318.1.1"
_SERVERTECH = f"{_ENTERPRISES}.1718"
_EATON = f"{_ENTERPRISES}.534.6.6.7.6.6.1"
_CYBERPOWER = f"{_ENTERPRISES}.3808.1.1.3.3"
_ENERGY_OBJECTS = "1.3.6.1.2.1.229.1.2.1"

SNMP_MODELS: dict[str, Model] = {
    "apc-easy": _model(
        "APC Easy PDU (EPDU), switched",
        "PowerNet-MIB, ePDUOutletControlCommand and ePDUOutletStatusState",
        # The state counts the other way round than the command.
        _same(f"{_APC}.30.6.2.1.4", 1, 2, (f"{_APC}.30.6.1.1.4", (2,), (1,))),
    ),
    "apc-masterswitch": _model(
        "APC MasterSwitch, AP79xx",
        "PowerNet-MIB, sPDUOutletCtl",
        _same(f"{_APC}.4.4.2.1.3", 1, 2),
    ),
    "apc-rpdu": _model(
        "APC Switched Rack PDU AP79xx",
        "PowerNet-MIB, rPDUOutletControlOutletCommand and rPDUOutletStatusOutletState",
        _same(f"{_APC}.12.3.3.1.1.4", 1, 2, (f"{_APC}.12.3.5.1.1.4", (1,), (2,))),
    ),
    "apc-rpdu2": _model(
        "APC Switched Rack PDU AP86xx, AP89xx, APDU9xxx",
        "PowerNet-MIB, rPDU2OutletSwitchedControlCommand and rPDU2OutletSwitchedStatusState",
        _same(f"{_APC}.26.9.2.4.1.5", 1, 2, (f"{_APC}.26.9.2.3.1.5", (2,), (1,))),
    ),
    "baytech": _model(
        "BayTech RPC",
        "Baytech-MIB-403-1, sBTAModulesRPCOutletState",
        # 3 and 4: locked on, locked off
        _same(f"{_ENTERPRISES}.4779.1.3.5.3.1.3", 1, 0, (f"{_ENTERPRISES}.4779.1.3.5.3.1.3", (1, 3), (0, 4)), "1"),
    ),
    "cyberpower": _model(
        "CyberPower switched PDU",
        "CPS-MIB, ePDUOutletControlOutletCommand and ePDUOutletStatusOutletState",
        _same(f"{_CYBERPOWER}.3.1.1.4", 1, 2, (f"{_CYBERPOWER}.5.1.1.4", (1,), (2,))),
    ),
    "digital-loggers-snmp": _model(
        "Digital Loggers Web Power Switch Pro, Ethernet Power Controller, DIN Relay IV",
        "https://digital-loggers.com/snmp.html and RFC 7460, eoPowerAdminState and eoPowerOperState",
        _same(f"{_ENERGY_OBJECTS}.8", 259, 257, (f"{_ENERGY_OBJECTS}.9", (259,), (257,))),
    ),
    "eaton": _model(
        "Eaton ePDU G2, G3, managed and switched",
        "EATON-EPDU-MIB, outletControlOnCmd, outletControlOffCmd (0: at once) and outletControlStatus",
        Columns((f"{_EATON}.4", 0), (f"{_EATON}.3", 0), (f"{_EATON}.2", (1,), (0,)), "0"),
    ),
    "netio-snmp": _model(
        "NETIO 4, 4All, 4C, PowerPDU and others over SNMP",
        "NETIO-PRODUCTS-NETIO-MIB, netioOutputAction and netioOutputState",
        _same(f"{_ENTERPRISES}.47952.1.1.1.5", 1, 0, (f"{_ENTERPRISES}.47952.1.1.1.3", (1,), (0,))),
    ),
    "poe": _model(
        "Ethernet switches with PoE",
        "RFC 3621, pethPsePortAdminEnable",
        _same("1.3.6.1.2.1.105.1.1.1.3", 1, 2, prefix="1"),
    ),
    "raritan-px": _model(
        "Raritan Dominion PX (first generation)",
        "PDU-MIB, outletOperationalState",
        _same(f"{_RARITAN}.4.1.2.2.1.3", 1, 0),
    ),
    "raritan-px2": _model(
        "Raritan PX2, PX3, PX4",
        "PDU2-MIB, switchingOperation and outletSwitchingState",
        _same(f"{_RARITAN}.6.4.1.2.1.2", 1, 0, (f"{_RARITAN}.6.4.1.2.1.3", (7,), (8,)), "1"),
    ),
    "sentry3": _model(
        "Server Technology Sentry CDU, Switched -48 VDC (Sentry3)",
        "Sentry3-MIB, outletControlAction and outletStatus",
        _same(f"{_SERVERTECH}.3.2.3.1.11", 1, 2, (f"{_SERVERTECH}.3.2.3.1.5", (1,), (0,)), "1.1"),
    ),
    "sentry4": _model(
        "Server Technology PRO1, PRO2 (Sentry4)",
        "Sentry4-MIB, st4OutletControlAction and st4OutletState",
        _same(f"{_SERVERTECH}.4.1.8.5.1.2", 1, 2, (f"{_SERVERTECH}.4.1.8.3.1.1", (1,), (2,)), "1.1"),
    ),
}
