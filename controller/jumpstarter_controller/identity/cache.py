# SPDX-License-Identifier: Apache-2.0
"""Callers that were verified a moment ago, until something that proves identities changes."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import sha256

from jumpstarter_controller.identity.callers import Caller
from jumpstarter_controller.state.bus import Subscription

__all__ = ["CallerCache"]

_MAX_ENTRIES = 10_000
#: Seconds that a caller is remembered for. So long a revocation may take when the bus to other controllers is broken.
_MAX_AGE = 10.0


class CallerCache:
    """By a digest of the proof: it holds no tokens. changes: wakes when a proof may have lost its worth."""

    def __init__(self, changes: Subscription) -> None:
        self._changes = changes
        self._callers: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        #: Grows whenever everything is forgotten: what was read before is not put in afterwards.
        self._generation = 0

    @staticmethod
    def digest(kind: bytes, proof: bytes) -> bytes:
        """The key of a proof."""
        return sha256(kind + b"\0" + proof).digest()

    def generation(self) -> int:
        """To be asked before the database is read for `put`."""
        if self._changes.take():
            self._callers.clear()
            self._generation += 1
        return self._generation

    def get(self, digest: bytes, now: float) -> Caller | None:
        """Who showed this proof. now: seconds since 1970."""
        self.generation()
        found = self._callers.get(digest)
        if found is None:
            return None
        caller, until = found
        if now >= until:
            del self._callers[digest]
            return None
        self._callers.move_to_end(digest)
        return caller

    def put(self, digest: bytes, caller: Caller, now: float, until: float, generation: int) -> None:
        """Remember a caller until then at most, unless something has changed since ``generation``."""
        if generation != self.generation():
            return
        self._callers[digest] = (caller, min(until, now + _MAX_AGE))
        while len(self._callers) > _MAX_ENTRIES:
            self._callers.popitem(last=False)
