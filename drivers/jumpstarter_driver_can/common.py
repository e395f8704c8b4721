# SPDX-License-Identifier: Apache-2.0
"""What CAN drivers and their clients exchange. The shapes are those of Jumpstarter 0.9."""

from __future__ import annotations

import base64
from typing import Annotated, Any

import can
import isotp
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

__all__ = ["Base64Data", "CanMessage", "IsoTpAddress", "IsoTpAsymmetricAddress", "IsoTpMessage", "IsoTpParams"]


def _from_base64(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=False)
    except ValueError as error:
        raise ValueError(f"not base64: {error}") from None


#: Bytes that travel as base64 text. Bytes given in Python are taken as they are.
Base64Data = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    PlainSerializer(lambda data: base64.b64encode(data).decode("ascii"), return_type=str),
]


def _mode(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return isotp.AddressingMode[value]
    except KeyError:
        known = ", ".join(mode.name for mode in isotp.AddressingMode)
        raise ValueError(f'there is no addressing mode "{value}"; there is {known}') from None


#: By name in configurations, by number on the wire.
_AddressingMode = Annotated[isotp.AddressingMode, BeforeValidator(_mode)]


class CanMessage(BaseModel):
    """A CAN frame with the fields of `can.Message`. timestamp: seconds since the epoch. dlc: bytes, not the FD code."""

    timestamp: float = 0.0
    arbitration_id: int
    is_extended_id: bool = True
    is_remote_frame: bool = False
    is_error_frame: bool = False
    channel: int | str | None = None
    dlc: int | None = None
    data: Base64Data | None = None
    is_fd: bool = False
    is_rx: bool = True
    bitrate_switch: bool = False
    error_state_indicator: bool = False

    @classmethod
    def construct(cls, msg: can.Message) -> CanMessage:  # type: ignore[override]  # the name is Jumpstarter's
        """The wire form of a frame of python-can."""
        return cls.model_construct(
            timestamp=msg.timestamp,
            arbitration_id=msg.arbitration_id,
            is_extended_id=msg.is_extended_id,
            is_remote_frame=msg.is_remote_frame,
            is_error_frame=msg.is_error_frame,
            channel=msg.channel if isinstance(msg.channel, (int, str)) else None,
            dlc=msg.dlc,
            data=bytes(msg.data),
            is_fd=msg.is_fd,
            is_rx=msg.is_rx,
            bitrate_switch=msg.bitrate_switch,
            error_state_indicator=msg.error_state_indicator,
        )

    def message(self) -> can.Message:
        """The frame as python-can has it. Raises ValueError for what cannot be one (too much data)."""
        return can.Message(
            timestamp=self.timestamp,
            arbitration_id=self.arbitration_id,
            is_extended_id=self.is_extended_id,
            is_remote_frame=self.is_remote_frame,
            is_error_frame=self.is_error_frame,
            channel=self.channel,
            dlc=self.dlc,
            # A remote frame asks for data and has none, whatever a peer puts there.
            data=None if self.is_remote_frame else self.data,
            is_fd=self.is_fd,
            is_rx=self.is_rx,
            bitrate_switch=self.bitrate_switch,
            error_state_indicator=self.error_state_indicator,
            check=True,
        )


class IsoTpParams(BaseModel):
    """Parameters of an ISO-TP (ISO 15765-2) link, as `isotp.TransportLayer` and the kernel's sockets know them.

    stmin: least time between consecutive frames we ask for, in the coding of the standard. blocksize: frames between
    two flow controls, 0 for no limit. tx_data_length: largest frame we send, 8 to 64. *_timeout: milliseconds.
    tx_padding: byte to fill frames with. rate_limit_max_bitrate: bit/s. rate_limit_window_size: seconds.
    blocking_send: `send` returns when the message has left, and fails when it did not.
    """

    model_config = ConfigDict(extra="forbid")

    stmin: int = 0
    blocksize: int = 8
    tx_data_length: int = 8
    tx_data_min_length: int | None = None
    override_receiver_stmin: float | None = None
    rx_flowcontrol_timeout: int = 1000
    rx_consecutive_frame_timeout: int = 1000
    tx_padding: int | None = None
    wftmax: int = 0
    max_frame_size: int = 4095
    can_fd: bool = False
    bitrate_switch: bool = False
    default_target_address_type: isotp.TargetAddressType = isotp.TargetAddressType.Physical
    rate_limit_enable: bool = False
    rate_limit_max_bitrate: int = 10000000
    rate_limit_window_size: float = 0.2
    listen_mode: bool = False
    blocking_send: bool = False

    def check(self) -> None:
        """Let the library look at them. Raises ValueError naming the wrong one."""
        params = isotp.TransportLayer.Params()
        for key, value in self.as_dict().items():
            params.set(key, value, validate=False)
        params.validate()

    def as_dict(self) -> dict[str, Any]:
        """The parameters as the library's `params` argument wants them."""
        return self.model_dump()

    def apply(self, socket: isotp.socket) -> None:
        """Set what the kernel knows of these on a socket that is not bound yet.

        The socket's `send` waits for the last frame, whatever ``blocking_send`` says: the kernel tells a failure only
        then.
        """
        flags = socket.flags.WAIT_TX_DONE
        if self.listen_mode:
            flags |= socket.flags.LISTEN_MODE
        stmin = self.override_receiver_stmin
        socket.set_opts(
            optflag=flags,
            txpad=self.tx_padding,
            tx_stmin=None if stmin is None else round(stmin * 1e9),
        )
        socket.set_fc_opts(bs=self.blocksize, stmin=self.stmin, wftmax=self.wftmax)
        socket.set_ll_opts(
            mtu=socket.LinkLayerProtocol.CAN_FD if self.can_fd else socket.LinkLayerProtocol.CAN,
            tx_dl=self.tx_data_length,
            # CANFD_BRS of linux/can.h; the kernel takes it for CAN FD only.
            tx_flags=1 if self.can_fd and self.bitrate_switch else None,
        )


class IsoTpMessage(BaseModel):
    """One ISO-TP message; no data means that there was none to receive."""

    data: Base64Data | None = None


class IsoTpAddress(BaseModel):
    """An `isotp.Address`. Which of the numbers are needed depends on the addressing mode."""

    model_config = ConfigDict(extra="forbid")

    addressing_mode: _AddressingMode = isotp.AddressingMode.Normal_11bits
    txid: int | None = None
    rxid: int | None = None
    target_address: int | None = None
    source_address: int | None = None
    physical_id: int | None = None
    functional_id: int | None = None
    address_extension: int | None = None
    rx_only: bool = False
    tx_only: bool = False

    @classmethod
    def validate(cls, addr: isotp.Address) -> IsoTpAddress:
        """The wire form of an address of the library."""
        return cls(
            addressing_mode=addr._addressing_mode,
            txid=addr._txid,
            rxid=addr._rxid,
            target_address=addr._target_address,
            source_address=addr._source_address,
            # The library only sets these two for the addressing modes that use them.
            physical_id=getattr(addr, "physical_id", None),
            functional_id=getattr(addr, "functional_id", None),
            address_extension=addr._address_extension,
            rx_only=addr._rx_only,
            tx_only=addr._tx_only,
        )

    def dump(self) -> isotp.Address:
        """The address as the library has it. Raises ValueError when the numbers do not fit the mode."""
        return isotp.Address(**{name: getattr(self, name) for name in type(self).model_fields})


class IsoTpAsymmetricAddress(BaseModel):
    """An `isotp.AsymmetricAddress`: one address to send, another to receive."""

    tx_addr: IsoTpAddress
    rx_addr: IsoTpAddress

    @classmethod
    def validate(cls, addr: isotp.AsymmetricAddress) -> IsoTpAsymmetricAddress:
        """The wire form of an address of the library."""
        return cls(tx_addr=IsoTpAddress.validate(addr.tx_addr), rx_addr=IsoTpAddress.validate(addr.rx_addr))

    def dump(self) -> isotp.AsymmetricAddress:
        """The address as the library has it."""
        return isotp.AsymmetricAddress(tx_addr=self.tx_addr.dump(), rx_addr=self.rx_addr.dump())
