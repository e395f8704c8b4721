# SPDX-License-Identifier: Apache-2.0
"""ssh with the fabric library through a driver's stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jumpstarter.client import adapters

if TYPE_CHECKING:
    import fabric

    from jumpstarter.client import DriverClient

__all__ = ["FabricAdapter"]


class FabricAdapter(adapters.FabricAdapter):
    """Gives a `fabric.Connection` through the driver's stream; no port is opened for it."""

    def __init__(
        self,
        client: DriverClient,
        method: str = "connect",
        user: str | None = None,
        config: fabric.Config | None = None,
        forward_agent: bool | None = None,
        connect_timeout: int | None = None,
        connect_kwargs: dict[str, Any] | None = None,
        inline_ssh_env: bool | None = None,
    ) -> None:
        super().__init__(
            client=client,
            method=method,
            user=user,
            config=config,
            forward_agent=forward_agent,
            connect_timeout=connect_timeout,
            connect_kwargs=connect_kwargs,
            inline_ssh_env=inline_ssh_env,
        )
