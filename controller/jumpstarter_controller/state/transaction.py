# SPDX-License-Identifier: Apache-2.0
"""What a function that changes the state is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from jumpstarter_controller.state.models import AuditEntry

__all__ = ["Transaction"]


class Transaction:
    """One transaction. now: its time, in seconds since 1970. Objects it returns stay readable afterwards."""

    def __init__(self, session: Session, now: float) -> None:
        self.session = session
        self.now = now
        self.topics: set[str] = set()
        self.measures: list[tuple[str, float]] = []
        self.consequences: list[Callable[[], None]] = []

    def touch(self, *topics: str) -> None:
        """Say what changes, for those who wait on the bus."""
        self.topics.update(topics)

    def measure(self, name: str, value: float = 1.0) -> None:
        """Count something for the metrics; it counts when the transaction is committed."""
        self.measures.append((name, value))

    def then(self, call: Callable[[], None]) -> None:
        """Have ``call`` called once this is committed, in the thread of the event loop if there is one.

        Unlike what follows ``await database.write(...)``, that happens too when the caller was cancelled meanwhile.
        """
        self.consequences.append(call)

    def audit(
        self,
        actor: str,
        action: str,
        *,
        namespace: str | None = None,
        lease: str | None = None,
        exporter: str | None = None,
        client: str | None = None,
        **detail: Any,
    ) -> None:
        """Write down who does what.

        actor: ``str`` of a caller, whose namespace (and name, for a client) is that of the entry unless another is
        given; or a word such as "controller".
        """
        kind, _, subject = actor.partition(" ")
        home, slash, name = subject.partition("/")
        if slash:
            namespace = namespace or home
            client = client or (name if kind == "client" else None)
        self.session.add(
            AuditEntry(
                at=self.now,
                actor=actor,
                action=action,
                namespace=namespace,
                lease=lease,
                exporter=exporter,
                client=client,
                detail=detail,
            )
        )
