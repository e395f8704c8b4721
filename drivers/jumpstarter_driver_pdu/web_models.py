# SPDX-License-Identifier: Apache-2.0
"""PDUs and plugs that are switched over HTTP, by documented requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from xml.etree import ElementTree

from jumpstarter_driver_pdu.model import Backend, Model, outlet_number
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.switched import PowerError

if TYPE_CHECKING:
    from jumpstarter_driver_http_power.transport import Answer, HttpSession
    from jumpstarter_driver_pdu.driver import Pdu

__all__ = ["WEB_MODELS"]


class WebBackend:
    """An outlet behind a web server. LOGIN: how a password is used: "basic", "digest", "none" (the class does it)."""

    LOGIN = "basic"

    def __init__(self, pdu: Pdu) -> None:
        self._pdu = pdu
        self._outlet = int(pdu.outlet)
        host = f"[{pdu.host}]" if ":" in pdu.host else pdu.host
        self._base = f"{'https' if pdu.tls else 'http'}://{host}:{pdu.effective_port}"

    def _session(self) -> HttpSession:
        from jumpstarter_driver_http_power.transport import HttpLogin, HttpSession

        pdu = self._pdu
        password = pdu.secret()
        login = None
        if self.LOGIN != "none" and password is not None:
            login = HttpLogin(self.LOGIN, pdu.user or "admin", password)
        return HttpSession(login, timeout=pdu.timeout, ca=pdu.tls_ca, verify=pdu.tls_verify)

    def _ask(self, method: str, path: str, **more: Any) -> Answer:
        with self._session() as http:
            return http.request(method, self._base + path, **more)

    def measure(self) -> PowerReading:
        """Not offered, unless a subclass does."""
        raise NotImplementedError(f"a device of the model {self._pdu.model} cannot measure, or not in a documented way")

    def close(self) -> None:
        """Nothing is held."""


def _found(answer: Answer, *path: str | int) -> Any:
    """What stands at this path of a JSON answer. Raises `PowerError` when it is not there."""
    value = answer.json()
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            raise PowerError(f"{answer.where}: no {'.'.join(map(str, path))} in the answer") from None
    return value


def _state(value: Any, on: tuple[Any, ...], off: tuple[Any, ...]) -> PowerState:
    return "on" if value in on else "off" if value in off else "unknown"


class ShellyGen1(WebBackend):
    """/relay/N?turn=on|off, answers {"ison": ...}; basic authentication."""

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", f"/relay/{self._outlet}?turn={'on' if on else 'off'}")

    def state(self) -> PowerState:
        """Ask."""
        return _state(_found(self._ask("GET", f"/relay/{self._outlet}"), "ison"), (True,), (False,))


class ShellyGen2(WebBackend):
    """RPC over HTTP: Switch.Set and Switch.GetStatus; digest authentication with SHA-256, the user is always admin."""

    LOGIN = "digest"

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", f"/rpc/Switch.Set?id={self._outlet}&on={'true' if on else 'false'}")

    def state(self) -> PowerState:
        """Ask."""
        return _state(_found(self._status(), "output"), (True,), (False,))

    def measure(self) -> PowerReading:
        """Volts and amperes, of devices that have a meter."""
        status = self._status().json()
        if not isinstance(status, dict) or not {"voltage", "current"} <= set(status):
            return super().measure()
        return PowerReading(voltage=status["voltage"], current=status["current"])

    def _status(self) -> Answer:
        return self._ask("GET", f"/rpc/Switch.GetStatus?id={self._outlet}")


class TasmotaHttp(WebBackend):
    """/cm?cmnd=Power1%20On, answers {"POWER1": "ON"}; user and password stand in the query, that is all there is."""

    LOGIN = "none"

    def switch(self, on: bool) -> None:
        """Tell."""
        self._power(f"Power{self._outlet} {'On' if on else 'Off'}")

    def state(self) -> PowerState:
        """Ask."""
        return _state(self._power(f"Power{self._outlet}"), ("ON",), ("OFF",))

    def measure(self) -> PowerReading:
        """Volts and amperes, of devices that have a meter."""
        energy = self._command("Status 8").json().get("StatusSNS", {}).get("ENERGY", {})
        if not {"Voltage", "Current"} <= set(energy):
            return super().measure()
        voltage, current = (v[0] if isinstance(v, list) else v for v in (energy["Voltage"], energy["Current"]))
        return PowerReading(voltage=voltage, current=current)

    def _power(self, command: str) -> str:
        answer = self._command(command)
        document = answer.json()
        for key in (f"POWER{self._outlet}", "POWER"):  # a device with one relay leaves the number out
            if key in document:
                return str(document[key])
        raise PowerError(f"{answer.where}: the device has no relay {self._outlet} (it said {answer.text:.60})")

    def _command(self, command: str) -> Answer:
        query = {"cmnd": command}
        password = self._pdu.secret()
        if password is not None:
            query = {"user": self._pdu.user or "admin", "password": password, **query}
        answer = self._ask("GET", f"/cm?{urlencode(query, quote_via=quote)}")
        document = answer.json()
        if not isinstance(document, dict):
            raise PowerError(f"{answer.where}: the answer is no JSON object")
        if "password" in str(document.get("WARNING", "")):  # what strangers are told, some firmware with HTTP 200
            raise PermissionError(f"{answer.where}: the device refuses the user or password")
        return answer


class NetioJson(WebBackend):
    """GET and POST /netio.json: {"Outputs": [{"ID": 1, "Action": 1}]}; basic authentication."""

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("POST", "/netio.json", document={"Outputs": [{"ID": self._outlet, "Action": int(on)}]})

    def state(self) -> PowerState:
        """Ask."""
        return _state(self._output(self._ask("GET", "/netio.json")).get("State"), (1,), (0,))

    def measure(self) -> PowerReading:
        """Volts of the device and amperes of the output, where both are measured."""
        answer = self._ask("GET", "/netio.json")
        output = self._output(answer)
        whole = answer.json().get("GlobalMeasure", {})
        if "Current" not in output or "Voltage" not in whole:
            return super().measure()
        return PowerReading(voltage=whole["Voltage"], current=output["Current"] / 1000)  # milliamperes

    def _output(self, answer: Answer) -> dict[str, Any]:
        for output in _found(answer, "Outputs"):
            if isinstance(output, dict) and output.get("ID") == self._outlet:
                return output
        raise PowerError(f"{answer.where}: the device has no output {self._outlet}")


class Gude(WebBackend):
    """/status.json?components=1&cmd=1&p=N&s=1, answers {"outputs": [{"state": 1}, ...]}; basic authentication."""

    SWITCH, STATUS = "/status.json?components=1&cmd=1&p={outlet}&s={state}", "/status.json?components=1"

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", self.SWITCH.format(outlet=self._outlet, state=int(on)))

    def state(self) -> PowerState:
        """Ask."""
        return _state(_found(self._ask("GET", self.STATUS), "outputs", self._outlet - 1, "state"), (1,), (0,))


class GudeOlder(Gude):
    """As `Gude`, of firmware that switches at /ov.html and tells at /statusjsn.js."""

    SWITCH, STATUS = "/ov.html?cmd=1&p={outlet}&s={state}", "/statusjsn.js?components=1"


class DigitalLoggersRest(WebBackend):
    """PUT /restapi/relay/outlets/I/state/ with value=true; digest authentication. I counts from 0, sockets from 1."""

    LOGIN = "digest"

    def _path(self) -> str:
        return f"/restapi/relay/outlets/{self._outlet - 1}/state/"

    def switch(self, on: bool) -> None:
        """Tell."""
        form = {"value": "true" if on else "false"}
        # Any value of X-CSRF will do: a foreign page cannot send the header.
        self._ask("PUT", self._path(), data=form, headers={"X-CSRF": "x", "Accept": "application/json"})

    def state(self) -> PowerState:
        """Ask."""
        answer = self._ask("GET", self._path(), headers={"Accept": "application/json"})
        return _state(answer.json(), (True,), (False,))


class DigitalLoggersWeb(WebBackend):
    """/outlet?N=ON and /status, whose element "state" is a hexadecimal number with a bit for each outlet."""

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", f"/outlet?{self._outlet}={'ON' if on else 'OFF'}")

    def state(self) -> PowerState:
        """Ask."""
        answer = self._ask("GET", "/status")
        match = re.search(r"""id=["']?state["']?[^>]*>\s*([0-9a-fA-F]{1,8})\s*<""", answer.text)
        if match is None:
            raise PowerError(f"{answer.where}: the page does not tell the states; is the user allowed to see it?")
        return "on" if int(match.group(1), 16) >> (self._outlet - 1) & 1 else "off"


class Tinycontrol6g10a(WebBackend):
    """/outs.cgi?outN=1 and /st0.xml with <outN>1</outN>; basic authentication."""

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", f"/outs.cgi?out{self._outlet}={int(on)}")

    def state(self) -> PowerState:
        """Ask."""
        answer = self._ask("GET", "/st0.xml")
        try:
            value = ElementTree.fromstring(answer.text).findtext(f"out{self._outlet}")
        except ElementTree.ParseError as error:
            raise PowerError(f"{answer.where}: the answer is no XML: {error}") from None
        if value is None:
            raise PowerError(f"{answer.where}: the device has no output {self._outlet}")
        return _state(value.strip(), ("1",), ("0",))


class TinycontrolTcpdu(WebBackend):
    """/api/v1/save/?outN=1 and /api/v1/read/status/?outValues, answers {"outN": 1}; basic authentication."""

    def switch(self, on: bool) -> None:
        """Tell."""
        self._ask("GET", f"/api/v1/save/?out{self._outlet}={int(on)}")

    def state(self) -> PowerState:
        """Ask."""
        answer = self._ask("GET", "/api/v1/read/status/?outValues")
        return _state(_found(answer, f"out{self._outlet}"), (1,), (0,))


class UbusPoe(WebBackend):
    """OpenWrt's JSON-RPC at /ubus: object "poe" with "manage" and "info". The outlet N is the port lanN.

    With a user and password a session is opened first; without, strangers must be allowed both calls.
    """

    LOGIN = "none"
    _NOBODY = "0" * 32

    def switch(self, on: bool) -> None:
        """Tell."""
        self._call("manage", {"port": f"lan{self._outlet}", "enable": on})

    def state(self) -> PowerState:
        """Ask."""
        ports = self._call("info", {}).get("ports", {})
        port = ports.get(f"lan{self._outlet}")
        if port is None:
            raise PowerError(f"{self._base}/ubus: the switch has no PoE port lan{self._outlet}")
        status = port.get("status") if isinstance(port, dict) else port
        return "off" if status == "Disabled" else "on"

    def _call(self, method: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with self._session() as http:
            session = self._NOBODY
            password = self._pdu.secret()
            if password is not None:
                login = {"username": self._pdu.user or "root", "password": password, "timeout": 60}
                session = str(self._rpc(http, self._NOBODY, "session", "login", login).get("ubus_rpc_session", ""))
            try:
                return self._rpc(http, session, "poe", method, arguments)
            finally:
                if session != self._NOBODY:
                    self._rpc(http, session, "session", "destroy", {})

    def _rpc(
        self, http: HttpSession, session: str, path: str, method: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        parameters = [session, path, method, arguments]
        document = {"jsonrpc": "2.0", "id": 1, "method": "call", "params": parameters}
        answer = http.request("POST", f"{self._base}/ubus", document=document)
        result = answer.json()
        if not isinstance(result, dict):
            raise PowerError(f"{answer.where}: the answer is no JSON-RPC")
        code = result.get("result", [None])[0] if "error" not in result else result["error"].get("code")
        if code in (6, -32002):  # UBUS_STATUS_PERMISSION_DENIED, "Access denied"
            raise PermissionError(f"{answer.where}: ubus does not let us call {path}.{method} (user, password, ACL)")
        if code != 0:
            raise PowerError(f"{answer.where}: ubus {path}.{method} failed with code {code}")
        values = result["result"]
        return dict(values[1]) if len(values) > 1 else {}


def _energenie(pdu: Pdu) -> Backend:
    from jumpstarter_driver_energenie.driver import Strip

    class EnerGenieBackend(WebBackend):
        """The strip's page, as the driver of its own uses it."""

        def _states(self, change: dict[str, str] | None = None) -> list[bool]:
            return Strip(self._base, pdu.timeout).states(pdu.secret() or "1", change)

        def switch(self, on: bool) -> None:
            """Tell."""
            self._states({f"cte{self._outlet}": str(int(on))})

        def state(self) -> PowerState:
            """Ask."""
            states = self._states()
            if len(states) < self._outlet:
                raise PowerError(f"{self._base}: the device has only {len(states)} sockets")
            return "on" if states[self._outlet - 1] else "off"

    return EnerGenieBackend(pdu)


def _model(
    title: str, source: str, make: Callable[[Pdu], Backend], first: int = 1, last: int = 8, outlets: str = ""
) -> Model:
    return Model(
        title=title,
        source=source,
        kind="http",
        port=80,
        outlets=outlets or f"{first} to {last}",
        check=outlet_number(first, last),
        make=make,
    )


WEB_MODELS: dict[str, Model] = {
    "digital-loggers": _model(
        "Digital Loggers Web Power Switch Pro, Ethernet Power Controller, with the REST API",
        "https://www.digital-loggers.com/rest.html",
        DigitalLoggersRest,
        last=48,
    ),
    "digital-loggers-web": _model(
        "Digital Loggers Web Power Switch 5, 6, 7",
        "the vendor's user's guide, control with scripts: /outlet and /status",
        DigitalLoggersWeb,
    ),
    "energenie": _model(
        "EnerGenie EG-PMS2-LAN, EG-PMS2-WLAN",
        "the device's own pages; see the driver EnerGenie",
        _energenie,
        last=4,
    ),
    "gude": _model(
        "Gude Expert Power Control with /status.json",
        "http://wiki.gude.info/EPC_HTTP_Interface",
        Gude,
        last=24,
    ),
    "gude-statusjsn": _model(
        "Gude Expert Power Control with /ov.html and /statusjsn.js",
        "http://wiki.gude.info/EPC_HTTP_Interface",
        GudeOlder,
        last=24,
    ),
    "netio": _model(
        "NETIO 4, 4All, 4C, PowerPDU, PowerBOX, PowerDIN, PowerCable",
        "https://wiki.netio-products.com/index.php?title=JSON_API",
        NetioJson,
    ),
    "shelly-gen1": _model(
        "Shelly 1, 1PM, 2.5, 4Pro, Plug (first generation)",
        "https://shelly-api-docs.shelly.cloud/gen1/",
        ShellyGen1,
        first=0,
        last=7,
    ),
    "shelly-gen2": _model(
        "Shelly Plus, Pro, Gen3, Gen4",
        "https://shelly-api-docs.shelly.cloud/gen2/ComponentsAndServices/Switch",
        ShellyGen2,
        first=0,
        last=7,
    ),
    "tasmota": _model(
        "devices with the Tasmota firmware, over HTTP",
        "https://tasmota.github.io/docs/Commands/#with-web-requests",
        TasmotaHttp,
        last=32,
    ),
    "tinycontrol-6g10a": _model(
        "Tinycontrol IP Power Socket 6G10A v2",
        "the vendor's manual LANLIS-010-015, HTTP commands",
        Tinycontrol6g10a,
        last=6,
    ),
    "tinycontrol-tcpdu": _model(
        "Tinycontrol tcPDU",
        "https://docs.tinycontrol.pl/en/tcpdu/api/commands",
        TinycontrolTcpdu,
    ),
    "ubus-poe": _model(
        "PoE switches with OpenWrt",
        "https://openwrt.org/docs/techref/ubus and realtek-poe",
        UbusPoe,
        last=64,
        outlets="N of the port lanN",
    ),
}
