# SPDX-License-Identifier: Apache-2.0
"""One outlet of a PDU that is switched over SNMP, versions 1, 2c and 3.

The defaults are those of Raritan's PDU2-MIB; other devices need their own columns and numbers, or the driver
`jumpstarter_driver_pdu.driver.Pdu`, which knows them by model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import export
from jumpstarter_driver_power.common import PowerState as State
from jumpstarter_driver_power.host import check_host
from jumpstarter_driver_power.switched import SwitchedPower
from jumpstarter_driver_snmp.access import Agent, Outlet, StateColumn
from jumpstarter_driver_snmp.common import AuthProtocol, PowerState, PrivProtocol, SNMPError, SNMPTimeout
from jumpstarter_driver_snmp.settings import SnmpSettings, check_oid

__all__ = ["AuthProtocol", "PowerState", "PrivProtocol", "SNMPError", "SNMPServer", "SNMPTimeout"]

#: switchingOperation of PDU2-MIB, first PDU: off(0), on(1), cycle(2).
RARITAN_OPERATION = "1.3.6.1.4.1.13742.6.4.1.2.1.2.1"
#: outletSwitchingState of the same table: on(7), off(8).
RARITAN_STATE = "1.3.6.1.4.1.13742.6.4.1.2.1.3.1"


@dataclass(kw_only=True)
class SNMPServer(SwitchedPower):
    """Switches `oid`.`plug` with SNMP SET, and reads the state back with GET.

    host, port: of the agent; name, IPv4 or IPv6 address. plug: the outlet's number, or the last parts of its OID
    ("1.1.3"). oid: the switching column. on_value, off_value: what it takes. status_oid: the column that tells the
    state (default: `oid`, and Raritan's own for the default oid). status_on, status_off: its numbers (default:
    on_value, off_value).

    version: "1", "2c" or "3" (default: 3 with a user, 2c with a community). community or community_file: for 1 and 2c.
    user, auth_protocol, auth_key(_file), priv_protocol, priv_key(_file), context: for 3; the security level follows
    from the protocols. timeout: seconds per try; retries: tries after the first.
    """

    needs: ClassVar[tuple[str, ...]] = ("pysnmp", "cryptography")

    host: str
    plug: int | str
    port: int = 161
    oid: str = RARITAN_OPERATION
    version: int | str | None = None
    user: str | None = None
    community: str | None = field(default=None, repr=False)
    community_file: str | None = None
    auth_protocol: AuthProtocol = AuthProtocol.NONE
    auth_key: str | None = field(default=None, repr=False)
    auth_key_file: str | None = None
    priv_protocol: PrivProtocol = PrivProtocol.NONE
    priv_key: str | None = field(default=None, repr=False)
    priv_key_file: str | None = None
    context: str = ""
    timeout: float = 5.0
    retries: int = 0
    on_value: int = PowerState.ON.value
    off_value: int = PowerState.OFF.value
    status_oid: str | None = None
    status_on: list[int] | None = None
    status_off: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_agent(self.host, self.port, self.timeout, self.retries)
        self.auth_protocol = AuthProtocol(self.auth_protocol)
        self.priv_protocol = PrivProtocol(self.priv_protocol)
        self._settings = SnmpSettings(
            version=None if self.version is None else str(self.version),
            user=self.user,
            community=self.community,
            community_file=self.community_file,
            auth_protocol=self.auth_protocol,
            auth_key=self.auth_key,
            auth_key_file=self.auth_key_file,
            priv_protocol=self.priv_protocol,
            priv_key=self.priv_key,
            priv_key_file=self.priv_key_file,
            context=self.context,
        )
        self._outlet = self._make_outlet()
        self._agent = Agent(self.host, self.port, self.timeout, self.retries)

    def _make_outlet(self) -> Outlet:
        plug = str(self.plug).strip().removeprefix(".")
        if not re.fullmatch(r"\d+(\.\d+)*", plug):
            raise ConfigurationError(f'plug is "{self.plug}", must be a number or the last parts of an OID, as 1.1.3')
        if self.on_value == self.off_value:
            raise ConfigurationError(f"on_value and off_value are both {self.on_value}")
        oid = check_oid("oid", self.oid)
        on = tuple(self.status_on or (self.on_value,))
        off = tuple(self.status_off or (self.off_value,))
        if set(on) & set(off):
            raise ConfigurationError(f"status_on and status_off share {sorted(set(on) & set(off))}")
        columns = []
        if self.status_oid is not None:
            columns.append(StateColumn(f"{check_oid('status_oid', self.status_oid)}.{plug}", on, off))
        else:
            if oid == RARITAN_OPERATION:
                columns.append(StateColumn(f"{RARITAN_STATE}.{plug}", (7,), (8,)))
            columns.append(StateColumn(f"{oid}.{plug}", on, off))
        return Outlet((f"{oid}.{plug}", self.on_value), (f"{oid}.{plug}", self.off_value), tuple(columns))

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_snmp.client.SNMPServerClient"

    @property
    def target(self) -> str:
        """The outlet, for messages."""
        return f"outlet {self.plug} of the PDU {self.host}"

    def switch(self, on: bool) -> None:
        """SET the switching column."""
        self._outlet.switch(self._agent, self._settings.credentials(), on)

    def state(self) -> State:
        """GET the column of the state."""
        return self._outlet.state(self._agent, self._settings.credentials())

    @export
    def on(self) -> str:  # type: ignore[override]  # clients of Jumpstarter 0.9 are given this text
        """Switch on; the text is for clients that show it."""
        super().on()
        return "Power ON command sent successfully"

    @export
    def off(self) -> str:  # type: ignore[override]
        """Switch off; the text is for clients that show it."""
        super().off()
        return "Power OFF command sent successfully"

    def close(self) -> None:
        """Let the SNMP engine go; switches nothing."""
        super().close()
        self._agent.close()


def check_agent(host: str, port: int, timeout: float, retries: int) -> None:
    """Raise `ConfigurationError` for an agent that cannot be asked."""
    check_host(host)
    if not 1 <= port <= 65535:
        raise ConfigurationError(f"port is {port}, must be 1 to 65535")
    if not 0 < timeout <= 60:
        raise ConfigurationError(f"timeout is {timeout:g}, must be more than 0 and at most 60 seconds")
    if not 0 <= retries <= 10:
        raise ConfigurationError(f"retries is {retries}, must be 0 to 10")
