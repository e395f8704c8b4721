# SPDX-License-Identifier: Apache-2.0
"""Clients of CAN drivers: a bus of python-can that is somewhere else, ISO-TP, and the `j` commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import can
from can.broadcastmanager import CyclicSendTaskABC, ModifiableCyclicTaskABC, RestartableCyclicTaskABC

from jumpstarter.client import DriverClient
from jumpstarter_driver_can.common import CanMessage, IsoTpAddress, IsoTpAsymmetricAddress, IsoTpMessage
from jumpstarter_driver_can.packing import pack
from jumpstarter_driver_can.receiver import Receiver

if TYPE_CHECKING:
    import click
    import isotp

__all__ = ["CanClient", "IsoTpClient", "RemoteCyclicSendTask"]

#: Frames in one call of `send_many`.
_BATCH = 2000


def _wire(msg: can.Message) -> dict[str, Any]:
    return CanMessage.construct(msg).model_dump(mode="json")


class RemoteCyclicSendTask(ModifiableCyclicTaskABC, RestartableCyclicTaskABC):
    """Frames that the exporter sends again and again; they go on when this client is gone, until the session ends."""

    def __init__(self, client: CanClient, uuid: UUID, messages: Sequence[can.Message], period: float) -> None:
        super().__init__(messages, period)
        self.client = client
        self.uuid = uuid

    def start(self) -> None:
        """Start it, for the first time or again (a Jumpstarter 0.9 exporter does not start one again)."""
        self.client.call("_start_task", self.uuid)

    def stop(self) -> None:
        """Stop it. Raises `DriverError` when it had ended by itself because sending failed."""
        self.client.call("_stop_task", self.uuid)

    def modify_data(self, messages: Sequence[can.Message] | can.Message) -> None:
        """Send these frames, with the same id, from now on. Raises `DriverMethodNotImplemented` with 0.9."""
        checked = self._check_and_convert_messages(messages)
        self._check_modified_messages(checked)
        self.client.call("_modify_task", self.uuid, [_wire(msg) for msg in checked])
        self.messages = checked


@dataclass(kw_only=True, eq=False)
class CanClient(DriverClient, can.BusABC):
    """Client of `Can`: a bus of python-can.

    Whatever takes a bus takes this: Notifier, RedirectReader, loggers, iteration, `isotp.NotifierBasedCanStack`.
    Frames come as a stream of batches; an exporter of Jumpstarter 0.9 is asked for one after the other. dropped: how
    many frames were lost because they were not read quickly enough.
    """

    __hash__ = object.__hash__
    __eq__ = object.__eq__

    def __post_init__(self) -> None:
        super().__post_init__()
        self._receiver = Receiver(self) if self.has_method("frames") else None
        self._properties: dict[str, Any] = {}
        can.BusABC.__init__(self, channel="")
        self.stack.callback(self._end)

    # Receiving

    @property
    def dropped(self) -> int:
        """Frames lost because this client was too slow."""
        return self._receiver.dropped if self._receiver is not None else 0

    def _recv_internal(self, timeout: float | None) -> tuple[can.Message | None, bool]:
        if self._receiver is not None:
            return self._receiver.receive(timeout), False
        frame, filtered = self.call("_recv_internal", timeout)
        return None if frame is None else CanMessage.model_validate(frame).message(), bool(filtered)

    def _attend(self) -> None:
        """Whoever sends wants the answer, also when it comes before the first `recv` and others read it as well."""
        if self._receiver is not None and not self._is_shutdown:
            self._receiver.start()

    def listen(self) -> None:
        """Begin to receive now, and with what comes from now on: not with what came since the session began."""
        if self._receiver is not None:
            self._receiver.start(since=-1)

    def _apply_filters(self, filters: can.typechecking.CanFilters | None) -> None:
        if self._receiver is not None:
            self._receiver.filter(filters)
        elif filters is not None or self._filters_sent:
            self.call("_apply_filters", filters)
            self._filters_sent = True

    _filters_sent = False

    # Sending

    def send(self, msg: can.Message, timeout: float | None = None) -> None:
        """Send a frame; returns when the exporter's interface has taken it. timeout: seconds for that."""
        self._attend()
        self.call("send", _wire(msg), timeout)

    def send_many(self, messages: Iterable[can.Message], timeout: float | None = None) -> int:
        """Send frames one after the other with a round trip for thousands instead of one for each; returns how many.

        timeout: seconds for each frame. Raises `DriverError` saying how many were sent before one failed.
        """
        todo = list(messages)
        self._attend()
        if not self.has_method("send_batch"):
            for msg in todo:
                self.send(msg, timeout)
            return len(todo)
        for start in range(0, len(todo), _BATCH):
            packed = b"".join(pack(msg) for msg in todo[start : start + _BATCH])
            self.call("send_batch", packed, timeout)
        return len(todo)

    def _send_periodic_internal(
        self,
        msgs: Sequence[can.Message] | can.Message,
        period: float,
        duration: float | None = None,
        autostart: bool = True,
        modifier_callback: Any = None,
    ) -> CyclicSendTaskABC:
        if modifier_callback is not None:
            # The callback lives here, so the frames are sent from here.
            return super()._send_periodic_internal(msgs, period, duration, autostart, modifier_callback)
        frames = list(msgs) if isinstance(msgs, Sequence) else [msgs]
        uuid = self.call("_send_periodic_internal", [_wire(msg) for msg in frames], period, duration, autostart)
        return RemoteCyclicSendTask(self, UUID(str(uuid)), frames, period)

    def flush_tx_buffer(self) -> None:
        """Throw away what the exporter's interface has not sent yet."""
        self.call("flush_tx_buffer")

    # The bus

    def _property(self, name: str) -> Any:
        self._attend()
        if name not in self._properties:
            self._properties[name] = self.call(name)
        return self._properties[name]

    @property
    def channel_info(self) -> str:  # type: ignore[override]  # an attribute there
        """What python-can says about the exporter's channel."""
        return str(self._property("channel_info"))

    @property
    def protocol(self) -> can.CanProtocol:
        """Which CAN protocol the bus speaks."""
        return can.CanProtocol(int(self._property("protocol")))

    @property
    def state(self) -> can.BusState:
        """State of the bus; can be set where the interface can."""
        return can.BusState(int(self.call("state")))

    @state.setter
    def state(self, new_state: can.BusState) -> None:
        self.call("state", new_state.value)

    def shutdown(self) -> None:
        """Stop what this client does with the bus, and close the exporter's end unless others read it."""
        if self._is_shutdown:
            return
        try:
            self._stop_here()
        finally:
            self.call("shutdown")

    def close(self) -> None:
        """Stop what this client does with the bus."""
        self._end()
        super().close()

    def _stop_here(self) -> None:
        try:
            can.BusABC.shutdown(self)  # stops the periodic tasks
        finally:
            if self._receiver is not None:
                self._receiver.close()

    def _end(self) -> None:
        """The connection ends: nothing may go on here, and nobody is left to be told of a task that had failed."""
        if self._is_shutdown:
            return
        from jumpstarter.common.exceptions import DriverError

        try:
            self._stop_here()
        except DriverError as error:
            self.logger.warning("%s", error)

    def cli(self) -> click.Group:
        """Commands: send, recv, dump, state."""
        from jumpstarter_driver_can.cli import can_group

        return can_group(self)


