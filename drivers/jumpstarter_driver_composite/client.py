# SPDX-License-Identifier: Apache-2.0
"""Client of a group of drivers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jumpstarter.client import DriverClient

if TYPE_CHECKING:
    import click

__all__ = ["CompositeClient"]

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(kw_only=True)
class CompositeClient(DriverClient):
    """Gives the children of a composite driver as attributes: ``client.power.on()``."""

    def __getattr__(self, name: str) -> Any:
        children: dict[str, DriverClient] = self.__dict__.get("children", {})
        try:
            return children[name]
        except KeyError:
            known = f"; its drivers are: {', '.join(sorted(children))}" if children else ""
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}{known}") from None

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.__dict__.get("children", {})]

    def close(self) -> None:
        """Close the streams that are open on the children, then the own ones."""
        for child in self.children.values():
            child.close()
        super().close()

    def cli(self) -> click.Group:
        """A group with one command (or group) for each child that has any."""
        import logging

        import click

        def set_level(_: click.Context, __: click.Parameter, value: str | None) -> None:
            if value is not None:
                logging.getLogger().setLevel(value)
                for logger in list(logging.Logger.manager.loggerDict.values()):
                    if isinstance(logger, logging.Logger):
                        logger.setLevel(value)

        from jumpstarter.client.decorators import driver_click_group

        @driver_click_group(self)
        @click.option(
            "--log-level",
            type=click.Choice(_LEVELS, case_sensitive=False),
            callback=set_level,
            expose_value=False,
            help="Least severe log messages to show.",
        )
        def composite() -> None:
            """Drivers of this device."""

        for name, child in self.children.items():
            if _is_stub(child) or not hasattr(child, "cli"):
                continue
            command = child.cli()
            if command is not None:
                composite.add_command(command, name)
        return composite


def _is_stub(child: DriverClient) -> bool:
    """True for the placeholder of a driver whose client package is not installed here."""
    return any(cls.__name__ == "StubDriverClient" for cls in type(child).__mro__)
