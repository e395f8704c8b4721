# SPDX-License-Identifier: GPL-3.0-or-later
"""A play puts boot files on the servers beside a device: once, and not in check mode."""

from __future__ import annotations

from collections.abc import Callable

from benches import Bench

FETCH = {
    "name": "Fetch",
    "ansible.builtin.uri": {"url": "{{ web.files[0].url }}", "return_content": True},
    "delegate_to": "localhost",
}


def test_a_play_serves_files_by_http_and_tftp(bench: Callable[..., Bench]) -> None:
    made = bench({"dut": {"jumpstarter_exporter_config": "dut.yaml"}})
    servers = {
        name: {"type": kind, "config": {"root_dir": str(made.folder / name), "host": "127.0.0.1", "port": 0}}
        for name, kind in (
            ("http", "jumpstarter_driver_http.driver.HttpServer"),
            ("tftp", "jumpstarter_driver_tftp.driver.Tftp"),
        )
    }
    made.config("dut", servers)
    (made.folder / "Image").write_bytes(b"kernel")
    files = {"files": [{"src": "Image", "dest": "virt/Image"}]}
    played = made.run(
        [
            {"name": "Would serve", "jumpstarter.lab.http": files, "check_mode": True},
            {"name": "Serve", "jumpstarter.lab.http": files, "register": "web"},
            {"name": "Serve again", "jumpstarter.lab.http": files},
            FETCH,
            {"name": "Boot", "jumpstarter.lab.tftp": files},
            {"name": "Stop", "jumpstarter.lab.tftp": {"state": "stopped", "absent": ["virt"]}},
            {"name": "Missing", "jumpstarter.lab.http": {"files": [{"src": "nope"}]}, "ignore_errors": True},
        ]
    )
    assert played.rc == 0, played.output
    results = [played.result("dut", index) for index in range(7)]
    assert [result["changed"] for result in results] == [True, True, False, False, True, True, False]
    assert results[1]["running"] is True and results[1]["files"][0]["path"] == "virt/Image"
    assert results[3]["content"] == "kernel"
    assert (results[4]["port"] > 0, results[5]["removed"], results[5]["running"]) == (True, ["virt"], False)
    assert "dut: http: file nope is not there; nothing was changed" in results[6]["msg"]
    made.wait_gone()
