# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays whose boards are leased from a controller: the same tasks, only the inventory differs."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import disk_images as images
import pytest
from benches import MOCK, ROOT, Bench, board_config
from labs import Lab

MakeBench = Callable[..., Bench]
MIB = images.MIB

HOLD: dict[str, Any] = {"name": "Hold", "jumpstarter.lab.lease": {}}
INFO: dict[str, Any] = {"name": "Look", "jumpstarter.lab.lease_info": {}}
STATUS: dict[str, Any] = {"name": "Is it on?", "jumpstarter.lab.power": {"state": "status"}}
SWITCH_ON: dict[str, Any] = {"name": "Switch on", "jumpstarter.lab.power": {"state": "on"}}
ANY_X = {"jumpstarter_selector": "board=x"}


def hold(**options: Any) -> dict[str, Any]:
    """A lease task with options."""
    return {"name": "Hold", "jumpstarter.lab.lease": options}


def leased(bench: MakeBench, lab: Lab, **hosts: dict[str, Any]) -> Bench:
    """A bench whose hosts are leased as the client `me`."""
    return bench(hosts or {"dut": ANY_X}, jumpstarter_client_config=str(lab.client))


def test_a_play_takes_an_exporter_by_label_and_gives_it_back(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x", "rack=a")
    made = leased(bench, lab)
    read = {"name": "Read", "jumpstarter.lab.call": {"driver": "power", "method": "read"}}
    task = hold(tags={"job": "42"}, context={"why": "a test"}, duration="5m")
    played = made.run([task, SWITCH_ON, SWITCH_ON, read, INFO, HOLD])
    assert played.rc == 0, played.output
    assert [played.result("dut", n)["changed"] for n in range(6)] == [True, True, False, False, False, False]
    lease = played.result("dut", 0)["lease"]
    assert (lease["exporter"], lease["client"], lease["tags"]) == ("e1", "me", {"job": "42"})
    assert (lease["context"], lease["labels"]["rack"], lease["reach"]["kind"]) == ({"why": "a test"}, "a", "controller")
    assert lease["waited"] < 5 and lease["expires_at"] and lease["drivers"]["power"]["type"] == "power"
    assert played.result("dut", 4)["lease"]["name"] == lease["name"]
    made.wait_gone()
    assert lab.wait_released() < 2
    # The exporter has ended the session: what the play had switched on is off.
    assert made.run([STATUS]).result("dut")["state"] == "off"


def test_hosts_with_one_selector_get_an_exporter_each(bench: MakeBench, lab: Lab) -> None:
    for name in ("e1", "e2"):
        lab.add(name, "board=x")
    made = leased(bench, lab, one=ANY_X, two=ANY_X)
    played = made.run([HOLD, SWITCH_ON])
    assert played.rc == 0, played.output
    assert {played.result(host, 0)["lease"]["exporter"] for host in ("one", "two")} == {"e1", "e2"}
    made.wait_gone()


def test_an_exporter_by_name_and_one_that_a_task_asks_for_instead(bench: MakeBench, lab: Lab) -> None:
    for name in ("e1", "e2"):
        lab.add(name, "board=x")
    made = leased(bench, lab, dut={"jumpstarter_exporter": "e2"})
    assert made.run([HOLD]).result("dut")["lease"]["exporter"] == "e2"
    played = made.run([hold(exporter="e1"), SWITCH_ON, hold(exporter="e1"), hold(exporter="e2")])
    assert played.result("dut", 0)["lease"]["exporter"] == "e1"
    assert played.result("dut", 2)["changed"] is False
    assert "is leased through exporter e1" in played.result("dut", 3)["msg"]
    made.wait_gone()


def test_the_second_of_two_plays_waits_is_told_its_place_and_gets_the_board(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    first, second = leased(bench, lab), leased(bench, lab)
    wait = {"name": "Work", "ansible.builtin.wait_for": {"path": str(first.folder / "go"), "timeout": 60}}
    plays = [{"hosts": "duts", "gather_facts": False, "tasks": [SWITCH_ON, {**wait, "delegate_to": "localhost"}]}]
    holder = first.start_until(first.write(plays), "TASK [Work]")
    waiter = second.start_until(
        second.write([{"hosts": "duts", "gather_facts": False, "tasks": [HOLD, STATUS]}]), "waiting for a lease: 1 of 1"
    )
    (first.folder / "go").write_text("")
    outputs = [process.communicate(timeout=60)[0] for process in (holder, waiter)]
    assert [holder.returncode, waiter.returncode] == [0, 0], outputs
    for made in (first, second):
        made.wait_gone()


def test_a_wait_that_takes_too_long_says_what_it_waited_for(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    with lab.held("board=x"):
        result = made.run([hold(timeout="2s")]).result("dut")
        assert result["error_code"] == "timeout"
        assert result["msg"].startswith("dut: lease: no lease of an exporter with board=x within 2s: 1 of 1, ")
        made.wait_gone()
        assert len(lab.leases()) == 1, "the lease that was waited for is gone"


def test_what_nobody_has_is_refused_at_once_or_waited_for(bench: MakeBench, lab: Lab) -> None:
    made = leased(bench, lab)
    result = made.run([HOLD]).result("dut")
    assert (result["error_code"], result["msg"].count("\n")) == ("unsatisfiable", 0)
    assert result["msg"].startswith("dut: lease: no lease of an exporter with board=x: ")
    playbook = made.write([{"hosts": "duts", "gather_facts": False, "tasks": [hold(wait_for_match=True), STATUS]}])
    process = made.start_until(playbook, "waiting for a lease")
    lab.add("e1", "board=x")
    output, _unused = process.communicate(timeout=60)
    assert process.returncode == 0, output
    made.wait_gone()


def test_check_mode_says_what_is_there_and_leases_nothing(bench: MakeBench, lab: Lab) -> None:
    for name in ("e1", "e2"):
        lab.add(name, "board=x")
    made = leased(bench, lab)
    lease = made.run([HOLD], "--check").result("dut")["lease"]
    assert (lease["available"], lease["matching"], lease["free"]) == (True, ["e1", "e2"], ["e1", "e2"])
    with lab.held("board=x"):
        played = made.run([HOLD], "--check")
        assert (played.rc, len(played.result("dut")["lease"]["free"])) == (0, 1)
    nobody = made.run([hold(selector="board=y")], "--check").result("dut")
    assert nobody["error_code"] == "unsatisfiable" and "board=y" in nobody["msg"]
    assert len(lab.leases(active=False)) == 1, "only ours from above"
    made.wait_gone()


def test_what_was_asked_wrongly_is_one_clear_line(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made, apart = leased(bench, lab), leased(bench, lab)
    errors = {
        "selector=": (hold(selector="board in x"), "invalid"),
        "duration=": (hold(duration="-1m"), "invalid"),
        "begin_time=": (hold(begin_time="tonight"), "invalid"),
    }
    # Nobody answers there. It is tried for a while, which is waited for beside the rest.
    with socket.socket() as nobody, ThreadPoolExecutor(1) as beside:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{nobody.getsockname()[1]}"
        away = yaml_with(lab.client, apart.folder / "away.yaml", endpoint=endpoint)
        trying = beside.submit(apart.run, [HOLD], "-e", f"jumpstarter_client_config={away}")
        played = made.run([{**task, "ignore_errors": True} for task, _ in errors.values()])
        for number, (what, (_, code)) in enumerate(errors.items()):
            result = played.result("dut", number)
            assert (result["error_code"], result["msg"].count("\n")) == (code, 0), (what, result)
            assert result["msg"].startswith("dut: lease: "), result
        bad = yaml_with(lab.client, made.folder / "bad.yaml", token="eyJhbGciOiJub25lIn0.e30.")
        refused = made.run([HOLD], "-e", f"jumpstarter_client_config={bad}").result("dut")
        assert refused["error_code"] == "refused" and "jmp login" in refused["msg"], refused
        lost = trying.result().result("dut")
    assert lost["error_code"] == "controller_lost" and endpoint in lost["msg"], lost
    for one in (made, apart):
        one.wait_gone()


def yaml_with(source: Path, target: Path, **changes: Any) -> Path:
    """A YAML file with some keys changed."""
    import yaml

    target.write_text(yaml.safe_dump({**yaml.safe_load(source.read_text()), **changes}))
    return target


def test_without_any_client_the_error_says_how_to_name_one(bench: MakeBench, tmp_path: Path) -> None:
    made = bench({"dut": ANY_X})
    home = {"JMP_CLIENT_CONFIG_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    result = made.run([HOLD], **home).result("dut")
    assert result["error_code"] == "invalid" and "jumpstarter_client_config" in result["msg"], result
    made.wait_gone()


def test_time_that_is_over_ends_the_lease_and_the_next_task_says_so(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    over = {"name": "Wait", "ansible.builtin.pause": {"seconds": 4}}
    played = made.run([hold(duration="2s"), over, {**STATUS, "ignore_errors": True}, HOLD, STATUS])
    assert played.result("dut", 2)["error_code"] == "lease_lost", played.output
    assert "e1" in played.result("dut", 2)["msg"] and "has ended" in played.result("dut", 2)["msg"]
    assert (played.result("dut", 3)["changed"], played.result("dut", 4)["state"]) == (True, "off")
    made.wait_gone()


def test_a_lease_is_given_more_time(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    played = made.run([hold(duration="30s"), hold(duration="1h"), hold(duration="10s")])
    times = [played.result("dut", n)["lease"]["expires_at"] for n in range(3)]
    assert [played.result("dut", n).get("extended") for n in range(3)] == [False, True, False]
    assert times[0] < times[1] and times[1][:16] == times[2][:16]
    made.wait_gone()


def test_a_lease_of_a_play_ends_with_it(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    plays = [
        {"name": "One", "hosts": "duts", "gather_facts": False, "tasks": [hold(lifetime="play"), SWITCH_ON]},
        {"name": "Two", "hosts": "duts", "gather_facts": False, "tasks": [INFO, HOLD, STATUS]},
    ]
    played = made.run_playbook(made.write(plays), callbacks="jumpstarter.lab.recording")
    assert played.rc == 0, played.output
    assert played.result("dut", 2)["lease"]["state"] == "absent"
    assert (played.result("dut", 3)["changed"], played.result("dut", 4)["state"]) == (True, "off")
    made.wait_gone()


def test_a_detached_lease_stays_at_the_controller_and_is_found_by_its_name(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    named = {"lifetime": "detached", "name": "nightly-7", "duration": "5m"}
    first = made.run([hold(**named), SWITCH_ON])
    assert first.rc == 0, first.output
    made.wait_gone()  # nothing of ours holds it: the controller does
    (lease,) = lab.leases()
    assert (lease.name, lease.exporter) == ("nightly-7", "e1")
    elsewhere = leased(bench, lab)
    second = elsewhere.run([hold(**named), STATUS, hold(name="nightly-7")])
    assert [second.result("dut", n)["changed"] for n in range(3)] == [False, False, False], second.output
    assert second.result("dut", 1)["state"] == "on"
    stranger = made.run([hold(timeout="1s")])
    assert stranger.result("dut")["error_code"] == "timeout"
    third = elsewhere.run([hold(name="nightly-7", state="absent"), hold(name="nightly-7", state="absent")])
    assert [third.result("dut", n)["changed"] for n in range(2)] == [True, False], third.output
    # The name can be used again, although the controller remembers the lease that had it.
    again = made.run([hold(**named), STATUS])
    assert (again.result("dut", 0)["changed"], again.result("dut", 1)["state"]) == (True, "off"), again.output
    back = elsewhere.run([hold(name="nightly-7"), hold(name="nightly-7", state="absent")])
    assert [back.result("dut", n)["changed"] for n in range(2)] == [False, True], back.output
    assert lab.wait_released() < 2
    for one in (made, elsewhere):
        one.wait_gone()


def test_a_failing_board_is_kept_and_the_run_says_how_to_get_at_it(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x")
    made = leased(bench, lab)
    fail = {"name": "Fail", "ansible.builtin.fail": {"msg": "on purpose"}}
    failed = made.run([hold(hold_on_failure="2m"), SWITCH_ON, fail], callbacks="jumpstarter.lab.recording")
    assert failed.rc == 2
    (lease,) = lab.leases()
    assert f"--lease {lease.name}" in failed.stdout, failed.stdout
    match = re.search(r"jumpstarter.lab.lease: .*name: ([^},]+)", failed.stdout)
    assert match and match[1] == lease.name, failed.stdout
    again = hold(lifetime="detached", name=lease.name)
    assert made.run([again, STATUS]).result("dut")["state"] == "on"
    made.run([hold(lifetime="detached", name=lease.name, state="absent")])
    made.wait_gone()
    assert lab.wait_released() < 2


def test_flash_storage_and_forward_go_through_the_tunnel(bench: MakeBench, lab: Lab, tmp_path: Path) -> None:
    disk = {"path": str(tmp_path / "disk"), "size": 64 * MIB}
    storage = {"type": "jumpstarter_driver_storage.driver.FileFlasher", "config": disk}
    lab.add("e1", "board=x", export={**MOCK, "storage": storage})
    made = leased(bench, lab)
    image = images.patterned(made.folder / "i.img", 48)
    flash = {"name": "Write it", "jumpstarter.lab.flash": {"src": str(image)}}
    dump = {"name": "Read it", "jumpstarter.lab.storage": {"dump": {"path": str(made.folder / "copy")}}}
    played = made.run([HOLD, flash, flash, dump])
    assert played.rc == 0, played.output
    assert [played.result("dut", n)["changed"] for n in (1, 2, 3)] == [True, False, True]
    assert played.result("dut", 1)["verified"] is True
    assert (made.folder / "copy").read_bytes()[: image.stat().st_size] == image.read_bytes()
    made.wait_gone()


def test_twenty_hosts_are_leased_at_once(bench: MakeBench, lab: Lab) -> None:
    count = 20
    for n in range(4):
        lab.add_many([f"e{n}-{m}" for m in range(count // 4)], "board=x")
    made = leased(bench, lab, **{f"dut{n}": ANY_X for n in range(count)})
    played = made.run([HOLD, SWITCH_ON, STATUS], "--forks", str(count))
    assert played.rc == 0, played.output
    taken = {played.result(f"dut{n}", 0)["lease"]["exporter"] for n in range(count)}
    assert len(taken) == count
    assert {played.result(f"dut{n}")["state"] for n in range(count)} == {"on"}
    made.wait_gone()
    assert lab.wait_released() < 5


@pytest.mark.timeout(900)
def test_virt_arm64_behind_a_controller_is_flashed_booted_and_verified(
    bench: MakeBench, lab: Lab, arm64_image: Path
) -> None:
    """The unchanged playbook on the unchanged inventory of the board; only how it is reached is another."""
    import yaml

    made = bench({})
    document = yaml.safe_load((made.folder / board_config(made, "virt-arm64")).read_text())
    lab.add("virt-1", "board=virt-arm64", export=document["export"])
    reach = {
        "jumpstarter_exporter_config": "",
        "jumpstarter_selector": "board=virt-arm64",
        "jumpstarter_client_config": str(lab.client),
    }
    played = made.run_playbook(
        ROOT / "playbooks" / "flash_and_test.yml",
        *("-i", str(ROOT / "inventories" / "virt-arm64.yml"), "-e", json.dumps(reach)),
        timeout=900,
        callbacks="jumpstarter.lab.recording",
    )
    assert played.rc == 0, played.output
    results = {task["task"]: task["hosts"]["virt-arm64"] for task in played.tasks if "virt-arm64" in task["hosts"]}
    facts = json.loads(arm64_image.with_suffix(".json").read_text())
    assert results["Hold the board for this run"]["lease"]["exporter"] == "virt-1"
    assert results["Write the image and compare"]["verified"] is True
    assert str(results["Ask for the kernel"]["stdout"]).strip() == facts["kernel"]
    assert results["Put a file on the board"]["sha256"] == results["Fetch it back"]["sha256"]
    report = Path(played.stdout.rstrip().rpartition("Report: ")[2])
    assert "Linux version" in (report.parent / "virt-arm64" / "console.log").read_text()
    made.wait_gone()
    assert lab.wait_released() < 2


def test_a_play_sees_what_the_exporter_does_before_it_is_ready(bench: MakeBench, lab: Lab) -> None:
    lab.add("e1", "board=x", hooks={"beforeLease": {"script": "echo warming up", "timeout": 30}})
    lab.add("e2", "board=y", hooks={"beforeLease": {"script": "exit 3", "timeout": 30, "onFailure": "endLease"}})
    lab.add("e3", "board=z", hooks={"beforeLease": {"script": "exit 4", "timeout": 30}})
    made = leased(bench, lab)
    played = made.run([HOLD, STATUS])
    assert played.rc == 0 and "dut | beforeLease hook: warming up" in played.stdout, played.output
    failed = made.run([hold(selector="board=y")]).result("dut")
    assert failed["msg"].startswith("dut: lease: exporter e2: its beforeLease hook failed: "), failed
    warned = made.run([hold(selector="board=z"), STATUS])
    assert warned.rc == 0 and "dut | exporter e3 warns: " in warned.stdout, warned.output
    made.wait_gone()
    lab.wait_released()
