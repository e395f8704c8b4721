# SPDX-License-Identifier: Apache-2.0
"""boot, console, uboot and the console connection: thin wiring to `jumpstarter_agent.console`."""

from __future__ import annotations

import asyncio
import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..consoles import CONSOLE_DRIVER, console_of, login_of
from ..context import Context
from ..errors import AgentError
from ..progress import ProgressMeter
from ..relay import relay
from .power import off_seconds, power_status, set_power

if TYPE_CHECKING:
    from ..console import ConsoleSession

__all__ = ["attach", "boot", "console", "exec_command", "fetch", "put", "reset", "uboot"]

_BOOT_SECONDS = 300.0
_EXPECT_SECONDS = 30.0
_UBOOT_SECONDS = 60.0
_LOG_BYTES = 64 * 1024
_TAIL_LINES = 20


async def boot(ctx: Context) -> dict[str, Any]:
    """Bring the device to the phase ``until``, power cycling it first unless told otherwise."""
    args = ctx.args
    until = args.choice("until", ("bootloader", "kernel", "login", "shell"), "shell")
    timeout = args.seconds("timeout", _BOOT_SECONDS)
    cycle = args.flag("power_cycle", True)
    driver, power = args.text("driver", CONSOLE_DRIVER), args.text("power", "power")
    # Where the console engineer's machinery talks to U-Boot it does so over the console; the name is taken for plays
    # that set it for `uboot` and `boot` alike.
    args.text("uboot")
    login = login_of(args)
    args.finish()
    power_node = (await ctx.lease()).connection.session.nodes.get(power)
    if cycle and power_node is None:
        power_node = await ctx.node(power)
    # Without a power cycle a board that is off still has to be switched on.
    starts = cycle or power_node is not None and await power_status(power_node) == "off"
    if ctx.check:
        return {"changed": True, "phases": [], "simulated": True}
    session = await console_of(ctx, driver)
    before = session.phase

    async def power_cycle() -> None:
        await _power_cycle(session, power_node)

    report = await session.boot(until, timeout=timeout, power_cycle=power_cycle if starts else None, login=login)
    value: dict[str, Any] = report.as_dict()
    versions = {key: value[key] for key in ("bootloader_version", "kernel_version")}
    return {
        "changed": starts or session.phase is not before,
        **value,
        "phase": str(session.phase),
        "log_path": str(session.log_path or ""),
        "ansible_facts": {"jumpstarter_boot": {**versions, "phases": value["phases"], "seconds": value["seconds"]}},
    }


async def console(ctx: Context) -> dict[str, Any]:
    """Wait for text, type text, read the log, tell the phase, send a break."""
    args = ctx.args
    action = args.choice("action", ("expect", "send", "log", "phase", "break"), "expect")
    driver = args.text("driver", CONSOLE_DRIVER)
    timeout = args.seconds("timeout", _EXPECT_SECONDS)
    pattern, text = args.raw("pattern"), args.optional_text("send")
    enter, lines = args.flag("enter", True), args.integer("lines", 100)
    since = args.raw("since_seq")
    until, password = args.optional_text("until"), args.flag("secret")
    args.finish()
    if since is not None and (isinstance(since, bool) or not isinstance(since, int)):
        raise AgentError("invalid", f"argument 'since_seq' is {since!r}, not a whole number")
    writes = action in ("send", "break") or text is not None
    if ctx.check and writes:
        return {"changed": True, "simulated": True}
    session = await console_of(ctx, driver)
    if action == "break":
        await _send_break(ctx, driver)
    elif text is not None:
        start = session.seq
        await session.send(text + "\r" if enter else text, secret=password)
        since = start if since is None else since
    value: dict[str, Any] = {"changed": writes}
    if action == "expect" or (action == "send" and pattern is not None):
        value.update(await _expect(session, pattern, timeout, since))
    elif action == "log":
        value.update(_log(session, since, lines))
    elif action == "phase":
        value.update(await _phase(session, until, timeout))
    return {**value, "phase": str(session.phase), "seq": session.seq, "log_path": str(session.log_path or "")}


async def uboot(ctx: Context) -> dict[str, Any]:
    """Run commands at the U-Boot prompt, read and set its environment, tell its version."""
    args = ctx.args
    driver = args.text("driver", "uboot")
    commands, names = args.items("commands"), args.items("get_env")
    env = args.mapping("env")
    version, boots = args.flag("version"), args.flag("boot", True)
    timeout = args.seconds("timeout", _UBOOT_SECONDS)
    power = args.text("power", "power")
    args.finish()
    if not (commands or names or env or version):
        raise AgentError("invalid", "nothing to do: give commands, env, get_env or version")
    console_path, power_path = await _uboot_drivers(ctx, driver, power)
    if ctx.check and (commands or env):
        return {"changed": True, "results": [], "env": {}, "version": None, "simulated": True}
    session = await console_of(ctx, console_path)
    booted = await _enter_uboot(ctx, session, boots, power_path, timeout)
    value: dict[str, Any] = {"changed": booted or bool(commands), "version": await session.uboot_version()}
    value["env"] = await session.uboot_get_env([str(name) for name in names]) if names else {}
    if env:
        wanted = {str(name): None if item is None else str(item) for name, item in env.items()}
        changes = await session.uboot_set_env(wanted)
        value["changed"] = value["changed"] or bool(changes)
        value["env"] = {**value["env"], **wanted}
        if ctx.request.diff and changes:
            value["diff"] = _env_diff(changes)
    value["results"] = await _run_all(session, [str(command) for command in commands], timeout)
    return value


