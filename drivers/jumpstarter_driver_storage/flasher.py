# SPDX-License-Identifier: Apache-2.0
"""The flasher every storage driver is built on: compatible calls, and the additive ones our own clients use.

A driver says what its targets are (`ImageFlasher.storage_targets`) and may prepare them (`before_write`,
`after_write`); checks, writing, digests, verification and records are done here, in threads.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from anyio import BrokenResourceError, ClosedResourceError

from jumpstarter.common.storage import BLOCK_SIZE, pack_blocks, unpack_blocks
from jumpstarter.driver import Driver, export
from jumpstarter.driver.flasher import FlasherInterface
from jumpstarter.streams.encoding import Compression
from jumpstarter_driver_storage.data import DataListener, SocketChunks
from jumpstarter_driver_storage.errors import JobCancelled, StorageFault, StorageRefused, TransferBroken
from jumpstarter_driver_storage.feeder import Feeder
from jumpstarter_driver_storage.job import FlashJob, FlashOptions
from jumpstarter_driver_storage.operation import Operation
from jumpstarter_driver_storage.reading import read_target
from jumpstarter_driver_storage.record import RecordStore
from jumpstarter_driver_storage.target import Checked, Target, check
from jumpstarter_driver_storage.verify import bad_blocks

if TYPE_CHECKING:
    from jumpstarter_protocol.jumpstarter.v1 import jumpstarter_pb2

Event = dict[str, Any]

_TURN: Final = 5.0
"""Seconds a flash waits for the one before it to end."""


@dataclass(kw_only=True)
class ImageFlasher(FlasherInterface, Driver):
    """Base of flashers. ``state_dir``: folder for records (default: below $XDG_STATE_HOME)."""

    state_dir: str | None = None
    _store: RecordStore = field(init=False, repr=False)
    _reported_name: str | None = field(init=False, repr=False, default=None)
    _writing: asyncio.Lock = field(init=False, repr=False, default_factory=asyncio.Lock)
    _operations: set[Operation[Any]] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._store = RecordStore(self.state_dir)

    def keep_records_in(self, folder: str) -> None:
        """Use another folder for records than the configuration says."""
        self._store = RecordStore(folder)

    # --- what a driver provides -----------------------------------------------------------------------------

    @abstractmethod
    def storage_targets(self) -> Mapping[str, Target]:
        """The targets by name."""

    def default_target_name(self) -> str | None:
        """Target of a flash that names none; None when the client must choose."""
        names = list(self.storage_targets())
        return names[0] if len(names) == 1 else None

    def find_target(self, name: str | None) -> tuple[str, Target]:
        """The target a client asked for; raises ValueError that lists what there is."""
        targets = self.storage_targets()
        wanted = name or self.default_target_name()
        known = ", ".join(targets) or "none"
        if wanted is None:
            raise ValueError(f"driver {self.owner} has several targets, name one: {known}")
        if wanted not in targets:
            raise ValueError(f'driver {self.owner} has no target "{wanted}"; targets: {known}')
        return wanted, targets[wanted]

    async def before_write(self, name: str) -> None:
        """Called before target ``name`` is checked and written: refuse with StorageRefused, or switch it over."""

    async def after_write(self, name: str) -> None:
        """Called when the write is over, however it went."""

    def turn_timeout(self) -> float:
        """Seconds a flash that was cancelled may take to end before the next one is refused as the second."""
        return _TURN

    @property
    def owner(self) -> str:
        """What messages call this driver."""
        return self.name or self._reported_name or type(self).__name__

    def report(
        self, *, root: Driver | None = None, parent: Driver | None = None, name: str | None = None
    ) -> jumpstarter_pb2.DriverInstanceReport:
        """What clients are told about this instance; notes the name it goes by, for messages."""
        self._reported_name = self._reported_name or name
        report: jumpstarter_pb2.DriverInstanceReport = super().report(root=root, parent=parent, name=name)
        return report

    # --- calls every Jumpstarter client knows ---------------------------------------------------------------

    @export
    async def flash(self, source: Any, target: str | None = None) -> dict[str, Any]:
        """Write the image behind ``source`` to ``target``; returns when it is on the medium and verified."""
        return await self.run_flash(source, target, {"compression": "auto"})

    @export
    async def dump(self, target: Any, partition: str | None = None) -> None:
        """Send the whole content of target ``partition`` to the handle ``target``."""
        await self.run_dump(target, partition)

    # --- additive calls -------------------------------------------------------------------------------------

    @export(readonly=True)
    def targets(self) -> list[dict[str, Any]]:
        """What can be flashed: name, kind, path, capacity in bytes or None, default, and problem when it is not
        what the configuration declares."""
        default = self.default_target_name()
        return [{**self._look(name, target)[0], "default": name == default} for name, target in self._all()]

    @export(readonly=True)
    def flash_state(self, target: str | None = None) -> dict[str, Any]:
        """One target as `targets` tells it, with ``record`` (what was written last, or None) and ``untouched``
        (nobody else wrote to it since, as far as the kernel tells)."""
        name, found = self.find_target(target)
        state, checked = self._look(name, found)
        record = self._store.load(checked) if checked is not None and checked.exists else None
        untouched = False
        if record is not None and checked is not None and record.state == "valid":
            if checked.holds_only(record.size):
                untouched = record.fingerprint == checked.fingerprint()
            else:
                record = None  # somebody made it longer or shorter: it holds something else now
        return {**state, "record": record.summary() if record else None, "untouched": untouched}

    @export
    async def flash_image(
        self, source: Any, target: str | None = None, options: dict[str, Any] | None = None
    ) -> AsyncIterator[Event]:
        """Write an image and tell how it goes: ``progress`` events, then one ``result`` or ``error``.

        ``options``: the fields of `FlashOptions`; ``repair`` as runs ``[first, count]`` of blocks; ``data`` (see
        `DataListener`) asks for a connection of its own for the image: the first event then says where, and ``source``
        is not looked at.
        """
        async with aclosing(self._flash(source, target, options or {})) as events:
            async for event in events:
                yield event

    @export(readonly=True)
    async def verify_image(self, target: str | None = None) -> AsyncIterator[Event]:
        """Read the target back and compare it with the record: ``progress`` events, then one ``result`` with
        ``bad`` (count) and ``bad_blocks`` (runs ``[first, count]`` of blocks of ``block_size`` bytes)."""
        name, found = await asyncio.to_thread(self.find_target, target)
        checked = await asyncio.to_thread(check, name, found, self.owner, writing=False)
        record = await asyncio.to_thread(self._store.load, checked)
        if record is None or record.state != "valid":
            raise StorageRefused(f"{checked.label} has no valid record to compare it with", code="refused")
        cancelled = [False]

        def work(notify: Callable[[Event], None]) -> list[int]:
            total = -(-record.size // BLOCK_SIZE)
            step = max(1, total // 100) * BLOCK_SIZE
            told = [0]

            def progress(done: int) -> None:
                if cancelled[0]:
                    raise JobCancelled
                if done - told[0] >= step or done == record.size:
                    told[0] = done
                    notify({"event": "progress", "phase": "comparing", "done": done, "total": record.size})

            return bad_blocks(checked, record.size, record.block_digests(), progress=progress)

        def cancel() -> None:
            cancelled[0] = True

        async with self._operation(f"verify-{name}", work, cancel) as operation:
            async for event in operation.events():
                yield event
            wrong = operation.result()
        yield {
            "event": "result", "target": name, "size": record.size, "sha256": record.sha256, "bad": len(wrong),
            "bad_blocks": pack_blocks(wrong), "block_size": BLOCK_SIZE,
        }  # fmt: skip

    def reset(self) -> None:
        """Start of a session, which may run in another event loop than the one before."""
        super().reset()
        self._writing = asyncio.Lock()

    def close(self) -> None:
        """End of the session: running operations stop."""
        for operation in tuple(self._operations):
            operation.abandon()
        super().close()

    # --- for drivers ----------------------------------------------------------------------------------------

    async def run_flash(
        self, source: Any, target: str | None, options: Mapping[str, Any], *, prepare: bool = True
    ) -> Event:
        """A whole flash; returns its ``result`` event. ``prepare``: call `before_write` and `after_write`."""
        result: Event = {}
        async with aclosing(self._flash(source, target, options, prepare=prepare)) as events:
            async for event in events:
                if event["event"] == "result":
                    result = event
        return result

    async def run_dump(self, handle: Any, target: str | None) -> None:
        """Send what the target holds to a client's handle."""
        name, found = await asyncio.to_thread(self.find_target, target)
        checked = await asyncio.to_thread(check, name, found, self.owner, writing=False)
        async with self.resource(handle) as stream, aclosing(read_target(checked)) as blocks:
            async for data in blocks:
                await stream.send(data)

    # --- how ------------------------------------------------------------------------------------------------

    async def _flash(
        self, source: Any, target: str | None, options: Mapping[str, Any], *, prepare: bool = True
    ) -> AsyncGenerator[Event, None]:
        name, found = await asyncio.to_thread(self.find_target, target)
        try:
            options = dict(options)
            data = options.pop("data", None)
            wanted = parse_options(options, found)
            async with self._turn(name):
                if prepare:
                    await self.before_write(name)
                try:
                    # Waiting and switching took their time: what was found before may have another name by now.
                    name, found = await asyncio.to_thread(self.find_target, name)
                    checked = await asyncio.to_thread(check, name, found, self.owner)
                    transfer = self._receive(data, checked, wanted) if data else self._transfer(source, checked, wanted)
                    async with aclosing(transfer) as events:
                        async for event in events:
                            yield event
                except BaseException as error:
                    if prepare:
                        await self._after_failed_write(name, error)
                    raise
                if prepare:
                    await self.after_write(name)
        except StorageFault as fault:
            self.logger.warning('flash of target "%s" failed: %s', name, fault)
            yield fault.as_event()
            raise

    async def _after_failed_write(self, name: str, failure: BaseException) -> None:
        """`after_write`, of which a failure must not hide the first one."""
        try:
            await self.after_write(name)
        except Exception as error:  # noqa: BLE001 - told with the first one where that has words, and logged
            self.logger.warning('after the failed flash of target "%s": %s', name, error)
            if isinstance(failure, StorageFault):
                failure.message += f" (and afterwards: {getattr(error, 'message', error)})"

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """One flash at a time; one that was just cancelled gets a moment to end."""
        turn = self._writing  # another one from the next session's `reset` on
        try:
            async with asyncio.timeout(self.turn_timeout()):
                await turn.acquire()
        except TimeoutError:
            raise StorageRefused(
                f'target "{name}" of driver {self.owner}: another flash of this driver is running', code="busy"
            ) from None
        try:
            yield
        finally:
            turn.release()

    async def _transfer(self, source: Any, checked: Checked, options: FlashOptions) -> AsyncGenerator[Event, None]:
        feeder = Feeder()
        async with self.resource(source) as stream:
            encoding = stream.encoding
            if encoding and options.framing == "plain":
                options = _with_compression(options, encoding)
            job = FlashJob(checked, self._store, options)

            def work(notify: Callable[[Event], None]) -> Event:
                return {"event": "result", **asdict(job.run(feeder, notify))}

            def cancel() -> None:
                job.cancel()
                feeder.fail(JobCancelled())

            raw = stream.raw()
            pump = asyncio.create_task(feed(raw, feeder))
            try:
                async with self._operation(f"flash-{checked.name}", work, cancel) as operation:
                    async for event in operation.events():
                        yield event
                    result = operation.result()
            finally:
                feeder.abandon()
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
        self._log_result(result)
        yield result

    async def _receive(
        self, wanted: Mapping[str, Any], checked: Checked, options: FlashOptions
    ) -> AsyncGenerator[Event, None]:
        """Like `_transfer`, with the image on a connection of its own."""
        checked.refuse_if_larger(options.size or 0)
        listener = DataListener(wanted)
        try:
            job = FlashJob(checked, self._store, options)

            def work(notify: Callable[[Event], None]) -> Event:
                return {"event": "result", **asdict(job.run(received(), notify))}

            def received() -> SocketChunks:
                return SocketChunks(listener.accept, sparse=options.framing == "sparse", size=options.source_size)

            def cancel() -> None:
                job.cancel()
                listener.stop()

            yield listener.offer()
            async with self._operation(f"flash-{checked.name}", work, cancel) as operation:
                async for event in operation.events():
                    yield event
                result = operation.result()
        finally:
            listener.close()
        self._log_result(result)
        yield result

    def _log_result(self, result: Event) -> None:
        self.logger.info(
            'target "%s": %d bytes written, %d skipped, sha256 %s',
            result["target"], result["written"], result["skipped"], result["sha256"],
        )  # fmt: skip

    @asynccontextmanager
    async def _operation(
        self, name: str, work: Callable[[Callable[[Event], None]], Any], cancel: Callable[[], None]
    ) -> AsyncIterator[Operation[Any]]:
        operation: Operation[Any] = Operation(name, work, cancel)
        self._operations.add(operation)
        try:
            yield operation
        finally:
            self._operations.discard(operation)
            await operation.stop()

    def _all(self) -> list[tuple[str, Target]]:
        return list(self.storage_targets().items())

    def _look(self, name: str, target: Target) -> tuple[dict[str, Any], Checked | None]:
        state: dict[str, Any] = {
            "name": name, "kind": target.kind, "path": target.path, "capacity": target.size, "exists": False,
            "problem": None, "code": None,
        }  # fmt: skip
        try:
            checked = check(name, target, self.owner)
        except StorageFault as fault:
            state |= {"problem": fault.message, "code": fault.code}
            return state, None
        state |= {"kind": checked.kind, "capacity": checked.capacity, "exists": checked.exists}
        return state, checked


