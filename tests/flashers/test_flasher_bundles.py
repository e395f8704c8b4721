# SPDX-License-Identifier: Apache-2.0
"""Bundles: manifests that are wrong, registries that are away, refuse or lie, and what is kept."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from flasher_boards import MANIFEST
from oci_registry import OciRegistry, auth_file

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_flashers.bundle import BundleStore, check_bundle_name
from jumpstarter_driver_flashers.manifest import FlasherBundleManifest
from jumpstarter_driver_storage.oci import Reference, find_credentials

FULL = """\
metadata: {name: board}
spec:
  manufacturer: Somebody
  link: null
  bootcmd: booti 0x82000000 - 0x84000000
  login: {login_prompt: "login:", username: root, password: secret, prompt: "#"}
  default_target: emmc
  targets: {emmc: /dev/mmcblk0, usd: "/sys/class/block#4fb0000.mmc"}
  kernel: {file: data/Image, address: "0x82000000"}
  initram: null
  dtb:
    default: evm
    address: "0x84000000"
    variants:
      evm: {file: data/evm.dtb}
      other: {file: data/other.dtb, bootcmd: bootm 0x90000000}
      old: data/old.dtb
      fit: {bootcmd: bootm 0x90000000#x}
"""


def small_bundle(folder: Path, text: str = FULL) -> Path:
    (folder / "data").mkdir(parents=True)
    for name in ("Image", "evm.dtb", "other.dtb", "old.dtb"):
        (folder / "data" / name).write_bytes(name.encode() * 1000)
    (folder / "manifest.yaml").write_text(text)
    return folder


def changed(path: str, value: Any) -> str:
    data = yaml.safe_load(FULL)
    *parents, last = path.split(".")
    place = data
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return yaml.safe_dump(data)


def test_manifest_with_every_form_of_variant() -> None:
    manifest = FlasherBundleManifest.parse(FULL, "here")
    assert manifest.bootcmd(None) == "booti 0x82000000 - 0x84000000"
    assert manifest.bootcmd("other") == "bootm 0x90000000" and manifest.bootcmd("fit") == "bootm 0x90000000#x"
    old, fit = manifest.variant("old"), manifest.variant("fit")
    assert old is not None and old.file == "data/old.dtb" and fit is not None and fit.file is None
    with pytest.raises(ValueError, match=r"variant 'no' is unknown; available: evm, other, old, fit"):
        manifest.variant("no")
    assert "secret" not in repr(manifest), "a password is nobody's business"
    assert FlasherBundleManifest.parse(MANIFEST, "here").variant(None) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.kernel.address", "here", r"field spec.kernel.address: 'here' is no hexadecimal address"),
        ("spec.kernel.file", "../../etc/passwd", r"field spec.kernel.file: '../../etc/passwd' is no path inside"),
        ("spec.kernel.file", "/etc/passwd", r"field spec.kernel.file: '/etc/passwd' is no path inside"),
        ("spec.kernel", None, r"field spec.kernel: is required"),
        ("spec.bootcmd", None, r"field spec.bootcmd: is required"),
        ("spec.preflash_command", ["x"], r"field spec.preflash_command: no such field, did you mean preflash_commands"),
        ("spec.default_target", "sd", r"field spec.default_target: there is no target 'sd'; targets: emmc, usd"),
        ("spec.targets.emmc", "mmcblk0", r"field spec.targets: emmc: 'mmcblk0' is neither /dev/"),
        ("spec.targets.emmc", "/dev/x; reboot", r"field spec.targets: emmc: .* is neither"),
        ("spec.dtb.default", "nope", r"field spec.dtb.default: there is no variant 'nope'"),
        ("spec.shelltype", "fish", r"field spec.shelltype: "),
        ("kind", "Something", r"field kind: "),
    ],
)
def test_wrong_manifest_is_one_line_with_file_and_field(tmp_path: Path, path: str, value: Any, message: str) -> None:
    text = changed(path, value) if path != "kind" else "kind: Something\n" + FULL
    folder = small_bundle(tmp_path / "bundle", text)
    with pytest.raises(ConfigurationError, match=message) as error:
        BundleStore(tmp_path).open(str(folder), "manifest.yaml")
    assert str(folder / "manifest.yaml") in str(error.value) and "\n" not in str(error.value)


def test_folder_without_what_is_needed(tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    with pytest.raises(ConfigurationError, match="folder .*nothere does not exist"):
        store.open(str(tmp_path / "nothere"), "manifest.yaml")
    folder = small_bundle(tmp_path / "a bundle")
    with pytest.raises(ConfigurationError, match="there is no manifest other.yaml; it has manifest.yaml"):
        store.open(str(folder), "other.yaml")
    with pytest.raises(ConfigurationError, match=r"manifest.yaml, line \d+: no YAML"):
        (folder / "manifest.yaml").write_text("a: [")
        store.open(str(folder), "manifest.yaml")
    (folder / "manifest.yaml").write_text(FULL)
    bundle = store.open(folder.as_uri(), "manifest.yaml")
    (folder / "data" / "Image").unlink()
    with pytest.raises(ConfigurationError, match=r"field spec.kernel.file: the bundle .* has no file data/Image"):
        bundle.file("data/Image", "spec.kernel.file")
    (folder / "data" / "Image").symlink_to("/etc/passwd")
    with pytest.raises(ConfigurationError, match="has no file data/Image"):
        bundle.file("data/Image", "spec.kernel.file")


def test_artifact_is_kept_by_digest_and_a_tag_is_asked_for_again(registry_server: OciRegistry, tmp_path: Path) -> None:
    folder = small_bundle(tmp_path / "bundle")
    first = registry_server.push_bundle("lab/flasher:v1", folder)
    name = f"{registry_server.host}/lab/flasher"
    store = BundleStore(tmp_path / "cache", insecure_registries=[registry_server.host])
    bundle = store.open(f"oci://{name}:v1", "manifest.yaml")
    assert bundle.digest == first and bundle.file("data/Image", "x").read_bytes() == b"Image" * 1000

    (folder / "data" / "Image").write_bytes(b"another")
    second = registry_server.push_bundle("lab/flasher:v1", folder)
    assert store.open(f"{name}:v1", "manifest.yaml").digest == second != first
    # a digest needs no registry once it is here
    gone = BundleStore(tmp_path / "cache")
    assert gone.open(f"{name}@{first}", "manifest.yaml").file("data/Image", "x").read_bytes() == b"Image" * 1000
    assert [path.name for path in (tmp_path / "cache" / "bundles").glob(".partial*")] == []


def test_registry_that_is_away_has_it_not_or_lies(registry_server: OciRegistry, tmp_path: Path) -> None:
    store = BundleStore(tmp_path, insecure_registries=[registry_server.host, "127.0.0.1:9"])
    with pytest.raises(ConnectionError, match=r"registry 127.0.0.1:9 cannot be reached by plain HTTP"):
        store.open("127.0.0.1:9/lab/flasher:v1", "manifest.yaml")
    with pytest.raises(FileNotFoundError, match=r"has no 127.0.0.1:\d+/lab/nothing:latest"):
        store.open(f"{registry_server.host}/lab/nothing", "manifest.yaml")
    with pytest.raises(ConnectionError, match="cannot be reached"):  # not configured as insecure: TLS or nothing
        BundleStore(tmp_path).open(f"{registry_server.host}/lab/flasher:v1", "manifest.yaml")

    folder = small_bundle(tmp_path / "bundle")
    (folder / "data" / "Image").write_bytes(b"to be damaged" * 999)
    registry_server.push_bundle("lab/damaged:v1", folder)
    registry_server.damage(hashlib.sha256(b"to be damaged" * 999).hexdigest())
    with pytest.raises(ConfigurationError, match=r"blob sha256:\w+ arrived damaged"):
        store.open(f"{registry_server.host}/lab/damaged:v1", "manifest.yaml")
    assert not list((tmp_path / "bundles").iterdir())


def test_logins_in_their_order(closed_registry: OciRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OCI_USERNAME", "OCI_PASSWORD", "REGISTRY_AUTH_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    closed_registry.push_bundle("lab/flasher:v1", small_bundle(tmp_path / "bundle"))
    host, right, wrong = closed_registry.host, ("lab", "s3cret-word"), ("lab", "wr0ng-word")
    name = f"{host}/lab/flasher:v1"

    def open_it(number: list[int], **login: str) -> str:
        number[0] += 1
        return (
            BundleStore(tmp_path / f"cache{number[0]}", insecure_registries=[host], home=name, **login)
            .open(name, "manifest.yaml")
            .digest
        )

    count = [0]
    with pytest.raises(PermissionError, match=f"registry {host} refuses") as error:
        open_it(count)
    auth_file(tmp_path / "home/.docker/config.json", {host: right})
    assert open_it(count)
    auth_file(tmp_path / "home/.config/containers/auth.json", {host: wrong})
    with pytest.raises(PermissionError) as error:
        open_it(count)
    auth_file(tmp_path / "run/containers/auth.json", {f"{host}/lab": right, host: wrong})
    assert open_it(count), "the longest prefix wins"
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(auth_file(tmp_path / "auth.json", {host: wrong})))
    with pytest.raises(PermissionError, match="refuses") as error:
        open_it(count)
    assert "wr0ng" not in str(error.value)
    monkeypatch.setenv("OCI_USERNAME", right[0])
    with pytest.raises(ValueError, match="OCI_USERNAME and OCI_PASSWORD: give both or neither"):
        open_it(count)
    monkeypatch.setenv("OCI_PASSWORD", right[1])
    assert open_it(count)
    with pytest.raises(PermissionError):
        open_it(count, username=wrong[0], password=wrong[1])
    reference = Reference.parse(name)
    found = find_credentials(reference)
    assert found is not None and right[1] not in repr(found)
    (tmp_path / "auth.json").write_text("{")
    with pytest.raises(ValueError, match=r"registry logins .*auth.json: no JSON"):
        find_credentials(reference, env={"REGISTRY_AUTH_FILE": str(tmp_path / "auth.json")})


def test_names_of_bundles() -> None:
    for good in ("/a/b", "./b", "file:///a%20b", "quay.io/team/x:v1", f"oci://h:5000/x@sha256:{'0' * 64}", "busybox"):
        check_bundle_name(good)
    for bad in ("oci://", "quay.io/UPPER/x", "file://elsewhere/x", "quay.io/x@sha256:12", "https://quay.io/x"):
        with pytest.raises(ValueError, match=r"is no OCI reference|names another host"):
            check_bundle_name(bad)
    assert str(Reference.parse("busybox")).endswith("/busybox:latest")
