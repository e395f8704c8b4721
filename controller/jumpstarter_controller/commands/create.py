# SPDX-License-Identifier: Apache-2.0
"""`jumpstarter-controller admin create`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from jumpstarter_controller.commands.common import config_option, namespace_option, opened, seconds_of
from jumpstarter_controller.commands.options import (
    allow_option,
    endpoint_option,
    labels_option,
    name_argument,
    reached_at,
    save_option,
    unsafe_option,
    username_option,
    write_file,
)

__all__ = ["create"]


@click.group("create")
def create() -> None:
    """Make a client, an exporter or a policy."""


@create.command("client")
@config_option
@namespace_option
@endpoint_option
@save_option(required=False)
@labels_option
@username_option
@click.option("--admin", "administrator", is_flag=True, help="It may administer the lab (`jmp admin`).")
@allow_option
@unsafe_option
@name_argument
def create_client(
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path | None,
    labels: dict[str, str],
    username: str | None,
    administrator: bool,
    allow: tuple[str, ...],
    unsafe: bool,
    name: str,
) -> None:
    """Make a client and write its configuration file."""
    from jumpstarter_controller.administration.subjects import NewSubject

    new = NewSubject(labels, username or "", administrator=administrator)
    _create("client", path, namespace, endpoint, save, name, new, allow, unsafe)


@create.command("exporter")
@config_option
@namespace_option
@endpoint_option
@save_option(required=False)
@labels_option
@username_option
@click.option("--disabled", is_flag=True, help="It is not leased until it is enabled.")
@name_argument
def create_exporter(
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path | None,
    labels: dict[str, str],
    username: str | None,
    disabled: bool,
    name: str,
) -> None:
    """Make an exporter and write its configuration file; add its drivers there."""
    from jumpstarter_controller.administration.subjects import NewSubject

    _create("exporter", path, namespace, endpoint, save, name, NewSubject(labels, username or "", enabled=not disabled))


def _create(
    kind: Literal["client", "exporter"],
    path: Path,
    namespace: str | None,
    endpoint: str | None,
    save: Path | None,
    name: str,
    new: Any,
    allow: tuple[str, ...] = (),
    unsafe: bool = False,
) -> None:
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR, add_subject
    from jumpstarter_controller.identity.tokens import issue_token

    def change(tx: Any, space: str, lifetime: float) -> str:
        subject = add_subject(tx, LOCAL_ACTOR, kind, space, name, new)
        return issue_token(tx, subject, lifetime, LOCAL_ACTOR)[0] if save is not None else ""

    with opened(path) as lab:
        space = namespace or lab.config.namespace
        reached = reached_at(lab, path, endpoint) if save is not None else ""
        token = lab.change(change, space, lab.config.tokens.lifetime)
        if save is not None:
            write_file(lab, kind, space, name, reached, token, save, allow, unsafe)
    click.echo(f"{kind} {space}/{name}" if save is None else save)


@create.command("router")
@config_option
@save_option(required=True)
@click.option("--revoke", is_flag=True, help="Make the tokens that it has worthless.")
@name_argument
def create_router(path: Path, save: Path, revoke: bool, name: str) -> None:
    """Let a router attach that runs apart; writes its token. For one that exists: another token."""
    from jumpstarter.config.files import write_private
    from jumpstarter_controller.routers import create_router as change

    with opened(path) as lab:
        token = lab.change(change, lab.config.namespace, name, lab.config.tokens.lifetime, revoke=revoke)
    write_private(save, token + "\n")
    click.echo(save)


@create.command("policy")
@config_option
@namespace_option
@click.option("--exporters", help="Selector of the exporters (default: all, or with --append as they are).")
@click.option("--clients", default="", help="Selector of the clients that may lease them (default: all).")
@click.option("--priority", default=0, show_default=True, help="Higher ones are served first.")
@click.option("--maximum-duration", callback=seconds_of, help="Longest lease, as in 2h.")
@click.option("--spot", is_flag=True, help="Such leases are taken away when others want the exporter.")
@click.option("--description", default="", help="What messages call this rule.")
@click.option("--append", is_flag=True, help="Add a rule to the policy instead of replacing what it has.")
@name_argument
def create_policy(
    path: Path,
    namespace: str | None,
    exporters: str | None,
    clients: str,
    priority: int,
    maximum_duration: float | None,
    spot: bool,
    description: str,
    append: bool,
    name: str,
) -> None:
    """Make or replace an access policy. As soon as there is one, only what policies allow is leased."""
    from jumpstarter_controller.administration import policies
    from jumpstarter_controller.administration.subjects import LOCAL_ACTOR

    rule = policies.Rule(clients, priority, maximum_duration, spot, description)

    def change(tx: Any, space: str) -> None:
        rules, selector = [rule], exporters or ""
        if append:
            old = policies.find_policy(tx, space, name)
            rules = [policies.Rule(**each) for each in old.rules] + rules
            selector = old.exporters if exporters is None else exporters
        policies.put_policy(tx, LOCAL_ACTOR, space, name, selector, rules)

    with opened(path) as lab:
        lab.change(change, namespace or lab.config.namespace)
