# SPDX-License-Identifier: Apache-2.0
"""Identity that drivers, clients and sessions have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID, uuid4

__all__ = ["Metadata"]


@dataclass(kw_only=True)
class Metadata:
    """An identifier and labels. Label keys of our own start with ``jumpstarter.dev/``."""

    uuid: UUID = field(default_factory=uuid4)
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """The label ``jumpstarter.dev/name``; None for a root driver."""
        return self.labels.get("jumpstarter.dev/name")
