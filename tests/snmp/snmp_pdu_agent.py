#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Fake PDU behind a real snmpd: speaks its pass_persist protocol, keeps the state of outlets, and can misbehave.

argv[1]: a JSON file with
  outlets     states by the last parts of the OID: {"1": "off", "1.1.2": "on"}
  sets        by column: the numbers it takes and what they do, {"1.3...": {"1": "on", "0": "off"}}
  reads       by column: what it answers by state, {"1.3...": {"on": 7, "off": 8}}
  locked      columns that take nothing
Beside it: `faults.json` {"stuck": ["3"], "lag": {"4": 2}, "mute": true}: an outlet that never moves, an outlet that
reports the old state that many times, an agent that does not answer. `sets.log`: one line for each SET.
"""

import json
import sys
import time
from pathlib import Path

SPEC = Path(sys.argv[1])
spec = json.loads(SPEC.read_text())
states = dict(spec["outlets"])
lagging: dict[str, list] = {}


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def hear() -> str:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return line.strip()


def faults() -> dict:
    path = SPEC.with_name("faults.json")
    return json.loads(path.read_text()) if path.exists() else {}


def find(columns: dict, oid: str) -> tuple:
    """The column and the outlet of an OID."""
    plain = oid.lstrip(".")
    for column in columns:
        if plain.startswith(column + ".") and plain[len(column) + 1 :] in states:
            return column, plain[len(column) + 1 :]
    return None, None


def get(oid: str) -> None:
    column, outlet = find(spec["reads"], oid)
    if outlet is None:
        # snmpd asks before it lets a SET through; columns that only take commands answer 0.
        column, outlet = find({**spec["sets"], **dict.fromkeys(spec.get("locked", []))}, oid)
        for line in ("NONE",) if outlet is None else (oid, "integer", "0"):
            say(line)
        return
    state = states[outlet]
    if outlet in lagging:
        old, left = lagging[outlet]
        if left:
            lagging[outlet][1] -= 1
            state = old
        else:
            del lagging[outlet]
    for line in (oid, "integer", str(spec["reads"][column][state])):
        say(line)


def put(oid: str, value: str) -> None:
    with SPEC.with_name("sets.log").open("a") as log:
        log.write(f"{oid} {value}\n")
    column, outlet = find({**spec["sets"], **dict.fromkeys(spec.get("locked", []))}, oid)
    kind, number = value.split(" ", 1)
    if column in spec.get("locked", []):
        say("not-writable")
    elif outlet is None:
        say("no-creation")
    elif kind != "integer":
        say("wrong-type")
    elif number not in spec["sets"][column]:
        say("wrong-value")
    else:
        wrong = faults()
        if outlet not in wrong.get("stuck", []):
            if outlet in wrong.get("lag", {}):
                lagging[outlet] = [states[outlet], wrong["lag"][outlet]]
            states[outlet] = spec["sets"][column][number]
        say("DONE")


while True:
    word = hear()
    if word == "PING":
        say("PONG")
        continue
    if faults().get("mute"):
        time.sleep(3600)
    if word == "get":
        get(hear())
    elif word == "getnext":
        hear()
        say("NONE")
    elif word == "set":
        where = hear()
        put(where, hear())
