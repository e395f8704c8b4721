# SPDX-License-Identifier: Apache-2.0
"""Conversations with U-Boot: the real one in QEMU, and one that loses and interleaves bytes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from jumpstarter.common.exceptions import ConfigurationError, DriverError
from jumpstarter_driver_uboot.driver import UbootConsole

NASTY = [
    "simple",
    "two words",
    "it's",
    "''",
    "\"double\" 'single'",
    "$dollar ${brace} $(call)",
    "a; b && c | d & e > f",
    "#hash # more",
    "back\\slash \\n \\' \\",
    "`tick` !bang! *?[]~",
    "name=value",
    "x" * 200,
]


def test_output_and_exit_status_of_a_command(prompt: Any) -> None:
    assert prompt.uboot.call("run", "echo one; echo two") == {
        "cmd": "echo one; echo two",
        "rc": 0,
        "lines": ["one", "two"],
        "left": None,
    }
    assert prompt.uboot.call("run", "false")["rc"] == 1
    assert prompt.uboot.call("run", "echo no newline, then a comment # ; echo no")["lines"] == [
        "no newline, then a comment"
    ]


def test_unknown_command_has_exit_status_one(prompt: Any) -> None:
    result = prompt.uboot.call("run", "frobnicate")
    assert result["rc"] == 1 and result["lines"] == ["Unknown command 'frobnicate' - try 'help'"]


def test_version_is_one_line(prompt: Any) -> None:
    assert prompt.uboot.version().startswith("U-Boot 20")


@pytest.mark.parametrize("value", NASTY, ids=lambda value: value[:12])
def test_variable_round_trip_with_everything_a_shell_could_trip_over(prompt: Any, value: str) -> None:
    first = prompt.uboot.call("env_set", "jl_test", value)
    assert first["changed"]
    assert prompt.uboot.call("env_get", "jl_test") == value
    assert prompt.uboot.call("env_set", "jl_test", value) == {"changed": False, "previous": value}


def test_variable_is_deleted_and_undefined_is_none(prompt: Any) -> None:
    prompt.uboot.call("env_set", "jl_gone", "here")
    assert prompt.uboot.call("env_set", "jl_gone", None) == {"changed": True, "previous": "here"}
    assert prompt.uboot.call("env_get", "jl_gone") is None
    assert prompt.uboot.call("env_set", "jl_gone", "")["changed"] is False, "U-Boot knows no empty variable"


def test_write_once_variable_that_is_refused_is_an_error(prompt: Any) -> None:
    assert prompt.uboot.call("env_get", "ethaddr"), "set by U-Boot from the network card"
    with pytest.raises(DriverError, match="setenv ethaddr: exit status 1"):
        prompt.uboot.call("env_set", "ethaddr", "52:54:00:12:34:57")


def test_long_output_is_complete(prompt: Any) -> None:
    lines = prompt.uboot.call("run", "md.b 0x40000000 0x8000")["lines"]
    assert len(lines) == 0x800
    assert [line.split(":")[0] for line in lines] == [f"{0x40000000 + 16 * n:08x}" for n in range(0x800)]


def test_command_that_does_not_end_is_interrupted_and_the_prompt_usable(prompt: Any) -> None:
    began = time.monotonic()
    with pytest.raises(DriverError, match=r"'sleep 30' did not end within 0.5 s") as error:
        prompt.uboot.call("run", "sleep 30", 0.5)
    assert error.value.code == "DEADLINE_EXCEEDED" and time.monotonic() - began < 25
    assert prompt.uboot.call("run", "echo back")["lines"] == ["back"]


def test_command_longer_than_the_line_editor_is_refused(prompt: Any) -> None:
    with pytest.raises(DriverError, match="too long for U-Boot's command line"):
        prompt.uboot.call("run", "echo " + "y" * 3000)
    assert prompt.uboot.call("run", "echo back")["lines"] == ["back"]


def test_half_typed_line_of_somebody_else_does_no_harm(prompt: Any) -> None:
    prompt.qemu.console.write(b"reset but not entered")
    assert prompt.uboot.call("run", "echo clean")["lines"] == ["clean"]


def test_writer_of_the_console_is_named_and_may_lend_its_right(prompt: Any) -> None:
    prompt.qemu.console.call("acquire_writer", "alice")
    try:
        with pytest.raises(DriverError, match="alice .*is writing to this console"):
            prompt.uboot.version()
        assert prompt.uboot.call("version", owner="alice").startswith("U-Boot")
    finally:
        prompt.qemu.console.call("release_writer", "alice")
    assert prompt.uboot.version().startswith("U-Boot")


def test_dhcp_gives_address_and_restores_what_it_set(prompt: Any) -> None:
    with prompt.uboot.reboot_to_console():
        prompt.uboot.set_env("autoload", "yes")
        info = prompt.uboot.setup_dhcp()
        assert (info.ip_address, info.gateway, info.netmask, info.cidr) == (
            "10.0.2.15",
            "10.0.2.2",
            "255.255.255.0",
            "24",
        )
        assert prompt.uboot.get_env("autoload") == "yes"


def test_reset_is_told_from_an_answer_and_boot_can_be_stopped_again(prompt: Any) -> None:
    result = prompt.uboot.call("run", "reset")
    assert result["rc"] is None and result["left"] == "reset"
    found = prompt.uboot.interrupt()
    assert found["version"].startswith("U-Boot 20") and found["seconds"] < 20
    assert prompt.uboot.interrupt()["version"] is None, "already at the prompt"


def test_python_client_as_documented(shared: Any) -> None:
    uboot = shared.uboot
    with pytest.raises(RuntimeError, match="not at U-Boot's prompt"):
        uboot.run_command("version")
    with pytest.raises(RuntimeError, match="Failed to get U-Boot prompt"), uboot.reboot_to_console(retries=0):
        pass
    with uboot.reboot_to_console():
        assert uboot.prompt == "\n=>"
        assert uboot.run_command("version").startswith(b"U-Boot")
        assert uboot.run_command_checked("echo a; echo b") == ["a", "b"]
        with pytest.raises(RuntimeError, match=r"'false' failed with exit status 1"):
            uboot.run_command_checked("false")
        assert uboot.run_command_checked("false", check=False) == []
        uboot.set_env_dict({"jl_a": "1's", "jl_b": "2\\", "jl_c": None})
        assert (uboot.get_env("jl_a"), uboot.get_env("jl_b"), uboot.get_env("jl_c")) == ("1's", "2\\", None)
        with pytest.raises(TimeoutError, match="did not end within"):
            uboot.run_command("sleep 30", timeout=0.5)
        assert uboot.run_command("echo still here") == b"still here"


def test_python_client_over_the_bare_console_with_an_exporter_that_knows_only_the_prompt(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uboot = shared.uboot
    monkeypatch.setattr(type(uboot), "has_method", lambda self, name: False)
    with uboot.reboot_to_console():
        assert uboot.run_command("version").startswith(b"U-Boot")
        assert uboot.run_command_checked("nosuch", check=False) == ["Unknown command 'nosuch' - try 'help'"]
        uboot.set_env("jl_a", "it's \\ here")
        assert uboot.get_env("jl_a") == "it's \\ here"
        assert uboot.get_env("jl_nothing") is None
        assert uboot.setup_dhcp().ip_address == "10.0.2.15"
        with pytest.raises(TimeoutError, match="did not end within"):
            uboot.run_command("sleep 3", timeout=0.5)


def test_board_that_is_off_is_said_so_at_once(shared: Any) -> None:
    shared.qemu.power.off()
    began = time.monotonic()
    for call in (("interrupt", 30.0), ("run", "version"), ("env_get", "x")):
        with pytest.raises(DriverError, match="the board is off; power it on first"):
            shared.uboot.call(*call)
    assert time.monotonic() - began < 25


def test_bootloader_that_never_comes_is_an_error_with_the_last_output(fake: Callable[..., Any]) -> None:
    client, _ = fake(prompt="U-Boot#")
    with pytest.raises(DriverError, match=r'no U-Boot prompt within 0.5 s; the console says ".*INTERRUPT.*'):
        client.interrupt(0.5)


def test_lost_characters_are_noticed_and_the_line_is_typed_again(fake: Callable[..., Any]) -> None:
    client, device = fake(lose={9, 31})
    result = client.call("run", "hello")
    assert (result["rc"], result["lines"]) == (0, ["hi there"])
    assert len(device.lines) == 1, "no mangled line was ever entered"


def test_kernel_style_noise_and_folded_echo_do_not_change_the_exit_status(fake: Callable[..., Any]) -> None:
    client, _ = fake(noise=b"=> noise 5\r\n", wrap=200)
    assert client.call("run", "hello") == {"cmd": "hello", "rc": 0, "lines": ["hi there", "=> noise 5"], "left": None}
    assert client.call("run", "false")["rc"] == 1


def test_deaf_console_is_an_error_and_nothing_is_entered(fake: Callable[..., Any]) -> None:
    client, device = fake(lose=set(range(1, 100_000)))
    with pytest.raises(DriverError, match="does not echo what is typed"):
        client.call("run", "hello")
    assert device.lines == []


@pytest.mark.parametrize("missing", ["power", "serial"])
def test_missing_child_is_named(missing: str) -> None:
    from jumpstarter_driver_power.driver import MockPower

    children = {name: MockPower() for name in ("power", "serial") if name != missing}
    with pytest.raises(ConfigurationError, match=f'"{missing}" is missing'):
        UbootConsole(children=children)


def test_run_command_of_the_command_line(prompt: Any) -> None:
    from click.testing import CliRunner

    prompt.uboot.call("reboot_to_prompt", 0, 60)
    result = CliRunner().invoke(prompt.uboot.cli(), ["run", "echo hi; false"])
    assert (result.output, result.exit_code) == ("hi\n", 1)
    CliRunner().invoke(prompt.uboot.cli(), ["env", "jl_cli", "it's"], catch_exceptions=False)
    assert CliRunner().invoke(prompt.uboot.cli(), ["env", "jl_cli"]).output == "it's\n"
    assert CliRunner().invoke(prompt.uboot.cli(), ["env", "jl_none"]).exit_code == 1
