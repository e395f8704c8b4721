# SPDX-License-Identifier: Apache-2.0
"""`jmp admin ... policy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jumpstarter_cli.admin_common import Reach, opt_admin, print_items
from jumpstarter_cli.options import join_selectors
from jumpstarter_cli.output import opt_output
from jumpstarter_cli.times import DURATION, span

if TYPE_CHECKING:
    from jumpstarter.client.admin import AdminClient, PolicyInfo, PolicyRule

__all__ = ["create_policy", "delete_policy", "get_policy", "update_policy"]


def _data(policy: PolicyInfo) -> dict[str, Any]:
    """As -o json and yaml show it, and as --file takes it."""
    rules = [
        {
            "clients": rule.clients,
            "priority": rule.priority,
            "maximumDuration": rule.maximum_duration,
            "spot": rule.spot,
            "description": rule.description,
        }
        for rule in policy.rules
    ]
    return {"name": policy.name, "exporters": policy.exporters, "rules": rules}


@click.command("policy")
@opt_admin
@opt_output("json", "yaml", "name")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def get_policy(reach: Reach, output: str | None, names: tuple[str, ...]) -> None:
    """Show access policies.

    Without any, every client may lease every exporter; with one, only what a policy allows is leased.
    """
    from jumpstarter_cli.output import print_table

    async def ask(admin: AdminClient) -> list[PolicyInfo]:
        return [await admin.get_policy(name) for name in names] if names else await admin.list_policies()

    found = reach.run(ask)
    if output:
        print_items("policies", found, output, (), lambda _: (), data=_data)
        return
    rows = []
    for policy in found:
        for rule in policy.rules or (None,):
            rows.append((policy.name, policy.exporters or "(all)", *_rule_cells(rule)))
    print_table(("NAME", "EXPORTERS", "CLIENTS", "PRIORITY", "LONGEST", "SPOT", "DESCRIPTION"), rows)


def _rule_cells(rule: PolicyRule | None) -> tuple[str, ...]:
    if rule is None:
        return "(none)", "", "", "", ""
    longest = span(rule.maximum_duration) if rule.maximum_duration is not None else ""
    return rule.clients or "(all)", str(rule.priority), longest, "yes" if rule.spot else "", rule.description


def _opt_rule(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for a policy with one rule."""
    for option in (
        click.option("-f", "--file", type=click.Path(), help="YAML or JSON with several rules, as -o yaml shows one."),
        click.option("--description", help="What refused clients get to read."),
        click.option("--spot/--no-spot", default=None, help="Such leases may be taken away for others."),
        click.option("--maximum-duration", type=DURATION, metavar="TIME", help="Longest lease."),
        click.option("--priority", type=int, help="Higher ones are served first (default: 0)."),
        click.option(
            "--clients", multiple=True, callback=_selector, metavar="SELECTOR", help="Who may lease (default: all)."
        ),
        click.option(
            "--exporters",
            multiple=True,
            callback=_selector,
            metavar="SELECTOR",
            help="Of what (default: all).",
        ),
    ):
        command = option(command)
    return command


