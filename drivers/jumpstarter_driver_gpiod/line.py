# SPDX-License-Identifier: Apache-2.0
"""One line of a GPIO chip, requested from the kernel when it is first used."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jumpstarter.common.exceptions import ConfigurationError

if TYPE_CHECKING:
    import gpiod

__all__ = ["BIASES", "CONSUMER", "DRIVES", "Line", "choice"]

CONSUMER = "jumpstarter-gpiod"
#: Names of configurations, which are those of libgpiod in lower case.
DRIVES = ("push_pull", "open_drain", "open_source")
BIASES = ("as_is", "pull_up", "pull_down", "disabled")

#: Seconds between two looks whether somebody still waits.
_SLICE = 0.2


def choice(field: str, value: str | None, known: tuple[str, ...]) -> str | None:
    """The value of a field that is one of a few words or None. Raises ConfigurationError."""
    if value is not None and value not in known:
        raise ConfigurationError(f'gpiod: {field} is "{value}", must be one of {", ".join(known)}')
    return value


class Line:
    """A line by offset or name. Methods block, and raise ConnectionError when the chip or the line cannot be had.

    poll: seconds between two reads while waiting for a level on a chip without interrupts.
    """

    def __init__(
        self, device: str, line: int | str, *, active_low: bool, bias: str | None, drive: str | None, poll: float = 0.01
    ) -> None:
        self.where = f"{device} line {line}"
        self._device, self._line = device, line
        self._active_low, self._bias, self._drive, self._poll = active_low, bias, drive, poll
        self._lock = threading.Lock()
        self._request: gpiod.LineRequest | None = None
        self._edges = False

    # -- requesting

    def _settings(self, direction: str, edge: str = "NONE", value: bool = False) -> gpiod.LineSettings:
        import gpiod
        from gpiod.line import Bias, Direction, Drive, Edge, Value

        settings: dict[str, Any] = {"direction": Direction[direction], "active_low": self._active_low}
        if direction == "OUTPUT":
            settings["output_value"] = Value.ACTIVE if value else Value.INACTIVE
            settings["drive"] = Drive[(self._drive or "push_pull").upper()]
        if direction != "AS_IS":
            settings["bias"] = Bias[(self._bias or "as_is").upper()]
        if edge != "NONE":
            settings["edge_detection"] = Edge[edge]
        return gpiod.LineSettings(**settings)

    def _ask(self, settings: gpiod.LineSettings) -> gpiod.LineRequest:
        import gpiod

        return gpiod.request_lines(self._device, config={self._line: settings}, consumer=CONSUMER)

    def _failure(self, what: str, error: Exception) -> ConnectionError:
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            reason = "there is no such GPIO chip (`gpiodetect` lists them)"
        elif isinstance(error, PermissionError):
            reason = "no permission (is the exporter's user in the group gpio?)"
        elif getattr(error, "errno", None) == errno.EBUSY:
            reason = f"it is in use{self._user()}"
        elif getattr(error, "errno", None) == errno.EINVAL or isinstance(error, ValueError):
            reason = f"there is no such line, or the chip cannot do what is configured (`gpioinfo` lists): {reason}"
        return ConnectionError(f"gpiod: {self.where}: {what}: {reason}")

    def _user(self) -> str:
        import gpiod

        try:
            with gpiod.Chip(self._device) as chip:
                return f" by {chip.get_line_info(self._line).consumer!r}"
        except OSError:
            return ""

    def _forget_lost(self, error: Exception) -> None:
        """The chip was unplugged: the next use requests the line anew, from the chip that is there then."""
        if getattr(error, "errno", None) == errno.ENODEV:
            self.close()

    def close(self) -> None:
        """Give the line back. What it carries then is up to the chip; most keep it."""
        with self._lock:
            request, self._request = self._request, None
            if request is not None:
                request.release()

    # -- output

    def set(self, active: bool) -> None:
        """Drive the line; the first time it is requested with this very value, so that it does not flicker."""
        from gpiod.line import Value

        try:
            with self._lock:
                if self._request is None:
                    self._request = self._ask(self._settings("OUTPUT", value=active))
                else:
                    self._request.set_value(self._line, Value.ACTIVE if active else Value.INACTIVE)
        except (OSError, ValueError) as error:
            self._forget_lost(error)
            raise self._failure("cannot be driven", error) from error

    def drives(self, active: bool) -> bool:
        """Whether the chip itself makes the level of this state: an open drain only pulls down."""
        high = active != self._active_low
        return not (self._drive == "open_drain" and high or self._drive == "open_source" and not high)

    # -- input

    def get(self) -> bool:
        """Read the line. An output that was not driven yet is read without changing it."""
        from gpiod.line import Value

        try:
            with self._lock:
                if self._request is not None:
                    return bool(self._request.get_value(self._line) is Value.ACTIVE)
                with self._ask(self._settings("AS_IS")) as request:
                    return bool(request.get_value(self._line) is Value.ACTIVE)
        except (OSError, ValueError) as error:
            self._forget_lost(error)
            raise self._failure("cannot be read", error) from error

    def open_input(self) -> None:
        """Request the line as input, with edges where the chip has interrupts."""
        with self._lock:
            if self._request is not None:
                return
            try:
                self._request = self._ask(self._settings("INPUT", "BOTH"))
                self._edges = True
                return
            except OSError as error:
                # What kernels answer for a chip without interrupts; it may still be read.
                if error.errno not in (errno.ENXIO, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                    raise self._failure("cannot be read", error) from error
            except ValueError as error:
                raise self._failure("cannot be read", error) from error
            try:
                self._request = self._ask(self._settings("INPUT"))
            except (OSError, ValueError) as error:
                raise self._failure("cannot be read", error) from error

    @property
    def has_edges(self) -> bool:
        """Whether the kernel reports edges of the input; known once it is open."""
        return self._edges

    def wait_level(self, active: bool, timeout: float | None, given_up: Callable[[], bool]) -> None:
        """Return when the input is at the level. Raises TimeoutError after `timeout` seconds."""
        self.open_input()
        self._drop_events()
        end = None if timeout is None else time.monotonic() + timeout
        while self.get() != active:
            self._pause(end, timeout, "active" if active else "inactive", given_up, self._poll)

    def wait_edge(self, rising: bool, timeout: float | None, given_up: Callable[[], bool]) -> None:
        """Return when an edge comes. Raises TimeoutError, or NotImplementedError on a chip without interrupts."""
        import gpiod

        self.open_input()
        if not self._edges:
            raise NotImplementedError(
                f"gpiod: {self.where}: the chip has no interrupts, so edges cannot be seen; wait for a level instead"
            )
        wanted = gpiod.EdgeEvent.Type.RISING_EDGE if rising else gpiod.EdgeEvent.Type.FALLING_EDGE
        self._drop_events()
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            request = self._request
            if request is None:
                raise ConnectionError(f"gpiod: {self.where} was closed")
            if request.wait_edge_events(0) and any(e.event_type is wanted for e in request.read_edge_events()):
                return
            self._pause(end, timeout, "rising edge" if rising else "falling edge", given_up, self._poll)

    def _drop_events(self) -> None:
        """Forget edges of before the wait; levels are read, not derived from edges."""
        request = self._request
        while self._edges and request is not None and request.wait_edge_events(0):
            request.read_edge_events()

    def _pause(
        self, end: float | None, timeout: float | None, what: str, given_up: Callable[[], bool], poll: float
    ) -> None:
        """Wait for the next edge, or for a moment."""
        left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
        if left <= 0:
            raise TimeoutError(f"gpiod: {self.where}: not {what} within {timeout:g} s")
        if given_up():
            raise ConnectionError(f"gpiod: {self.where}: waiting for {what}: the caller went away")
        request = self._request
        if request is None:
            raise ConnectionError(f"gpiod: {self.where} was closed")
        if self._edges:
            request.wait_edge_events(left)
        else:
            time.sleep(min(poll, left))
