# SPDX-License-Identifier: Apache-2.0
"""PDUs that are switched over SNMP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from snmp_pdu import RARITAN_PDU, SnmpPdu, snmp_pdu


@pytest.fixture(scope="module")
def _raritan(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnmpPdu]:
    with snmp_pdu(tmp_path_factory.mktemp("raritan"), RARITAN_PDU) as made:
        yield made


@pytest.fixture
def pdu(_raritan: SnmpPdu) -> Iterator[SnmpPdu]:
    """A Raritan PDU with eight outlets; faults and the list of SETs are gone after each test."""
    yield _raritan
    _raritan.forget()
