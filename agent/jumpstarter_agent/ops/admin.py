# SPDX-License-Identifier: Apache-2.0
"""client, exporter, access_policy: bring a lab's clients, exporters and policies into a state.

Each looks first and changes only what differs; in check mode it only looks. Tokens go into files here, on the control
node, and are part of no result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..context import Context
from ..errors import AgentError
from ..request import Args
from .controller import client_ref

__all__ = ["admin_client", "admin_exporter", "admin_policy"]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """What differs between clients and exporters. fields: what an administrator sets, with the value of a new one."""

    kind: str
    result: str
    fields: Mapping[str, Any]


_CLIENT = _Kind("client", "lab_client", {"labels": {}, "username": "", "administrator": False})
_EXPORTER = _Kind("exporter", "exporter", {"labels": {}, "username": "", "enabled": True})


async def admin_client(ctx: Context) -> dict[str, Any]:
    """A client is there with these labels, or is not there."""
    return await _subject(ctx, _CLIENT)


async def admin_exporter(ctx: Context) -> dict[str, Any]:
    """An exporter is there with these labels, enabled or not, or is not there."""
    return await _subject(ctx, _EXPORTER)


@dataclasses.dataclass(frozen=True)
class _Wish:
    """What the task asks for."""

    name: str
    given: dict[str, Any]
    save: Path | None
    rotate: bool
    force: bool
    allow: list[str]
    unsafe: bool


def _wish(args: Args, kind: _Kind) -> _Wish:
    given: dict[str, Any] = {}
    for field, default in kind.fields.items():
        if args.raw(field) is None:
            continue
        if isinstance(default, dict):
            given[field] = {str(key): str(value) for key, value in args.mapping(field).items()}
        else:
            given[field] = args.flag(field, False) if isinstance(default, bool) else args.text(field, "")
    save = args.optional_text("save")
    return _Wish(
        name=args.required_text("name"),
        given=given,
        save=None if save is None else Path(save),
        rotate=args.flag("rotate", False),
        force=args.flag("force", False),
        allow=[str(glob) for glob in args.items("allow")],
        unsafe=args.flag("unsafe", False),
    )


async def _subject(ctx: Context, kind: _Kind) -> dict[str, Any]:
    args = ctx.args
    ref, state, wish = client_ref(args), args.choice("state", ("present", "absent"), "present"), _wish(args, kind)
    args.finish()
    if wish.save is not None and state == "present":
        # Before anything is made: a token that cannot be kept would be lost.
        _check_file(wish.save, kind.kind, wish.name, check=ctx.check)
    admin = await ctx.agent.controllers.admin(ref)
    found = await _find(getattr(admin, f"get_{kind.kind}"), wish.name)
    before = None if found is None else {field: getattr(found, field) for field in kind.fields}
    if state == "absent":
        if before is not None and not ctx.check:
            await getattr(admin, f"delete_{kind.kind}")(wish.name, force=wish.force)
        return {"changed": before is not None, "diff": _diff(kind.kind, wish.name, before, None)}
    after = {**(before or kind.fields), **wish.given}
    value: dict[str, Any] = {"changed": before != after, kind.result: {"name": wish.name, **after}}
    value["diff"] = _diff(kind.kind, wish.name, before, after)
    credential = None
    if ctx.check:
        pass
    elif before is None:
        create = getattr(admin, f"create_{kind.kind}")
        _, credential = await create(wish.name, **after, without_token=wish.save is None)
    elif before != after:
        changed = {field: after[field] for field in after if before[field] != after[field]}
        await getattr(admin, f"update_{kind.kind}")(wish.name, **changed)
    value.update(await _token(ctx, admin, kind, wish, before is None, credential))
    value["changed"] = value["changed"] or "saved" in value or bool(value.get("revoked"))
    return value


async def _token(ctx: Context, admin: Any, kind: _Kind, wish: _Wish, created: bool, credential: Any) -> dict[str, Any]:
    """Write the file with the token where that is needed. Returns what the result says of it."""
    rotate = wish.rotate and not created
    if wish.save is None:
        if not rotate:
            return {}
        tokens = await admin.list_tokens(kind.kind, wish.name)
        good = sum(1 for token in tokens if token.revoked is None)
        return {"revoked": good if ctx.check else await admin.revoke_tokens(kind.kind, wish.name)}
    if not created and not rotate and await _works(wish.save, kind.kind, wish.name):
        return {}
    value: dict[str, Any] = {"saved": str(wish.save)}
    if not ctx.check:
        credential = credential or await admin.issue_token(kind.kind, wish.name, revoke_older=rotate)
        _save(wish, kind.kind, admin.namespace, credential)
    if rotate:
        value["revoked"] = credential.revoked if credential is not None else 0
    return value


async def _find(get: Any, name: str) -> Any:
    from jumpstarter.common.exceptions import ControllerError

    try:
        return await get(name)
    except ControllerError as error:
        if error.code != "NOT_FOUND":
            raise
        return None


def _load(path: Path, kind: str) -> Any:
    from jumpstarter.config.client import ClientConfigV1Alpha1
    from jumpstarter.config.exporter import ExporterConfigV1Alpha1

    return ClientConfigV1Alpha1.from_file(path) if kind == "client" else ExporterConfigV1Alpha1.load_path(str(path))


def _check_file(path: Path, kind: str, name: str, *, check: bool) -> None:
    """A file can be written there, and one that is somebody else's is not written over. check: make no directory."""
    from jumpstarter.config.files import check_writable, read_yaml

    if path.parent.exists() or not check:
        check_writable(path)

    # As it is written: a configuration without a name has one by default.
    metadata = read_yaml(path).get("metadata") if path.exists() else None
    owner = metadata.get("name") if isinstance(metadata, dict) else None
    if owner not in (None, "", name):
        raise AgentError("refused", f'{path} belongs to {kind} "{owner}", not to "{name}"; nothing was written')


