# SPDX-License-Identifier: Apache-2.0
"""What the commands of `jmp admin` share: the connection, and doing one thing to several names."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jumpstarter_cli.options import opt_client
from jumpstarter_cli.output import print_data, print_table

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient
    from jumpstarter.config.client import ClientConfigV1Alpha1

__all__ = ["Reach", "opt_admin", "print_items", "relabelled"]

T = TypeVar("T")


@dataclass(frozen=True)
class Reach:
    """As whom, and for which namespace ("" for the identity's own)."""

    client: str | None
    client_config: str | None
    namespace: str

    def config(self) -> ClientConfigV1Alpha1:
        """The administrator's configuration."""
        from jumpstarter_cli.identity import client_config

        return client_config(self.client, self.client_config)

    def run(self, work: Callable[[AdminClient], Awaitable[T]]) -> T:
        """Do `work` connected to the controller."""
        from jumpstarter.client.admin import connect_admin
        from jumpstarter_cli.identity import call_with_login

        config = self.config()

        async def connected() -> T:
            async with connect_admin(config, namespace=self.namespace or None) as admin:
                return await work(admin)

        return call_with_login(config, connected)

    def for_each(
        self, names: Iterable[str], work: Callable[[AdminClient, str], Awaitable[Any]], said: str, output: str | None
    ) -> int:
        """Do `work` for each name, all of them, report on each, return the exit code. said: "client {} deleted"."""
        from jumpstarter.common.exceptions import ControllerError
        from jumpstarter_cli.errors import EXIT_FAILURE, report

        async def each(admin: AdminClient) -> dict[str, ControllerError | None]:
            results: dict[str, ControllerError | None] = {}
            for name in dict.fromkeys(names):
                try:
                    await work(admin, name)
                    results[name] = None
                except ControllerError as error:
                    results[name] = error
            return results

        failed = False
        for name, error in self.run(each).items():
            if error is None:
                click.echo(name if output == "name" else said.format(f'"{name}"'))
            else:
                failed = True
                report(str(error))
        return EXIT_FAILURE if failed else 0


def opt_admin(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options --client, --client-config and -n/--namespace, as one argument `reach`."""

    @wraps(command)
    def with_reach(*, client: str | None, client_config: str | None, namespace: str, **others: Any) -> Any:
        return command(reach=Reach(client, client_config, namespace), **others)

    option = click.option("-n", "--namespace", default="", help="Namespace (default: your own).")
    return opt_client(option(with_reach))


def print_items(
    kind: str,
    items: Sequence[Any],
    output: str | None,
    columns: Sequence[str],
    row: Callable[[Any], Sequence[str]],
    *,
    data: Callable[[Any], Any] | None = None,
    name: Callable[[Any], str] = lambda item: item.name,
) -> None:
    """Items as a table or, for -o, as {kind: [...]} or names."""
    from jumpstarter_cli.lease_view import plain

    if output == "name":
        for item in items:
            click.echo(name(item))
    elif output:
        print_data({kind: [(data or plain)(item) for item in items]}, output)
    else:
        print_table(columns, [row(item) for item in items])


def relabelled(labels: dict[str, str], added: dict[str, str], removed: Sequence[str]) -> dict[str, str] | None:
    """The labels after a change; None when there is none to make. Raises `click.UsageError`."""
    both = sorted(set(added) & set(removed))
    if both:
        raise click.UsageError(f'label "{both[0]}" is both set and removed')
    after = {key: value for key, value in {**labels, **added}.items() if key not in removed}
    return after if added or removed else None
