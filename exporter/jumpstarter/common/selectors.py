# SPDX-License-Identifier: Apache-2.0
"""Label selectors with the syntax of Kubernetes.

``key=value``, ``key==value``, ``key!=value``, ``key in (a,b)``, ``key notin (a,b)``, ``key``, ``!key``, separated by
commas that mean "and". A requirement with ``!=`` or ``notin`` also holds for objects without the key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from jumpstarter.common.exceptions import ArgumentError

__all__ = ["Operator", "Requirement", "Selector", "SelectorError", "check_label", "parse_selector", "requirement"]

_MAX_NAME = 63
_MAX_PREFIX = 253
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_TOKEN = re.compile(r"(==|!=|[=!,()<>])|([^\s=!,()<>]+)")


class SelectorError(ArgumentError):
    """A selector or a label that Kubernetes' rules do not allow."""


class Operator(Enum):
    """What a requirement asks of a key."""

    EQUALS = "="
    NOT_EQUALS = "!="
    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    DOES_NOT_EXIST = "!"


@dataclass(frozen=True)
class Requirement:
    """One part of a selector. values: sorted, without duplicates; empty for EXISTS and DOES_NOT_EXIST."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels meets the requirement."""
        value = labels.get(self.key)
        match self.operator:
            case Operator.EXISTS:
                return value is not None
            case Operator.DOES_NOT_EXIST:
                return value is None
            case Operator.EQUALS | Operator.IN:
                return value in self.values
            case _:
                return value not in self.values

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case Operator.EQUALS | Operator.NOT_EQUALS:
                return f"{self.key}{self.operator.value}{self.values[0]}"
            case _:
                return f"{self.key} {self.operator.value} ({','.join(self.values)})"


@dataclass(frozen=True)
class Selector:
    """Requirements that must all hold. Without any, it selects everything and is false."""

    requirements: tuple[Requirement, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.requirements)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is selected."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(str(requirement) for requirement in self.requirements)

    @property
    def match_labels(self) -> dict[str, str]:
        """The ``key=value`` requirements."""
        return {r.key: r.values[0] for r in self.requirements if r.operator is Operator.EQUALS}

    def canonical(self) -> Selector:
        """The same selection as a Kubernetes LabelSelector says it: sorted, ``!=`` of one key joined to ``notin``.

        Raises SelectorError when one key must equal two different values, which nothing does.
        """
        wanted: dict[str, str] = {}
        unwanted: dict[str, set[str]] = {}
        kept: set[Requirement] = set()
        for requirement in self.requirements:
            key = requirement.key
            if requirement.operator is Operator.EQUALS:
                if wanted.setdefault(key, requirement.values[0]) != requirement.values[0]:
                    raise SelectorError(
                        f'selector "{self}": {key} cannot be both {wanted[key]} and {requirement.values[0]}'
                    )
                kept.add(requirement)
            elif requirement.operator is Operator.NOT_EQUALS:
                unwanted.setdefault(key, set()).update(requirement.values)
            else:
                kept.add(requirement)
        kept.update(Requirement(key, Operator.NOT_IN, tuple(sorted(values))) for key, values in unwanted.items())
        return Selector(tuple(sorted(kept, key=lambda r: (r.key, r.operator.value, r.values))))


def requirement(key: str, operator: Operator, values: Iterable[str] = ()) -> Requirement:
    """A checked requirement. Raises SelectorError."""
    _check_key(key)
    values = tuple(sorted(set(values)))
    for value in values:
        _check_value(key, value)
    if operator in (Operator.EXISTS, Operator.DOES_NOT_EXIST):
        if values:
            raise SelectorError(f'selector: "{operator.value}" for {key} takes no values')
    elif not values:
        raise SelectorError(f"selector: {key} {operator.value} needs at least one value")
    elif operator in (Operator.EQUALS, Operator.NOT_EQUALS) and len(values) != 1:
        raise SelectorError(f"selector: {key}{operator.value} takes exactly one value")
    return Requirement(key, operator, values)


def check_label(key: str, value: str) -> None:
    """Raise SelectorError unless ``key`` and ``value`` are a label by Kubernetes' rules."""
    _check_key(key)
    _check_value(key, value)


def parse_selector(text: str) -> Selector:
    """Parse. Empty text selects everything. Raises SelectorError naming the place that is wrong."""
    return _Parser(text).selector()


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(m.group(1), m.group(2), m.start(1 if m.group(1) else 2)) for m in _TOKEN.finditer(text)]
        self._at = 0

    def selector(self) -> Selector:
        if not self._tokens:
            return Selector()
        found = [self._requirement()]
        while self._at < len(self._tokens):
            self._sign(",")
            found.append(self._requirement())
        return Selector(tuple(found))

    def _requirement(self) -> Requirement:
        if self._next_is("!"):
            self._at += 1
            return requirement(self._word("a label key"), Operator.DOES_NOT_EXIST)
        key = self._word("a label key")
        if self._at == len(self._tokens) or self._next_is(","):
            return requirement(key, Operator.EXISTS)
        sign, word, _ = self._tokens[self._at]
        self._at += 1
        if sign in ("=", "=="):
            return requirement(key, Operator.EQUALS, [self._value()])
        if sign == "!=":
            return requirement(key, Operator.NOT_EQUALS, [self._value()])
        if sign in ("<", ">"):
            raise SelectorError(f'unsupported label selector operator "{sign}" in "{self._text}"')
        if word in ("in", "notin"):
            return requirement(key, Operator(word), self._values())
        self._at -= 1
        raise self._wrong("=, ==, !=, in, notin or a comma")

    def _value(self) -> str:
        """The word after = or !=; nothing there is the empty value."""
        if self._at == len(self._tokens) or self._next_is(","):
            return ""
        return self._word("a value")

    def _values(self) -> list[str]:
        self._sign("(")
        if self._next_is(")"):
            raise self._wrong("a value")
        found = []
        while True:
            found.append("" if self._next_is(",") or self._next_is(")") else self._word("a value"))
            if self._next_is(")"):
                self._at += 1
                return found
            self._sign(",")

    def _next_is(self, sign: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at][0] == sign

    def _sign(self, sign: str) -> None:
        if not self._next_is(sign):
            raise self._wrong(f'"{sign}"')
        self._at += 1

    def _word(self, what: str) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at][1]:
            self._at += 1
            return self._tokens[self._at - 1][1]
        raise self._wrong(what)

    def _wrong(self, wanted: str) -> SelectorError:
        if self._at == len(self._tokens):
            return SelectorError(f'selector "{self._text}" ends where {wanted} is expected')
        sign, word, place = self._tokens[self._at]
        return SelectorError(f'selector "{self._text}": found "{sign or word}" at {place}, expected {wanted}')


def _check_key(key: str) -> None:
    prefix, slash, name = key.rpartition("/")
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise SelectorError(
            f'label key "{key}": the name must be 1 to {_MAX_NAME} letters, digits, "-", "_" or ".", and begin and end '
            "with a letter or digit"
        )
    if slash and (not _PREFIX.fullmatch(prefix) or len(prefix) > _MAX_PREFIX):
        raise SelectorError(f'label key "{key}": the prefix must be a DNS name of at most {_MAX_PREFIX} characters')


def _check_value(key: str, value: str) -> None:
    if value and (not _NAME.fullmatch(value) or len(value) > _MAX_NAME):
        raise SelectorError(
            f'label {key}: the value "{value}" must be at most {_MAX_NAME} letters, digits, "-", "_" or ".", and begin '
            "and end with a letter or digit"
        )
