# SPDX-License-Identifier: Apache-2.0
"""Calls of drivers by other drivers: of methods that were written sync or async."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

from jumpstarter.driver.cancellation import CANCELLED

__all__ = ["call_to_end"]


async def call_to_end(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method of a driver. A sync one runs in a thread.

    Nobody can stop a thread: a caller that is cancelled meanwhile gets on when the method has ended, which can see by
    `call_cancelled` that it had better. Otherwise what it does to the hardware would come after what the next call
    does.
    """
    if inspect.iscoroutinefunction(inspect.unwrap(getattr(method, "__func__", method))):
        return await method(*arguments)
    nobody_waits = threading.Event()
    context = contextvars.copy_context()
    context.run(CANCELLED.set, nobody_waits)
    work = asyncio.get_running_loop().run_in_executor(None, lambda: context.run(method, *arguments))
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError as error:
            cancelled = error
            nobody_waits.set()
        except Exception:  # noqa: BLE001 - raised below, unless the caller is cancelled
            break
    if cancelled is not None:
        if not work.cancelled():
            work.exception()
        raise cancelled
    return work.result()