async def exec_command(ctx: Context) -> dict[str, Any]:
    """Run a shell command on the device: what the console connection plugin does for every task."""
    args = ctx.args
    driver = args.text("driver", CONSOLE_DRIVER)
    command = args.required_text("cmd")
    data = _decode(args.text("in_data_b64"))
    timeout = args.optional_seconds("timeout")
    executable = args.text("executable", "sh")
    args.finish()
    session = await console_of(ctx, driver)
    result = await session.exec(command, in_data=data, timeout=timeout, executable=executable or "sh")
    return {
        "changed": True,
        "rc": result.rc,
        "stdout_b64": base64.b64encode(result.stdout).decode("ascii"),
        "stderr_b64": base64.b64encode(result.stderr).decode("ascii"),
        "seconds": result.seconds,
    }


async def put(ctx: Context) -> dict[str, Any]:
    """Copy a file of the control node to the device over the console."""
    args = ctx.args
    driver = args.text("driver", CONSOLE_DRIVER)
    source, target = Path(args.required_text("src")), args.required_text("dest")
    mode, timeout = parse_mode(args.raw("mode")), args.optional_seconds("timeout")
    slow, checksum = args.flag("allow_slow"), args.optional_text("checksum")
    args.finish()
    await asyncio.to_thread(check_file, source, checksum)
    session = await console_of(ctx, driver)
    meter = ProgressMeter(ctx, f"{source.name} to {target}")
    result = await session.put(
        source, target, mode=mode, check=ctx.check, allow_slow=slow, progress=meter.update, timeout=timeout
    )
    return {**transfer_value(result), "src": str(source), "dest": target}


async def fetch(ctx: Context) -> dict[str, Any]:
    """Copy a file of the device to the control node over the console."""
    args = ctx.args
    driver = args.text("driver", CONSOLE_DRIVER)
    source, target = args.required_text("src"), Path(args.required_text("dest"))
    mode, timeout = parse_mode(args.raw("mode")), args.optional_seconds("timeout")
    slow = args.flag("allow_slow")
    args.finish()
    session = await console_of(ctx, driver)
    meter = ProgressMeter(ctx, f"{source} to {target.name}")
    result = await session.fetch(
        source, target, allow_slow=slow, check=ctx.check, progress=meter.update, timeout=timeout
    )
    if mode is not None and not ctx.check:
        target.chmod(mode)
    return {**transfer_value(result), "src": source, "dest": str(target)}


async def reset(ctx: Context) -> dict[str, Any]:
    """Forget what is known about the shell; the next command finds out again."""
    driver = ctx.args.text("driver", CONSOLE_DRIVER)
    ctx.args.finish()
    if ctx.agent.leases.get(ctx.host.name) is None and ctx.host.reach is None:
        return {"changed": False}
    await (await console_of(ctx, driver)).reset()
    return {"changed": False}


async def attach(ctx: Context) -> None:
    """The connection becomes the console, raw."""
    driver = ctx.args.text("driver", CONSOLE_DRIVER)
    ctx.args.finish()
    session = await console_of(ctx, driver)
    async with session.attach() as raw:
        await ctx.peer.ready({"driver": driver, "phase": str(session.phase)})
        await relay(ctx.peer, _Attached(raw))


