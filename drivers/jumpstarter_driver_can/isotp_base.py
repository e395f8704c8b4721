# SPDX-License-Identifier: Apache-2.0
"""What both ISO-TP drivers have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import isotp

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import Driver
from jumpstarter_driver_can.common import IsoTpAddress, IsoTpAsymmetricAddress, IsoTpParams

__all__ = ["AnyAddress", "IsoTpDriver", "WireAddress", "isotp_address"]

WireAddress = IsoTpAddress | IsoTpAsymmetricAddress
AnyAddress = isotp.Address | isotp.AsymmetricAddress


def isotp_address(value: WireAddress | AnyAddress) -> AnyAddress:
    """The library's form of an address that can send and receive. Raises ValueError for any other."""
    address = value if isinstance(value, (isotp.Address, isotp.AsymmetricAddress)) else value.dump()
    if address.is_partial_address():
        raise ValueError("an address that only sends or only receives is one half of {tx_addr, rx_addr}")
    return address


@dataclass(kw_only=True)
class IsoTpDriver(Driver):
    """An ISO-TP link. address: see `IsoTpAddress` and `IsoTpAsymmetricAddress`. params: see `IsoTpParams`."""

    driver_type: ClassVar[str] = "automotive"
    needs: ClassVar[tuple[str, ...]] = ("can", "isotp")

    address: WireAddress | AnyAddress
    params: IsoTpParams = field(default_factory=IsoTpParams)

    _over: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.address = isotp_address(self.address)
        except ValueError as error:
            raise ConfigurationError(f"isotp: address: {error}") from error
        try:
            self.params.check()
        except ValueError as error:
            raise ConfigurationError(f"isotp: params: {error}") from error
        self._configured = self.address

    def reset(self) -> None:
        """A session begins: the link of the one before ends, and the address is the configured one again."""
        super().reset()
        self.end_link()
        self._over = False
        self.address = self._configured

    @abstractmethod
    def end_link(self) -> None:
        """Stop the link, if it is started."""

    def close(self) -> None:
        """End the link."""
        super().close()
        self._over = True  # before: a start that is under way in its thread is then either ended or refused
        self.end_link()

    def require_session(self) -> None:
        """Raise ConnectionError when the session is over: nobody would end what is started now."""
        if self._over:
            raise ConnectionError("isotp: the session has ended")

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_can.client.IsoTpClient"
