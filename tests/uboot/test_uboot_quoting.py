# SPDX-License-Identifier: Apache-2.0
"""What may be typed at U-Boot's prompt, and what its answers mean."""

from __future__ import annotations

import pytest

from jumpstarter_driver_uboot.common import (
    DhcpInfo,
    check_command,
    check_name,
    parse_dhcp,
    parse_printenv,
    quotings,
)


def test_comment_cannot_hide_the_exit_status() -> None:
    assert check_command("false # why not") == "false"
    assert check_command("echo a#b") == "echo a#b"
    assert check_command("echo '# no comment'") == "echo '# no comment'"
    assert check_command("  version ; ") == "version"
    assert check_command("# nothing") == ""


@pytest.mark.parametrize("command", ["echo 'x", 'echo "x', "echo x\\", "a\nb", "a\rb", "tab\there", "\x03"])
def test_line_that_would_hang_the_prompt_is_refused(command: str) -> None:
    with pytest.raises(ValueError, match=r"unfinished|control character"):
        check_command(command)


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a'b", "$a", "a;b", "a\n"])
def test_name_that_is_no_word_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a U-Boot variable"):
        check_name(name)


def test_value_with_quotes_is_one_word() -> None:
    assert quotings("plain") == ["'plain'"]
    assert quotings("it's") == ["'it'\\''s'"]
    assert quotings("a\\b") == ["'a\\\\b'", "'a\\b'"]
    with pytest.raises(ValueError, match="control character"):
        quotings("two\nlines")


def test_undefined_is_not_empty_and_rubbish_is_an_error() -> None:
    assert parse_printenv("x", 0, ["x=1=2"]) == "1=2"
    assert parse_printenv("x", 0, ["x=a", "b"]) == "a\nb"
    assert parse_printenv("x", 1, ['## Error: "x" not defined']) is None
    with pytest.raises(ValueError, match="unexpected answer to printenv x"):
        parse_printenv("x", 0, ["y=1"])


def test_dhcp_answer() -> None:
    assert parse_dhcp(["BOOTP broadcast 1", "DHCP client bound to address 10.0.2.15 (3 ms)"]) == "10.0.2.15"
    assert parse_dhcp(["BOOTP broadcast 1", "Retry time exceeded"]) is None
    assert DhcpInfo("10.0.2.15", "10.0.2.2", "255.255.254.0").cidr == "23"