async def _works(path: Path, kind: str, name: str) -> bool:
    """Whether the controller takes the token in this file for this client or exporter."""
    from jumpstarter.client.admin import connect_admin
    from jumpstarter.common.exceptions import AuthenticationError, ConfigurationError, ControllerError

    if not path.exists():
        return False
    try:
        async with connect_admin(_load(path, kind)) as admin:
            identity = await admin.whoami()
    except (AuthenticationError, ConfigurationError):
        return False
    except ControllerError as error:
        if error.code not in ("PERMISSION_DENIED", "INVALID_ARGUMENT"):
            raise
        return False
    return bool(identity.kind == kind and identity.name == name)


def _save(wish: _Wish, kind: str, namespace: str, credential: Any) -> None:
    """Write identity, address and token; what else an existing file says stays."""
    import base64

    from jumpstarter.config.files import dump_yaml, read_yaml, write_private

    assert wish.save is not None
    data: dict[str, Any] = read_yaml(wish.save) if wish.save.exists() else {}
    data = {
        "apiVersion": "jumpstarter.dev/v1alpha1",
        "kind": "ClientConfig" if kind == "client" else "ExporterConfig",
        **data,
        "metadata": {"namespace": namespace, "name": wish.name},
        "endpoint": credential.endpoint,
        "tls": {"ca": base64.b64encode(credential.ca.encode()).decode(), "insecure": False},
        "token": credential.token,
    }
    if kind == "client" and (wish.allow or wish.unsafe or "drivers" not in data):
        data["drivers"] = {"allow": wish.allow, "unsafe": wish.unsafe}
    write_private(wish.save, dump_yaml(data))


async def admin_policy(ctx: Context) -> dict[str, Any]:
    """An access policy is there with these rules, or is not there."""
    from jumpstarter.client.admin import PolicyRule

    args = ctx.args
    ref, state = client_ref(args), args.choice("state", ("present", "absent"), "present")
    name, exporters = args.required_text("name"), args.text("exporters", "")
    try:
        rules = tuple(PolicyRule(**rule) for rule in args.items("rules"))
    except TypeError as error:
        raise AgentError("invalid", f"argument 'rules': {error}") from error
    args.finish()
    admin = await ctx.agent.controllers.admin(ref)
    found = await _find(admin.get_policy, name)
    before = None if found is None else _policy(found.exporters, found.rules)
    if state == "absent":
        if found is not None and not ctx.check:
            await admin.delete_policy(name)
        return {"changed": found is not None, "diff": _diff("policy", name, before, None)}
    after = _policy(_canonical(exporters), [dataclasses.replace(r, clients=_canonical(r.clients)) for r in rules])
    if before != after and not ctx.check:
        await admin.set_policy(name, exporters, rules)
    diff = _diff("policy", name, before, after)
    return {"changed": before != after, "policy": {"name": name, **after}, "diff": diff}


def _policy(exporters: str, rules: Any) -> dict[str, Any]:
    return {"exporters": exporters, "rules": [dataclasses.asdict(rule) for rule in rules]}


def _canonical(selector: str) -> str:
    """The selector as the controller writes it."""
    from jumpstarter.common.selectors import SelectorError, parse_selector

    try:
        return str(parse_selector(selector).canonical())
    except SelectorError as error:
        raise AgentError("invalid", str(error)) from error


def _diff(kind: str, name: str, before: dict[str, Any] | None, after: dict[str, Any] | None) -> dict[str, Any]:
    header = f"{kind} {name}"
    return {"before": before or {}, "after": after or {}, "before_header": header, "after_header": header}
