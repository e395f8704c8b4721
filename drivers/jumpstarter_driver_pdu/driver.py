# SPDX-License-Identifier: Apache-2.0
"""One outlet of a PDU, a network plug or a PoE switch, by model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver.secret import check_secret, read_secret
from jumpstarter_driver_pdu.model import Backend, Model
from jumpstarter_driver_pdu.snmp_models import SNMP_MODELS
from jumpstarter_driver_pdu.tcp_models import TCP_MODELS
from jumpstarter_driver_pdu.web_models import WEB_MODELS
from jumpstarter_driver_power.common import PowerReading, PowerState
from jumpstarter_driver_power.host import check_host
from jumpstarter_driver_power.switched import PowerError, SwitchedPower

if TYPE_CHECKING:
    from jumpstarter_driver_snmp.settings import SnmpSettings

__all__ = ["MODELS", "Pdu"]

MODELS: dict[str, Model] = dict(sorted({**SNMP_MODELS, **WEB_MODELS, **TCP_MODELS}.items()))

#: Fields that only one kind of model uses, by kind.
_FIELDS = {
    "snmp": (
        "version",
        "community",
        "community_file",
        "auth_protocol",
        "auth_key",
        "auth_key_file",
        "priv_protocol",
        "priv_key",
        "priv_key_file",
        "context",
    ),
    "http": ("tls", "tls_ca", "tls_verify"),
}


@dataclass(kw_only=True)
class Pdu(SwitchedPower):
    """Switches one outlet, and reads its state back.

    model: see the table in the documentation (`MODELS`). host: name, IPv4 or IPv6 address. outlet: as the model counts.
    port: default of the model. timeout: seconds for a try (SNMP), a request (HTTP) or a conversation (TCP). user,
    password(_file): of HTTP and TCP models; user is also that of SNMPv3. tls, tls_ca, tls_verify: https. version,
    community(_file), auth_protocol, auth_key(_file), priv_protocol, priv_key(_file), context, retries: SNMP, see
    `SNMPServer`.
    """

    needs: ClassVar[tuple[str, ...]] = ("pysnmp", "requests")

    model: str
    host: str
    outlet: int | str
    port: int | None = None
    timeout: float = 5.0
    retries: int = 1
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_verify: bool = True
    version: int | str | None = None
    community: str | None = field(default=None, repr=False)
    community_file: str | None = None
    auth_protocol: str = "NONE"
    auth_key: str | None = field(default=None, repr=False)
    auth_key_file: str | None = None
    priv_protocol: str = "NONE"
    priv_key: str | None = field(default=None, repr=False)
    priv_key_file: str | None = None
    context: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        model = MODELS.get(self.model)
        if model is None:
            close = get_close_matches(self.model, MODELS, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f"it must be one of {', '.join(MODELS)}"
            raise ConfigurationError(f'model is "{self.model}"; {hint}')
        self._model = model
        check_host(self.host)
        self.outlet = str(self.outlet).strip()
        model.check(self.outlet)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise ConfigurationError(f"port is {self.port}, must be 1 to 65535")
        if not 0 < self.timeout <= 60:
            raise ConfigurationError(f"timeout is {self.timeout:g}, must be more than 0 and at most 60 seconds")
        if not 0 <= self.retries <= 10:
            raise ConfigurationError(f"retries is {self.retries}, must be 0 to 10")
        self._check_fields(model)
        check_secret("password", self.password, self.password_file)
        self._backend: Backend | None = None
        self._making = threading.Lock()

    def _check_fields(self, model: Model) -> None:
        defaults = type(self).__dataclass_fields__
        for kind, names in _FIELDS.items():
            for name in names:
                if kind != model.kind and getattr(self, name) != defaults[name].default:
                    raise ConfigurationError(
                        f"{name} is for {kind.upper()} models; {self.model} speaks {model.kind.upper()}"
                    )
        if model.kind == "snmp":
            if self.password is not None or self.password_file is not None:
                raise ConfigurationError(
                    f"password is for other models; {self.model} speaks SNMP (community, auth_key)"
                )
            self.snmp_settings()
        elif self.tls_ca is not None and not self.tls:
            raise ConfigurationError("tls_ca without tls: true")

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_power.client.PowerClient"

    @property
    def target(self) -> str:
        """The outlet, for messages."""
        return f"outlet {self.outlet} of the PDU {self.host} ({self.model})"

    # what backends ask for

    @property
    def effective_port(self) -> int:
        """The port that is used."""
        return self.port or (443 if self.tls else self._model.port)

    def secret(self) -> str | None:
        """The password, read now."""
        return read_secret("password", self.password, self.password_file)

    def snmp_settings(self) -> SnmpSettings:
        """Who we are to an SNMP agent. Raises `ConfigurationError`."""
        from jumpstarter_driver_snmp.common import AuthProtocol, PrivProtocol
        from jumpstarter_driver_snmp.settings import SnmpSettings

        return SnmpSettings(
            version=None if self.version is None else str(self.version),
            user=self.user,
            community=self.community,
            community_file=self.community_file,
            auth_protocol=_one_of("auth_protocol", AuthProtocol, self.auth_protocol),
            auth_key=self.auth_key,
            auth_key_file=self.auth_key_file,
            priv_protocol=_one_of("priv_protocol", PrivProtocol, self.priv_protocol),
            priv_key=self.priv_key,
            priv_key_file=self.priv_key_file,
            context=self.context,
        )

    # power

    def _made(self) -> Backend:
        with self._making:
            if self._backend is None:
                self._backend = self._model.make(self)
            return self._backend

    @contextmanager
    def _sense(self) -> Iterator[None]:
        """Say it plainly when an answer has another form than documented: values of other types, in other places."""
        try:
            yield
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            self.logger.debug("the answer that could not be used", exc_info=True)
            raise PowerError(
                f"{self.target}: the answer is none of this model ({type(error).__name__}: {error}); check model:"
            ) from None

    def switch(self, on: bool) -> None:
        """Tell the device."""
        with self._sense():
            self._made().switch(on)

    def state(self) -> PowerState:
        """Ask the device."""
        with self._sense():
            return self._made().state()

    def measure(self) -> PowerReading:
        """Ask the device's meter. Raises `NotImplementedError` where there is none."""
        with self._sense():
            return self._made().measure()

    def close(self) -> None:
        """Let go of what is held; switches nothing."""
        super().close()
        with self._making:
            backend, self._backend = self._backend, None
        if backend is not None:
            backend.close()


def _one_of(name: str, kind: Any, value: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ConfigurationError(f'{name} is "{value}", must be one of {", ".join(kind)}') from None
