# SPDX-License-Identifier: Apache-2.0
"""Base class for pytest test classes that need a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from jumpstarter.config.env import JUMPSTARTER_HOST

__all__ = ["JumpstarterTest"]


class JumpstarterTest:
    """Tests of one device. The fixture `client` is the client of the exporter's root driver.

        class TestBoard(JumpstarterTest):
            selector = "board=rpi4"

            def test_power(self, client):
                client.power.on()

    Inside a `jmp shell` (or a lease that sets JUMPSTARTER_HOST) the tests use that exporter; elsewhere one is leased by
    `selector` with the current client configuration. One connection serves all tests of a class.
    """

    #: Labels of the exporter to lease, when there is none yet.
    selector: ClassVar[str | None] = None

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls) -> Iterator[Any]:
        """The client of the exporter's root driver, for all tests of the class."""
        from jumpstarter.utils.env import env

        if not os.environ.get(JUMPSTARTER_HOST):
            _lease(cls.selector)
        with env() as client:
            yield client


def _lease(selector: str | None) -> None:
    """Lease an exporter from the controller. Ends the tests of the class with what is missing."""
    from jumpstarter.common.exceptions import JumpstarterException
    from jumpstarter.config.client import ClientConfigV1Alpha1

    try:
        config = ClientConfigV1Alpha1.resolve()
        if config is None:
            pytest.fail(
                f"no exporter: {JUMPSTARTER_HOST} is not set (run pytest in a `jmp shell`) and there is no client "
                "configuration to lease one with (`jmp config client create`)",
                pytrace=False,
            )
        config.lease(selector)
    except JumpstarterException as error:
        pytest.fail(str(error), pytrace=False)
