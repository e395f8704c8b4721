# SPDX-License-Identifier: Apache-2.0
"""Selectors mean what Kubernetes says they mean."""

from __future__ import annotations

import pytest

from jumpstarter.common.selectors import Selector, SelectorError, parse_selector

BOARD = {"board": "rpi4", "rack": "a", "lab.example/zone": "north", "empty": ""}


@pytest.mark.parametrize(
    ("text", "selected"),
    [
        ("", True),
        ("board=rpi4", True),
        ("board==rpi4", True),
        ("board=rpi5", False),
        ("board = rpi4 , rack = a", True),
        ("board=rpi4,rack=b", False),
        ("board!=rpi5", True),
        ("board!=rpi4", False),
        ("missing!=x", True),
        ("board in (rpi4,rpi5)", True),
        ("board in (rpi5)", False),
        ("missing in (rpi5)", False),
        ("board notin (rpi4)", False),
        ("board notin (rpi5, x)", True),
        ("missing notin (x)", True),
        ("board", True),
        ("missing", False),
        ("!missing", True),
        ("! board", False),
        ("empty=", True),
        ("empty=,board", True),
        ("board=", False),
        ("empty in (,x)", True),
        ("empty in (x,)", True),
        ("lab.example/zone=north", True),
        ("in in (in)", False),
        ("notin!=in", True),
    ],
)
def test_matching(text: str, selected: bool) -> None:
    selector = parse_selector(text)
    assert selector.matches(BOARD) is selected
    assert selector.canonical().matches(BOARD) is selected
    assert parse_selector(str(selector)) == selector


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("rack=a,board=rpi4", "board=rpi4,rack=a"),
        ("a!=2,a!=1,!z,b", "a notin (1,2),b,!z"),
        ("a in (z,y,z)", "a in (y,z)"),
        ("a=1,a==1", "a=1"),
    ],
)
def test_canonical_text(text: str, canonical: str) -> None:
    assert str(parse_selector(text).canonical()) == canonical


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (",", 'found ","'),
        ("a,", "ends where a label key"),
        ("a b", 'found "b" at 2'),
        ("a in x", 'expected "\\("'),
        ("a in (x", "ends where"),
        ("a in ()", "expected a value"),
        ("a=b=c", 'found "="'),
        ("a>1", "unsupported label selector operator"),
        ("-a=1", "the name must be"),
        ("a=" + "x" * 64, "must be at most 63"),
        ("UPPER/a=1", "DNS name"),
        ("!", "ends where"),
        ("a=(", "expected a value"),
    ],
)
def test_errors_name_the_place(text: str, why: str) -> None:
    with pytest.raises(SelectorError, match=why):
        parse_selector(text)


def test_one_key_cannot_equal_two_values() -> None:
    with pytest.raises(SelectorError, match="a cannot be both 1 and 2"):
        parse_selector("a=1,a=2").canonical()


def test_an_empty_selector_is_false_and_selects_everything() -> None:
    assert not Selector()
    assert Selector().matches({})