@dataclass(kw_only=True)
class IsoTpClient(DriverClient):
    """Client of `IsoTpPython` and `IsoTpSocket`."""

    def start(self) -> None:
        """Start the link."""
        self.call("start")

    def stop(self) -> None:
        """Stop the link."""
        self.call("stop")

    def send(self, data: bytes, target_address_type: int | None = None, send_timeout: float | None = None) -> None:
        """Send a message; see the driver for when it returns. target_address_type: 0 physical, 1 functional."""
        self.call("send", _message(data), target_address_type, send_timeout)

    def recv(self, block: bool = False, timeout: float | None = None) -> bytes | None:
        """The next message, None when there is none. block: wait for it, timeout: that many seconds at most."""
        return IsoTpMessage.model_validate(self.call("recv", block, timeout)).data

    def request(self, data: bytes, timeout: float = 5.0) -> bytes:
        """Send a message and return the answer. Raises `DriverError` (DEADLINE_EXCEEDED) when none comes in time."""
        if self.has_method("request"):
            answer = IsoTpMessage.model_validate(self.call("request", _message(data), timeout)).data
        else:
            self.send(data, None, timeout)
            answer = self.recv(True, timeout)
        if answer is None:
            raise TimeoutError(f"{self.path}: no answer within {timeout:g} s")
        return answer

    def available(self) -> bool:
        """Whether a message is there."""
        return bool(self.call("available"))

    def transmitting(self) -> bool:
        """Whether a message is being sent. Raises `DriverMethodNotImplemented` for `IsoTpSocket`."""
        return bool(self.call("transmitting"))

    def errors(self) -> list[str]:
        """What went wrong on the link since this was asked last."""
        return cast(list[str], self.call("errors"))

    def set_address(self, address: isotp.Address | isotp.AsymmetricAddress) -> None:
        """Use another address from now on."""
        import isotp

        wire: IsoTpAddress | IsoTpAsymmetricAddress
        if isinstance(address, isotp.AsymmetricAddress):
            wire = IsoTpAsymmetricAddress.validate(address)
        elif isinstance(address, isotp.Address):
            wire = IsoTpAddress.validate(address)
        else:
            raise ValueError(f"{address!r} is no isotp.Address and no isotp.AsymmetricAddress")
        self.call("set_address", wire.model_dump(mode="json"))

    def stop_sending(self) -> None:
        """Give up the message being sent."""
        self.call("stop_sending")

    def stop_receiving(self) -> None:
        """Give up the message being received."""
        self.call("stop_receiving")

    def cli(self) -> click.Group:
        """Commands: start, stop, send, recv, request."""
        from jumpstarter_driver_can.cli import isotp_group

        return isotp_group(self)


def _message(data: bytes) -> dict[str, Any]:
    return IsoTpMessage(data=bytes(data)).model_dump(mode="json")