class _Attached:
    """A raw console as the byte stream a relay wants. The console has no end of its own: the caller hangs up."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    async def receive(self) -> bytes:
        """What the device says."""
        data: bytes = await self._raw.receive()
        return data

    async def send(self, data: bytes) -> None:
        """Type."""
        await self._raw.send(data)

    async def send_eof(self) -> None:
        """Nothing: a caller that stops typing still listens."""


def transfer_value(result: Any) -> dict[str, Any]:
    """`TransferResult` as result fields."""
    return {
        "changed": result.changed,
        "size": result.size,
        "sha256": result.sha256,
        "moved_bytes": result.moved_bytes,
        "seconds": result.seconds,
    }


def parse_mode(value: Any) -> int | None:
    """File mode from octal text ("0644") or a number; None when it was not given."""
    if value is None or isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return int(str(value), 8)
    except ValueError:
        raise AgentError("invalid", f"argument 'mode' is {value!r}, not an octal file mode such as 0644") from None


def check_file(path: Path, checksum: str | None) -> None:
    """The file can be read and has the sha256 that was given for it."""
    import hashlib

    try:
        with path.open("rb") as file:
            if checksum is None:
                return
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        code = "not_found" if isinstance(error, FileNotFoundError) else "invalid"
        raise AgentError(code, f"file {path}: {error.strerror}; nothing was copied") from error
    if found != checksum.removeprefix("sha256:").lower():
        raise AgentError("invalid", f"file {path} has sha256 {found}, not {checksum}; nothing was copied")


async def _power_cycle(session: ConsoleSession, node: Any) -> None:
    """Start the board afresh; one that is off already is only switched on."""
    if await power_status(node) != "off":
        # Off and on apart, so that the console's clock starts when the board does.
        await set_power(node, "off", 0)
        await asyncio.sleep(off_seconds(node))
        session.notify_power("off")
    await set_power(node, "on", 0)


async def _expect(session: ConsoleSession, pattern: Any, timeout: float, since: int | None) -> dict[str, Any]:
    if not isinstance(pattern, (str, list)) or not pattern:
        raise AgentError("invalid", f"argument 'pattern' is {pattern!r}, not a regular expression or a list of them")
    found = await session.expect(pattern, timeout=timeout, since=since)
    return {
        "matched": True,
        "index": found.index,
        "before": _text(found.before),
        "match": _text(found.match),
        "groups": [None if group is None else _text(group) for group in found.groups],
        "groupdict": {name: None if group is None else _text(group) for name, group in found.groupdict.items()},
        "match_seq": found.seq,
        "end_seq": found.end_seq,
        "seconds": found.seconds,
    }


def _log(session: ConsoleSession, since: int | None, lines: int) -> dict[str, Any]:
    part = session.log(since if since is not None else max(0, session.seq - _LOG_BYTES), _LOG_BYTES)
    text = _text(part.data)
    return {"log": text, "lines": text.splitlines()[-lines:] if lines > 0 else [], "dropped": part.dropped}


async def _phase(session: ConsoleSession, until: str | None, timeout: float) -> dict[str, Any]:
    if until is None:
        return {"phases": [_phase_record(record) for record in session.phases]}
    report = await session.boot(until, timeout=timeout, power_cycle=None)
    return dict(report.as_dict())


def _phase_record(record: Any) -> dict[str, Any]:
    return {"phase": str(record.phase), "at": record.at.isoformat(), "seconds": record.seconds}


async def _send_break(ctx: Context, driver: str) -> None:
    node = await ctx.node(driver)
    if not node.has_method("send_break"):
        raise AgentError("unsupported", f"driver {driver} cannot send a break: it has no method send_break")
    await node.call("send_break")


async def _uboot_drivers(ctx: Context, driver: str, power: str) -> tuple[str, str]:
    """Paths of the console and power that belong to a uboot driver; a console driver may be named directly."""
    node = await ctx.node(driver)
    console_path = f"{driver}.serial" if "serial" in node.children else driver
    power_path = f"{driver}.power" if "power" in node.children else power
    return console_path, power_path


async def _enter_uboot(ctx: Context, session: ConsoleSession, boots: bool, power: str, timeout: float) -> bool:
    """Be at the U-Boot prompt; tells whether the device had to be started for it."""
    node = await ctx.node(power) if boots else None
    is_off = node is not None and await power_status(node) == "off"
    if not is_off and session.phase in ("bootloader", "silent") and await session.probe() == "bootloader":
        return False

    async def power_cycle() -> None:
        await _power_cycle(session, node)

    await session.boot("bootloader", timeout=timeout, power_cycle=power_cycle if boots else None)
    return boots


async def _run_all(session: ConsoleSession, commands: list[str], timeout: float) -> list[dict[str, Any]]:
    """Run commands up to the first that fails, which is an error that carries what came before it."""
    results: list[dict[str, Any]] = []
    for command in commands:
        results.append(await _run_uboot(session, command, timeout))
        if results[-1]["rc"]:
            said = " | ".join(results[-1]["lines"][-3:]) or "nothing"
            message = f"U-Boot command {command!r} failed with {results[-1]['rc']}, it said: {said}"
            raise AgentError("uboot", message, {"results": results})
    return results


async def _run_uboot(session: ConsoleSession, command: str, timeout: float) -> dict[str, Any]:
    result = await session.uboot_run(command, timeout=timeout)
    left = None if result.left is None else str(result.left)
    return {"cmd": result.cmd, "rc": result.rc, "lines": list(result.lines), "left": left}


def _env_diff(changes: dict[str, Any]) -> dict[str, str]:
    before = "".join(f"{name}={old}\n" for name, (old, _) in sorted(changes.items()) if old is not None)
    after = "".join(f"{name}={new}\n" for name, (_, new) in sorted(changes.items()) if new is not None)
    return {"before": before, "after": after}


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise AgentError("invalid", f"argument 'in_data_b64' is not base64: {error}") from None


def _text(data: Any) -> str:
    return data.decode("utf-8", "replace") if isinstance(data, (bytes, bytearray)) else str(data)
