# SPDX-License-Identifier: Apache-2.0
"""Drivers for CAN buses and ISO-TP links."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID, uuid4

import can

from jumpstarter.driver import Driver, export
from jumpstarter_driver_can.backlog import Entry
from jumpstarter_driver_can.bus import BusSettings, SharedBus, bus_error
from jumpstarter_driver_can.common import CanMessage
from jumpstarter_driver_can.cyclic import CyclicSend
from jumpstarter_driver_can.expecting import Expectations
from jumpstarter_driver_can.isotp_python import IsoTpPython
from jumpstarter_driver_can.isotp_socket import IsoTpSocket
from jumpstarter_driver_can.packing import EXTENDED, ID_MASK, unpack

__all__ = ["Can", "CanFilter", "IsoTpPython", "IsoTpSocket"]

#: Seconds between two batches of `frames`, and frames in one.
_BATCH_SECONDS = 0.002
_BATCH_FRAMES = 1024
#: Periodic tasks that are remembered, so that stopped ones can be started again.
_TASKS = 1024


@dataclass
class CanFilter:
    """A filter of python-can: frames with ``id & can_mask == can_id & can_mask`` pass."""

    can_id: int
    can_mask: int
    extended: bool | None = None


def _matches(entry: Entry, filters: Sequence[CanFilter] | None) -> bool:
    if not filters:
        return True
    extended = bool(entry.ident & EXTENDED)
    ident = entry.ident & ID_MASK
    for one in filters:
        if one.extended is not None and one.extended != extended:
            continue
        if not (ident ^ one.can_id) & one.can_mask:
            return True
    return False


@dataclass(kw_only=True)
class Can(Driver):
    """A CAN bus, through any interface of python-can.

    channel, interface: as python-can knows them; None takes what its own configuration says. bitrate, data_bitrate:
    bit/s. fd: CAN FD. receive_own_messages: also receive what this bus sends. options: further arguments of the
    interface, for example ``{sleep_after_open: 0.1}`` for slcan.

    The bus is opened when a session begins (in the background; a failure is reported by the first call) and closed
    when it ends. An adapter that was lost is opened again by the next call.
    """

    driver_type: ClassVar[str] = "automotive"
    needs: ClassVar[tuple[str, ...]] = ("can", "isotp")

    channel: str | int | None
    interface: str | None
    bitrate: int | None = None
    fd: bool | None = None
    data_bitrate: int | None = None
    receive_own_messages: bool | None = None
    options: dict[str, Any] = field(default_factory=dict)

    _shared: SharedBus = field(init=False, repr=False)
    _tasks: OrderedDict[UUID, CyclicSend] = field(init=False, repr=False, default_factory=OrderedDict)
    # Held while tasks begin and while all of them end: one that began unseen would send for ever.
    _beginning: threading.Lock = field(init=False, repr=False, compare=False, default_factory=threading.Lock)
    _over: bool = field(init=False, repr=False, default=False)
    _filters: Sequence[CanFilter] | None = field(init=False, repr=False, default=None)
    _cursor: int = field(init=False, repr=False, default=0)
    _readers: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        settings = BusSettings(
            self.channel,
            self.interface,
            self.options,
            bitrate=self.bitrate,
            fd=self.fd,
            data_bitrate=self.data_bitrate,
            receive_own_messages=self.receive_own_messages,
        )
        self._shared = SharedBus(settings, self.logger)

    @classmethod
    def client(cls) -> str:
        """Path of the client class."""
        return "jumpstarter_driver_can.client.CanClient"

    def reset(self) -> None:
        """A session begins: open the bus, so that nothing is missed that comes before the first call.

        What the one before let the exporter send ends here.
        """
        super().reset()
        self._stop_tasks(forget=True, over=False)
        self._shared.backlog.forget()
        self._cursor = self._shared.backlog.end
        self._filters = None
        self._shared.start()

    def close(self) -> None:
        """Stop periodic sending and close the bus."""
        super().close()
        self._stop_tasks(forget=True, over=True)
        self._shared.close(over=True)

    def _stop_tasks(self, *, forget: bool, over: bool) -> None:
        """over: whether none may begin any more; a call may still be under way in its thread."""
        with self._beginning:
            self._over = over
            for uuid, task in self._tasks.items():
                try:
                    task.stop()
                except ConnectionError as error:
                    self.logger.warning("can: task %s: %s", uuid, error)
            if forget:
                self._tasks.clear()

    def _begin(self, task: CyclicSend) -> None:
        if self._over:
            raise ConnectionError(f"can: {self._shared.settings.where}: the session has ended")
        task.start()

    async def _open(self) -> None:
        if not self._shared.ready:
            await asyncio.to_thread(self._shared.get)

    # Receiving -------------------------------------------------------------------------------------------------

    @export(concurrent=True)
    async def _recv_internal(self, timeout: float | None) -> tuple[CanMessage | None, bool]:
        """The next frame, or None after `timeout` seconds, and whether filters were applied.

        Callers share one position: each frame goes to one of them (`frames` is for those who want all).
        """
        await self._open()
        backlog = self._shared.backlog
        try:
            async with asyncio.timeout(timeout):
                while True:
                    entries, _, self._cursor = backlog.take(self._cursor, 1)
                    if not entries:
                        await backlog.wait(self._cursor)
                    elif _matches(entries[0], self._filters):
                        return _wire(entries[0]), True
        except TimeoutError:
            return None, True

    @export(readonly=True)
    async def frames(
        self, filters: list[CanFilter] | None = None, since: int | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what is received, in batches, each reader for itself.

        since: number of the first frame wanted; None for the first that no reader has seen, negative for the next to
        come. Each item has ``frames`` (see `packing`; the first item has none: the bus is read from then on),
        ``channel`` of these, ``dropped`` (how many were lost because this reader was slow), ``next`` (number of the
        next frame).
        A lone frame goes at once, many wait up to 2 ms for each other.
        """
        await self._open()
        backlog = self._shared.backlog
        cursor = backlog.begin(since)
        loop = asyncio.get_running_loop()
        last = 0.0
        self._readers += 1
        try:
            yield {"frames": b"", "channel": None, "dropped": 0, "next": cursor}
            while True:
                await backlog.wait(cursor)
                if (wait := last + _BATCH_SECONDS - loop.time()) > 0:
                    await asyncio.sleep(wait)
                entries, dropped, cursor = backlog.take(cursor, _BATCH_FRAMES)
                wanted = [entry for entry in entries if _matches(entry, filters)]
                if not wanted and not dropped:
                    continue
                last = loop.time()
                packed = b"".join(entry.packed for entry in wanted)
                channel = wanted[-1].channel if wanted else None
                yield {"frames": packed, "channel": channel, "dropped": dropped, "next": cursor}
        finally:
            self._readers -= 1

    @export(concurrent=True)
    async def exchange(
        self,
        send: list[CanMessage],
        expect: list[dict[str, Any]],
        timeout: float = 5.0,
        fresh: bool = False,
    ) -> dict[str, Any]:
        """Send frames, then wait until all that is expected (see `Expectations`) has come.

        fresh: look only at frames that come after this call began, not at those nobody has seen yet. Returns the
        ``frames`` that were expected, and how many ``others`` came. Raises TimeoutError naming what did not come.
        """
        expected = Expectations(expect)
        messages = [msg.message() for msg in send]
        await self._open()
        backlog = self._shared.backlog
        cursor = backlog.begin(-1 if fresh else None)
        try:
            async with asyncio.timeout(timeout):
                for message in messages:
                    await asyncio.to_thread(self._shared.send, message, timeout)
                while not expected.done:
                    await backlog.wait(cursor)
                    entries, _, cursor = backlog.take(cursor, 1)
                    expected.offer(_wire(entries[0]).model_dump(mode="json"))
        except TimeoutError as error:
            if not expected.done:
                raise TimeoutError(f"can: {self._shared.settings.where}: {expected.missing(timeout)}") from error
            raise
        return {"frames": expected.frames, "others": expected.others}

    @export(concurrent=True)
    def _apply_filters(self, filters: list[CanFilter] | None) -> None:
        """Filters of `_recv_internal`; None for all frames."""
        self._filters = filters

    # Sending ---------------------------------------------------------------------------------------------------

    @export(concurrent=True)
    def send(self, msg: CanMessage, timeout: float | None = None) -> None:
        """Send a frame. timeout: seconds the interface may need to take it.

        Raises ValueError for what is no frame, ConnectionError and TimeoutError when it could not be sent.
        """
        self._shared.send(msg.message(), timeout)

    @export(concurrent=True)
    def send_batch(self, frames: bytes, timeout: float | None = None) -> int:
        """Send frames (see `packing`) one after the other, and tell how many. timeout: seconds for each.

        Raises ConnectionError or TimeoutError saying how many were sent before one failed.
        """
        messages = list(unpack(frames))
        for count, message in enumerate(messages):
            try:
                self._shared.send(message, timeout)
            except (ConnectionError, TimeoutError) as error:
                raise type(error)(f"{error} ({count} of {len(messages)} frames were sent)") from error
        return len(messages)

    @export(concurrent=True)
    def _send_periodic_internal(
        self,
        msgs: CanMessage | list[CanMessage],
        period: float,
        duration: float | None = None,
        autostart: bool = True,
        modifier_callback: None = None,
    ) -> UUID:
        """Send frames every `period` seconds, for `duration` seconds if given. Returns the id of the task.

        A callback cannot travel: clients send such frames themselves.
        """
        messages = [msg.message() for msg in (msgs if isinstance(msgs, list) else [msgs])]
        if not messages:
            raise ValueError("can: nothing to send periodically: the list of frames is empty")
        if len({msg.arbitration_id for msg in messages}) > 1:
            raise ValueError("can: the frames of a periodic task must have the same id; start one task for each")
        if period <= 0:
            raise ValueError(f"can: the period is {period:g} s, must be positive")
        task = CyclicSend(self._shared, messages, period, duration, self.logger)
        uuid = uuid4()
        with self._beginning:
            if autostart:
                self._begin(task)
            self._tasks[uuid] = task
            if len(self._tasks) > _TASKS:
                self._forget_one()
        return uuid

    def _forget_one(self) -> None:
        for uuid, task in self._tasks.items():
            if not task.running:
                del self._tasks[uuid]
                return
        uuid, task = self._tasks.popitem(last=True)
        task.stop()
        raise ValueError(f"can: {_TASKS} periodic tasks are running; stop some first")

    def _task(self, uuid: UUID) -> CyclicSend:
        try:
            return self._tasks[uuid]
        except KeyError:
            raise ValueError(f"can: there is no periodic task {uuid}") from None

    @export(concurrent=True)
    def _start_task(self, uuid: UUID) -> None:
        """Start a periodic task, for the first time or again."""
        with self._beginning:
            self._begin(self._task(uuid))

    @export(concurrent=True)
    def _stop_task(self, uuid: UUID) -> None:
        """Stop a periodic task. Raises ConnectionError when it had ended because sending failed."""
        with self._beginning:
            self._task(uuid).stop()

    @export(concurrent=True)
    def _modify_task(self, uuid: UUID, msgs: list[CanMessage]) -> None:
        """Let a periodic task send these frames, of the same id, from now on."""
        self._task(uuid).modify([msg.message() for msg in msgs])

    @export(readonly=True)
    def _task_status(self, uuid: UUID) -> dict[str, Any]:
        """Whether a periodic task is running, and how many frames it sent (0 where the interface does the sending)."""
        task = self._task(uuid)
        return {"running": task.running, "sent": task.sent}

    # The bus ---------------------------------------------------------------------------------------------------

    @export(concurrent=True)
    def state(self, value: can.BusState | None = None) -> can.BusState | None:
        """State of the bus, or set it. Raises NotImplementedError where the interface cannot."""
        bus = self._shared.get()
        if value is None:
            return bus.state
        try:
            bus.state = value
        except (can.CanError, OSError, NotImplementedError) as error:
            raise bus_error(self._shared.settings.where, f"setting the state to {value.name}", error) from error
        return None

    @export(readonly=True)
    def protocol(self) -> can.CanProtocol:
        """Which CAN protocol the bus speaks."""
        return self._shared.get().protocol

    @export(readonly=True)
    def channel_info(self) -> str:
        """What python-can says about the channel."""
        return self._shared.get().channel_info

    @export(concurrent=True)
    def flush_tx_buffer(self) -> None:
        """Throw away what the interface has not sent yet. Raises NotImplementedError where it cannot."""
        try:
            self._shared.get().flush_tx_buffer()
        except (can.CanError, OSError, NotImplementedError) as error:
            raise bus_error(self._shared.settings.where, "flushing the send buffer", error) from error

    @export(concurrent=True)
    def shutdown(self) -> None:
        """Close the bus, unless another client is reading it. It is opened again by the next call."""
        if self._readers:
            self.logger.info("can: %s stays open: %d clients read it", self._shared.settings.where, self._readers)
            return
        self._stop_tasks(forget=False, over=False)
        self._shared.close()


def _wire(entry: Entry) -> CanMessage:
    return CanMessage.construct(next(unpack(entry.packed, entry.channel)))
