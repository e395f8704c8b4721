# SPDX-License-Identifier: GPL-3.0-or-later
"""Host variables name exactly one way to the board, and mistakes are said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ansible_collections.jumpstarter.lab.plugins.plugin_utils._reach import ReachError, find_reach


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    for folder in ("inventory", "playbook"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "board.yaml").write_text(folder)
    (tmp_path / "playbook" / "ca.pem").write_text("ca")
    return [str(tmp_path / "inventory"), str(tmp_path / "playbook")]


def test_relative_config_is_looked_for_beside_the_inventory_first(folders: list[str]) -> None:
    reach = find_reach("b", {"jumpstarter_exporter_config": "board.yaml"}, folders)
    assert reach == {"exporter_config": f"{folders[0]}/board.yaml"}


def test_relative_config_is_looked_for_beside_the_playbook_next(folders: list[str]) -> None:
    Path(folders[0], "board.yaml").unlink()
    reach = find_reach("b", {"jumpstarter_exporter_config": "board.yaml"}, folders)
    assert reach == {"exporter_config": f"{folders[1]}/board.yaml"}


def test_missing_config_names_every_place_that_was_tried(folders: list[str]) -> None:
    with pytest.raises(ReachError) as error:
        find_reach("b", {"jumpstarter_exporter_config": "no.yaml"}, folders)
    assert f"{folders[0]}/no.yaml, {folders[1]}/no.yaml" in str(error.value)
    assert "jumpstarter_exporter_config" in str(error.value)


def test_endpoint_takes_its_tls_files(folders: list[str]) -> None:
    reach = find_reach("b", {"jumpstarter_endpoint": "lab:8443", "jumpstarter_tls_ca": "ca.pem"}, folders)
    assert reach == {"endpoint": "lab:8443", "tls_ca": f"{folders[1]}/ca.pem"}


@pytest.mark.parametrize("value", [True, "true", "yes", "1"])
def test_insecure_endpoint_is_asked_for_explicitly(value: object) -> None:
    reach = find_reach("b", {"jumpstarter_endpoint": "lab:1", "jumpstarter_insecure": value}, [])
    assert reach == {"endpoint": "lab:1", "insecure": True}


def test_insecure_false_is_not_sent() -> None:
    assert find_reach("b", {"jumpstarter_endpoint": "lab:1", "jumpstarter_insecure": "false"}, []) == {
        "endpoint": "lab:1"
    }


def test_selector_and_exporter_go_together() -> None:
    reach = find_reach("b", {"jumpstarter_selector": "board=rpi4", "jumpstarter_exporter": "rpi-1"}, [])
    assert reach == {"selector": "board=rpi4", "exporter": "rpi-1"}


def test_lease_names_its_client_by_alias_or_by_a_file_beside_the_inventory(folders: list[str]) -> None:
    asked = {"jumpstarter_selector": "board=rpi4"}
    assert find_reach("b", {**asked, "jumpstarter_client": "nightly"}, folders)["client"] == "nightly"
    reach = find_reach("b", {**asked, "jumpstarter_client_config": "board.yaml"}, folders)
    assert reach == {"selector": "board=rpi4", "client_config": f"{folders[0]}/board.yaml"}


def test_client_of_a_group_is_no_matter_for_a_host_with_another_way(folders: list[str]) -> None:
    reach = find_reach("b", {"jumpstarter_endpoint": "lab:1", "jumpstarter_client": "nightly"}, folders)
    assert reach == {"endpoint": "lab:1"}


def test_empty_variable_counts_as_unset(folders: list[str]) -> None:
    reach = find_reach("b", {"jumpstarter_exporter_config": "", "jumpstarter_endpoint": "[::1]:5"}, folders)
    assert reach == {"endpoint": "[::1]:5"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["no host variable", "jumpstarter_exporter_config", "jumpstarter_endpoint", "jumpstarter_selector"]),
        (
            {"jumpstarter_exporter_config": "board.yaml", "jumpstarter_endpoint": "a:1"},
            ["jumpstarter_exporter_config and jumpstarter_endpoint"],
        ),
        (
            {"jumpstarter_endpoint": "a:1", "jumpstarter_selector": "x=y"},
            ["jumpstarter_endpoint and jumpstarter_selector"],
        ),
        (
            {"jumpstarter_selector": "x=y", "jumpstarter_client": "a", "jumpstarter_client_config": "board.yaml"},
            ["jumpstarter_client and jumpstarter_client_config", "keep one"],
        ),
        (
            {"jumpstarter_exporter": "e", "jumpstarter_client_config": "no.yaml"},
            ["jumpstarter_client_config", "no.yaml"],
        ),
        ({"jumpstarter_endpoint": "lab"}, ["host:port", '"lab"']),
        ({"jumpstarter_endpoint": "lab:99999"}, ["host:port"]),
        ({"jumpstarter_endpoint": "a:1", "jumpstarter_tls_ca": "no.pem"}, ["jumpstarter_tls_ca", "no.pem"]),
        (
            {"jumpstarter_endpoint": "a:1", "jumpstarter_tls_ca": "ca.pem", "jumpstarter_insecure": True},
            ["jumpstarter_insecure", "keep one"],
        ),
    ],
)
def test_mistakes_name_the_host_and_the_variables(
    values: dict[str, object], words: list[str], folders: list[str]
) -> None:
    with pytest.raises(ReachError) as error:
        find_reach("bench-3", values, folders)
    assert str(error.value).startswith("bench-3: ")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_console_connection_knows_every_variable() -> None:
    from ansible_collections.jumpstarter.lab.plugins.connection import console
    from ansible_collections.jumpstarter.lab.plugins.plugin_utils._reach import VARIABLES

    options = yaml.safe_load(console.DOCUMENTATION)["options"]
    for variable in VARIABLES:
        assert options[variable.removeprefix("jumpstarter_")]["vars"] == [{"name": variable}]