async def feed(stream: Any, feeder: Feeder) -> None:
    """Hand what a stream gives to the worker thread, up to its end or what broke it."""
    try:
        async for chunk in stream:
            await feeder.put(chunk)
    except (BrokenResourceError, ClosedResourceError, OSError) as error:
        feeder.fail(TransferBroken(str(error) or "its connection is gone"))
    except Exception as error:  # noqa: BLE001 - whatever it is, the thread must not wait for more for ever
        feeder.fail(TransferBroken(str(error) or type(error).__name__))
    else:
        feeder.close()


def _with_compression(options: FlashOptions, encoding: str) -> FlashOptions:
    return FlashOptions(**{**options.__dict__, "compression": Compression(encoding)})


def parse_options(options: Mapping[str, Any], target: Target) -> FlashOptions:
    """What a client sent as options of a flash. Raises StorageRefused."""
    fields = dict(options)
    if unknown := sorted(set(fields) - set(FlashOptions.__dataclass_fields__)):
        raise StorageRefused(f"unknown flash option {unknown[0]!r}", code="refused")
    for key in ("size", "source_size"):
        if fields.get(key) is not None:
            fields[key] = int(fields[key])
    if fields.get("repair") is not None:
        fields["repair"] = tuple(unpack_blocks(fields["repair"]))
    compression = fields.get("compression")
    if compression == "auto" and target.decompress == "never":
        fields["compression"] = None
    elif compression not in (None, "auto"):
        try:
            fields["compression"] = Compression(compression)
        except ValueError:
            known = ", ".join(Compression)
            raise StorageRefused(f"unknown compression {compression!r}; known are {known}", code="refused") from None
    return FlashOptions(**fields)
