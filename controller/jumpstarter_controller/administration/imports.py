# SPDX-License-Identifier: Apache-2.0
"""A lab described in a file.

clients: {alice: {labels: {team: a}, username: "corp:alice", administrator: true}}
exporters: {bench-1: {labels: {board: rpi4}, enabled: true}}
policies:
  team-a:
    exporters: "board=rpi4"
    rules: [{clients: "team=a", priority: 10, maximumDuration: 2h, spot: false, description: team a}]
"""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_controller.administration import policies
from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, NewSubject, add_subject, change_subject
from jumpstarter_controller.config import Seconds
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.callers import Kind
from jumpstarter_controller.state.database import Transaction

__all__ = ["LabFile", "import_lab"]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class _Client(_Block):
    labels: dict[str, str] | None = None
    username: str | None = None
    administrator: bool | None = None


class _Exporter(_Block):
    labels: dict[str, str] | None = None
    username: str | None = None
    enabled: bool | None = None


class _Rule(_Block):
    clients: str = ""
    priority: int = 0
    maximum_duration: Seconds | None = Field(default=None, alias="maximumDuration")
    spot: bool = False
    description: str = ""


class _Policy(_Block):
    exporters: str = ""
    rules: list[_Rule]


class LabFile(_Block):
    """The file; see the top of this module. What a client or exporter does not say stays as it is."""

    clients: dict[str, _Client] = Field(default_factory=dict)
    exporters: dict[str, _Exporter] = Field(default_factory=dict)
    policies: dict[str, _Policy] = Field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> LabFile:
        """Read it. Raises ConfigurationError, one line that names file and field."""
        try:
            data = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
        try:
            return cls.model_validate(data or {})
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {field}: {first['msg'].removeprefix('Value error, ')}") from None


def import_lab(tx: Transaction, namespace: str, content: LabFile) -> list[str]:
    """Make or change what the file says. Returns what was done, a line each. Raises `Refused`."""
    done = [_subject(tx, "client", namespace, name, wanted) for name, wanted in content.clients.items()]
    done += [_subject(tx, "exporter", namespace, name, wanted) for name, wanted in content.exporters.items()]
    for name, policy in content.policies.items():
        rules = [policies.Rule(**rule.model_dump()) for rule in policy.rules]
        policies.put_policy(tx, LOCAL_ACTOR, namespace, name, policy.exporters, rules)
        done.append(f"policy {namespace}/{name} set")
    return done


def _subject(tx: Transaction, kind: Kind, namespace: str, name: str, wanted: _Client | _Exporter) -> str:
    values = wanted.model_dump(exclude_none=True)
    try:
        change_subject(tx, LOCAL_ACTOR, kind, namespace, name, **values)
    except Refused as refused:
        if refused.code.name != "NOT_FOUND":
            raise
    else:
        return f"{kind} {namespace}/{name} is as the file says"
    add_subject(tx, LOCAL_ACTOR, kind, namespace, name, NewSubject(**{"labels": {}, **values}))
    return f"{kind} {namespace}/{name} created"