def _selector(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    return join_selectors(ctx, parameter, values) if values else None


def _changed(before: PolicyInfo, options: dict[str, Any]) -> PolicyInfo:
    """The policy with the options that were given. Raises `click.UsageError`."""
    from jumpstarter.client.admin import PolicyRule

    if options["file"]:
        others = [name for name, value in options.items() if name != "file" and value is not None]
        if others:
            raise click.UsageError(f"--file and --{others[0].replace('_', '-')} exclude each other")
        return _from_file(before.name, Path(options["file"]))
    fields = {
        name: options[name]
        for name in ("clients", "priority", "maximum_duration", "spot", "description")
        if options[name] is not None
    }
    exporters = before.exporters if options["exporters"] is None else options["exporters"]
    if fields and len(before.rules) > 1:
        raise click.UsageError(
            f'policy "{before.name}" has {len(before.rules)} rules: change them by '
            f"`jmp admin get policy {before.name} -o yaml` and --file"
        )
    rules = before.rules or (PolicyRule(),)
    return replace(before, exporters=exporters, rules=(replace(rules[0], **fields), *rules[1:]))


def _from_file(name: str, path: Path) -> PolicyInfo:
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

    from jumpstarter.client.admin import PolicyInfo, PolicyRule
    from jumpstarter.common.exceptions import ConfigurationError
    from jumpstarter.config.common import describe
    from jumpstarter.config.files import read_yaml
    from jumpstarter_cli.times import parse_duration

    class Rule(BaseModel):
        model_config = ConfigDict(extra="forbid")
        clients: str = ""
        priority: int = 0
        maximumDuration: float | None = Field(default=None, gt=0)
        spot: bool = False
        description: str = ""

        @field_validator("maximumDuration", mode="before")
        @classmethod
        def _duration(cls, value: Any) -> Any:
            return parse_duration(value) if isinstance(value, str) else value

    class Policy(BaseModel):
        model_config = ConfigDict(extra="forbid")
        name: str = ""
        exporters: str = ""
        rules: list[Rule] = Field(min_length=1)

    data = read_yaml(path)
    listed = data.get("policies")
    if isinstance(listed, list) and len(listed) == 1:
        data = listed[0]  # what -o yaml shows for one policy
    try:
        policy = Policy.model_validate(data)
    except ValidationError as error:
        raise ConfigurationError(f"{path}: {describe(error)}") from None
    if policy.name not in ("", name):
        raise ConfigurationError(f'{path}: is of policy "{policy.name}", not "{name}"')
    rules = tuple(PolicyRule(r.clients, r.priority, r.maximumDuration, r.spot, r.description) for r in policy.rules)
    return PolicyInfo(name, policy.exporters, rules)


@click.command("policy")
@opt_admin
@_opt_rule
@opt_output("json", "yaml", "name")
@click.argument("name")
def create_policy(reach: Reach, output: str | None, name: str, **options: Any) -> None:
    """Create an access policy.

    As soon as there is one, only what policies allow is leased.

    \b
    jmp admin create policy ci --exporters board=rpi4 --clients team=ci --maximum-duration 2h --priority 10
    """
    from jumpstarter.client.admin import PolicyInfo
    from jumpstarter.common.exceptions import ControllerError
    from jumpstarter_cli.admin_output import print_changed

    wanted = _changed(PolicyInfo(name, "", ()), options)

    async def work(admin: AdminClient) -> PolicyInfo:
        try:
            await admin.get_policy(name)
        except ControllerError as error:
            if error.code != "NOT_FOUND":
                raise
            return await admin.set_policy(name, wanted.exporters, wanted.rules)
        raise click.ClickException(f'policy "{name}" exists; `jmp admin update policy` changes it')

    made = reach.run(work)
    if output is None:
        click.echo(f'policy "{name}" created')
    else:
        print_changed("policy", made, output)


@click.command("policy")
@opt_admin
@_opt_rule
@opt_output("json", "yaml", "name")
@click.argument("name")
def update_policy(reach: Reach, output: str | None, name: str, **options: Any) -> None:
    """Change an access policy.

    What is not given stays as it is; --file replaces the whole of it.
    """
    from jumpstarter_cli.admin_output import print_changed

    if all(value is None for value in options.values()):
        raise click.UsageError("say what to change: --exporters, --clients, --priority, ..., or --file")

    async def work(admin: AdminClient) -> PolicyInfo:
        wanted = _changed(await admin.get_policy(name), options)
        return await admin.set_policy(name, wanted.exporters, wanted.rules)

    print_changed("policy", reach.run(work), output)


@click.command("policy")
@opt_admin
@opt_output("name")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def delete_policy(reach: Reach, output: str | None, names: tuple[str, ...]) -> int:
    """Delete access policies.

    Without any policy left, every client may lease every exporter again.
    """

    async def work(admin: AdminClient, name: str) -> None:
        await admin.delete_policy(name)

    return reach.for_each(names, work, "policy {} deleted", output)
