# SPDX-License-Identifier: Apache-2.0
"""The commands of CAN clients, in the notation of can-utils."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import can
import click

from jumpstarter.client.decorators import driver_click_group
from jumpstarter_driver_can.common import CanMessage
from jumpstarter_driver_can.notation import format_frame, parse_data, parse_filter, parse_frame

if TYPE_CHECKING:
    from jumpstarter_driver_can.client import CanClient, IsoTpClient

__all__ = ["can_group", "isotp_group"]


class _Notation(click.ParamType[Any]):
    """An argument that a function of `notation` understands."""

    def __init__(self, name: str, parse: Any) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value; wrong notation is a usage error."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_FRAME = _Notation("frame", lambda text: CanMessage.model_validate(parse_frame(text)).message())
_FILTER = _Notation("filter", parse_filter)
_DATA = _Notation("data", parse_data)


def _text(msg: can.Message) -> str:
    return format_frame(CanMessage.construct(msg).model_dump(mode="json"))


def can_group(client: CanClient) -> click.Group:
    """send, recv, dump, state."""

    @driver_click_group(client)
    def can_commands() -> None:
        """Send and receive CAN frames."""

    @can_commands.command("send")
    @click.argument("frames", nargs=-1, required=True, type=_FRAME)
    @click.option("--period", type=click.FloatRange(min=0, min_open=True), help="Repeat, every so many seconds.")
    @click.option("--duration", type=click.FloatRange(min=0, min_open=True), help="Seconds to repeat. Default: Ctrl-C.")
    def send(frames: tuple[can.Message, ...], period: float | None, duration: float | None) -> None:
        """Send FRAMES: 123#DEADBEEF, 1F334455#11.22 (extended), 123#R4 (remote), 123##1AABB (FD, bitrate switch)."""
        if period is None:
            if duration is not None:
                raise click.UsageError("--duration needs --period")
            client.send_many(frames)
            return
        tasks = [client.send_periodic(frame, period) for frame in frames]
        try:
            _sleep(duration)
        finally:
            for task in tasks:
                task.stop()

    @can_commands.command("recv")
    @click.argument("filters", nargs=-1, type=_FILTER)
    @click.option("-n", "--count", type=click.IntRange(min=1), default=1, show_default=True, help="Frames to wait for.")
    @click.option("-t", "--timeout", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds.")
    def recv(filters: tuple[Any, ...], count: int, timeout: float) -> None:
        """Print the next frames that pass one of FILTERS (123, 123:7F0, 18DAF110), from what nobody has read yet."""
        client.set_filters(list(filters) or None)
        end = time.monotonic() + timeout
        for got in range(count):
            msg = client.recv(max(end - time.monotonic(), 0))
            if msg is None:
                raise click.ClickException(f"{got} of {count} frames within {timeout:g} s")
            click.echo(_text(msg))

    @can_commands.command("dump")
    @click.argument("filters", nargs=-1, type=_FILTER)
    @click.option("-n", "--count", type=click.IntRange(min=1), help="End after so many frames.")
    @click.option("-T", "--timeout", type=click.FloatRange(min=0), help="End after so many seconds without a frame.")
    @click.option("-L", "--log", is_flag=True, help="As candump -L prints it, for canplayer and log2asc.")
    def dump(filters: tuple[Any, ...], count: int | None, timeout: float | None, log: bool) -> None:
        """Print what comes from now on, as candump does, until Ctrl-C."""
        client.set_filters(list(filters) or None)
        client.listen()
        for msg in _received(client, count, timeout):
            channel = str(msg.channel if msg.channel is not None else client.name or "can").replace(" ", "_")
            if log:
                click.echo(f"({msg.timestamp:017.6f}) {channel} {_text(msg)}")
            else:
                click.echo(_dump_line(msg, channel))

    @can_commands.command("state")
    def state() -> None:
        """Print the state of the bus, its protocol and its channel."""
        click.echo(f"{client.state.name.lower()} {client.protocol.name} {client.channel_info}")

    return can_commands


def _received(client: CanClient, count: int | None, timeout: float | None) -> Iterable[can.Message]:
    left = count
    while left is None or left > 0:
        msg = client.recv(timeout)
        if msg is None:
            return
        yield msg
        left = None if left is None else left - 1


def _dump_line(msg: can.Message, channel: str) -> str:
    ident = f"{msg.arbitration_id:08X}" if msg.is_extended_id else f"{msg.arbitration_id:03X}"
    if msg.is_remote_frame:
        data = "remote request"
    else:
        data = msg.data.hex(" ").upper()
    length = f"[{msg.dlc:02d}]" if msg.is_fd else f" [{msg.dlc}] "
    return f"  {channel}  {ident:>8}  {length} {data}".rstrip()


def _sleep(seconds: float | None) -> None:
    if seconds is None:
        while True:
            time.sleep(3600)
    time.sleep(seconds)


def isotp_group(client: IsoTpClient) -> click.Group:
    """start, stop, send, recv, request."""

    @driver_click_group(client)
    def isotp_commands() -> None:
        """Send and receive ISO-TP messages."""

    @isotp_commands.command("start")
    def start() -> None:
        """Start the link."""
        client.start()

    @isotp_commands.command("stop")
    def stop() -> None:
        """Stop the link."""
        client.stop()

    @isotp_commands.command("send")
    @click.argument("data", type=_DATA)
    @click.option("-t", "--timeout", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds.")
    def send(data: bytes, timeout: float) -> None:
        """Send DATA (hex)."""
        client.send(data, None, timeout)

    @isotp_commands.command("recv")
    @click.option("-t", "--timeout", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Seconds.")
    def recv(timeout: float) -> None:
        """Print the next message in hex."""
        data = client.recv(True, timeout)
        if data is None:
            raise click.ClickException(f"no message within {timeout:g} s")
        click.echo(data.hex().upper())

    @isotp_commands.command("request")
    @click.argument("data", type=_DATA)
    @click.option("-t", "--timeout", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Seconds.")
    def request(data: bytes, timeout: float) -> None:
        """Send DATA (hex) and print the answer."""
        click.echo(client.request(data, timeout).hex().upper())

    return isotp_commands
