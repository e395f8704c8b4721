# SPDX-License-Identifier: Apache-2.0
"""Client of flashers that boot a board into a small system in its RAM."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from jumpstarter.client.decorators import driver_click_group
from jumpstarter.client.flasher import FlasherClient, _Bar, _what, node_of
from jumpstarter.common.exceptions import ArgumentError
from jumpstarter_driver_composite.client import CompositeClient
from jumpstarter_driver_flashers.manifest import FlasherBundleManifest
from jumpstarter_driver_flashers.wish import METHODS, Wish, check_bearer, check_headers

if TYPE_CHECKING:
    from pexpect.fdpexpect import fdspawn

    from jumpstarter.client.imaging import FlashResult, ProgressCallback

__all__ = ["BaseFlasherClient"]

PathBuf = str | PathLike[str]

_BOOT_SECONDS = 180
#: A line that has only just begun, as U-Boot's and a shell's prompts do; not the hashes that tftpboot draws.
_PROMPT = r"\n[^\r\n]*(?:=>|[#$]) (?:\x1b\[6n)?$"


@dataclass(kw_only=True)
class BaseFlasherClient(FlasherClient, CompositeClient):
    """Flashes a board through its bootloader; children ``serial``, ``power``, ``uboot``, ``http``, ``tftp``.

    The exporter does all of it: this client sends the image and hears how it goes.
    """

    def flash(
        self,
        path: PathBuf | Mapping[str, PathBuf],
        *,
        partition: str | None = None,
        target: str | None = None,
        block_device: str | None = None,
        operator: Any = None,
        compression: str | None = None,
        os_image_checksum: str | None = None,
        force_exporter_http: bool = True,
        force_flash_bundle: str | None = None,
        cacert_file: PathBuf | None = None,
        insecure_tls: bool = False,
        headers: Mapping[str, str] | None = None,
        bearer_token: str | None = None,
        retries: int | None = None,
        method: str | None = None,
        fls_version: str | None = None,
        fls_binary_url: str | None = None,
        oci_username: str | None = None,
        oci_password: str | None = None,
        power_off: bool | None = None,
        size: int | None = None,
        verify: bool = True,
        force: bool = False,
        check: bool = False,
        checksum: str | None = None,
        progress: ProgressCallback | None = None,
    ) -> FlashResult | dict[str, FlashResult]:
        """Write an image (path, http(s) URL or ``oci://`` reference) to the board's disk and compare what it holds.

        ``partition`` (or ``target``): the bundle's name of the disk; ``block_device``: its path on the board instead.
        A mapping of partition labels (or targets) to images writes several in turn. ``os_image_checksum``: sha256 of
        the file. ``force_flash_bundle``: another bundle, for this flash. ``retries``: attempts. ``method``: shell,
        uboot or fls; the exporter's default otherwise. ``power_off``: whether the board is off afterwards.

        ``force_exporter_http=False`` has the board fetch an uncompressed image by URL itself, with ``headers``,
        ``bearer_token``, ``cacert_file`` and ``insecure_tls``; ``size`` and ``os_image_checksum`` are needed then.

        Raises ImagingError, ArgumentError.
        """
        if operator is not None:
            raise ArgumentError("flash: operator is not supported here; give a path, an http(s) URL or oci://...")
        if fls_version is not None or fls_binary_url is not None:
            raise ArgumentError(
                "flash: fls_version and fls_binary_url are not supported: the exporter's configuration pins the "
                "program (fls_binary, fls_sha256)"
            )
        names = [name for name in (partition, target, block_device) if name is not None]
        if len(names) > 1 or (names and isinstance(path, Mapping)):
            raise ArgumentError("flash: name the target once, by partition, target, block_device or a mapping")
        sent = check_headers({**(headers or {})})
        if bearer_token is not None:
            sent = check_headers({**sent, "Authorization": f"Bearer {check_bearer(bearer_token)}"})
        options: dict[str, Any] = {"method": method, "retries": retries, "power_off": power_off}
        direct = not force_exporter_http and isinstance(path, str) and path.startswith(("http://", "https://"))
        if direct:
            options |= {"url": path, "headers": sent, "insecure_tls": insecure_tls}
            if cacert_file is not None:
                options["cacert"] = Path(cacert_file).read_text()
        elif sent:
            raise ArgumentError("flash: headers and bearer_token are for force_exporter_http=False with a URL")
        Wish.parse(options)
        extra = {"flasher": options, "username": oci_username, "password": oci_password}
        known = {name: value for name, value in extra.items() if value is not None}
        common: dict[str, Any] = {
            "verify": verify, "force": force, "check": check, "checksum": checksum or os_image_checksum,
            "compression": compression, "progress": progress,
        }  # fmt: skip
        with self._bundle(force_flash_bundle):
            if isinstance(path, Mapping):
                labels = {one.name for one in self.targets()}
                return {
                    name: self._write(image, name if name in labels else f"partlabel:{name}", known, common)
                    for name, image in path.items()
                }
            if direct:
                return self._write_direct(names[0] if names else None, known, common, size)
            return self._write(path, names[0] if names else None, known, common)

    def dump(self, path: PathBuf, **_: Any) -> Any:
        """Not offered."""
        raise NotImplementedError("dump: a network flasher only writes")

    @property
    def manifest(self) -> FlasherBundleManifest:
        """The bundle's manifest."""
        return FlasherBundleManifest.parse(str(self.call("get_flasher_manifest_yaml")), "of the exporter")

    def set_console_debug(self, debug: bool) -> None:
        """Accepted for compatibility; the console's log is on the child ``serial``."""

    @contextmanager
    def bootloader_shell(self) -> Iterator[Any]:
        """The board at U-Boot's prompt, with the bundle's files on the running TFTP server; gives the client of its
        console (``with serial.pexpect() as console:``)."""
        with self._services():
            with self.uboot.reboot_to_console():
                pass
            yield self.serial

    @contextmanager
    def busybox_shell(self) -> Iterator[Any]:
        """The board in the shell of the flasher system; gives the client of its console. The board stays on."""
        with self._services():
            self._boot_flasher()
            yield self.serial

    def _boot_flasher(self) -> None:
        import pexpect

        spec = self.manifest.spec
        with self.uboot.reboot_to_console():
            uboot = self.uboot
            uboot.setup_dhcp()
            uboot.set_env("serverip", str(self.tftp.get_host()))
            if int(self.tftp.get_port()) != 69:
                uboot.set_env("tftpdstp", str(int(self.tftp.get_port())))
            for part in ("kernel", "dtb", "initram"):
                name, address = self.call(f"get_{part}_filename"), self.call(f"get_{part}_address")
                if name:
                    uboot.run_command_checked(f"tftpboot {address} {name}", timeout=300)
            with self.serial.pexpect() as console:
                console.sendline(str(self.call("get_bootcmd")))
                deadline = _BOOT_SECONDS
                waiting = f"login prompt {spec.login.login_prompt!r}"
                try:
                    if spec.login.username is not None:
                        console.expect_exact(spec.login.login_prompt.strip(), timeout=deadline)
                        console.sendline(spec.login.username)
                        if spec.login.password is not None:
                            waiting = "password prompt"
                            console.expect_exact("ssword:", timeout=30)
                            console.sendline(spec.login.password)
                    waiting = f"shell (prompt {spec.login.prompt!r})"
                    console.expect(re.escape(spec.login.prompt.strip()) + r" ?(?:\x1b\[6n)?$", timeout=deadline)
                except pexpect.TIMEOUT:
                    raise TimeoutError(f"no {waiting} of the flasher system within {deadline} s") from None
                except pexpect.EOF:
                    raise ConnectionError(f"the console went away before the {waiting} of the flasher system") from None

    def use_dtb(self, path: PathBuf, operator: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError("use_dtb: device trees come from the bundle; see use_dtb_variant")

    def use_kernel(self, path: PathBuf, operator: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError("use_kernel: the kernel comes from the bundle; use force_flash_bundle")

    def use_initram(self, path: PathBuf, operator: Any = None) -> None:
        """Not offered."""
        raise NotImplementedError("use_initram: the RAM disk comes from the bundle; use force_flash_bundle")

    def use_dtb_variant(self, variant: str) -> None:
        """Use another of the bundle's device trees for this session."""
        self.call("use_dtb_variant", variant)

    # --- how ------------------------------------------------------------------------------------------------------

    def _write(
        self, path: PathBuf, target: str | None, extra: Mapping[str, Any], common: Mapping[str, Any]
    ) -> FlashResult:
        from jumpstarter.client import imaging

        if not self.has_method("flash_image"):
            raise NotImplementedError(
                "flash: this exporter (Jumpstarter 0.9) leaves the work to its client; use a client of its version"
            )
        values = {**common, "compression": common["compression"] or "auto"}
        if not str(fspath(path)).lower().startswith("oci://"):
            extra = {"flasher": extra["flasher"]}
        node = node_of(self)
        return self.portal.call(lambda: imaging.flash(node, path, target=target, extra=extra, **values))

    def _write_direct(
        self, target: str | None, extra: Mapping[str, Any], common: Mapping[str, Any], size: int | None
    ) -> FlashResult:
        """The board fetches the image: nothing is sent."""
        from jumpstarter.client.imaging import FlashResult, ImagingError, Progress

        checksum = str(common["checksum"] or "").removeprefix("sha256:").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", checksum) or size is None:
            raise ArgumentError(
                "flash: a board that fetches the image itself needs size and os_image_checksum (sha256)"
            )
        options = {"size": size, "sha256": checksum, "verify": common["verify"], "flasher": extra["flasher"]}
        for event in self.streamingcall("flash_image", None, target, options):
            if event["event"] == "progress" and common["progress"] is not None:
                total = event["total"]
                common["progress"](
                    Progress(
                        phase=event["phase"], done=int(event["done"]), rate=0.0, eta=None,
                        total=int(total) if total is not None else None,
                    )
                )  # fmt: skip
            elif event["event"] == "error":
                raise ImagingError(
                    event["message"], code=event["code"], state=event["state"], written=int(event["written"])
                )
            elif event["event"] == "result":
                return FlashResult(
                    changed=True, target=event["target"], size=int(event["size"]), sha256=event["sha256"],
                    written_bytes=int(event["written"]), verified=bool(event["verified"]), seconds=event["seconds"],
                )  # fmt: skip
        raise RuntimeError("the exporter ended the flash without a result")

    @contextmanager
    def _bundle(self, forced: str | None) -> Iterator[None]:
        """Use another bundle for a while."""
        if forced is None:
            yield
            return
        self.call("setup_flasher_bundle", forced)
        try:
            yield
        finally:
            self.call("setup_flasher_bundle")

    @contextmanager
    def _services(self) -> Iterator[None]:
        self.call("setup_flasher_bundle")
        self.tftp.start()
        self.http.start()
        try:
            yield
        finally:
            self.http.stop()
            self.tftp.stop()

    def cli(self) -> click.Group:
        """The children's commands, and ``flash``, ``bootloader-shell``, ``busybox-shell``."""
        children = CompositeClient.cli(self)

        @driver_click_group(self)
        def base() -> None:
            """Flash the board through its bootloader"""

        for name, command in children.commands.items():
            base.add_command(command, name)
        _add_commands(base, self)
        return base


def _add_commands(group: click.Group, client: BaseFlasherClient) -> None:
    @group.command("flash")
    @click.argument("file", required=False)
    @click.option(
        "--target", "-t", "targets", multiple=True, metavar="[LABEL:]FILE|TARGET",
        help="LABEL:FILE (repeatable), or the TARGET for FILE",
    )  # fmt: skip
    @click.option("--block-device", help="the disk's path on the board, instead of a target")
    @click.option("--os-image-checksum", "--checksum", "checksum", help="sha256 that FILE must have")
    @click.option(
        "--os-image-checksum-file", type=click.Path(exists=True, dir_okay=False), help="file that begins with it"
    )
    @click.option("--compression", type=click.Choice(["gzip", "xz", "bz2", "zstd"]), help="found out by default")
    @click.option(
        "--force-exporter-http/--direct", default=True, help="let the board fetch a URL from there with --direct"
    )
    @click.option("--size", type=int, help="bytes of the image, with --direct")
    @click.option("--force-flash-bundle", help="use another flasher bundle")
    @click.option("--cacert", type=click.Path(exists=True, dir_okay=False), help="CA certificates, with --direct")
    @click.option("--insecure-tls", "-k", is_flag=True, help="check no certificate, with --direct")
    @click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="with --direct")
    @click.option("--bearer", help="bearer token, with --direct", envvar="JUMPSTARTER_FLASH_BEARER")
    @click.option("--retries", type=int, help="attempts")
    @click.option("--method", type=click.Choice(METHODS), help="the exporter's default otherwise")
    @click.option("--power-off/--no-power-off", default=None, help="leave the board off, or as it is")
    @click.option("--verify/--no-verify", default=True, help="read back and compare")
    @click.option("--force", is_flag=True, help="write even what the board already holds")
    def flash(
        file: str | None, targets: tuple[str, ...], block_device: str | None, checksum: str | None,
        os_image_checksum_file: str | None, compression: str | None, force_exporter_http: bool, size: int | None,
        force_flash_bundle: str | None, cacert: str | None, insecure_tls: bool, headers: tuple[str, ...],
        bearer: str | None, retries: int | None, method: str | None, power_off: bool | None, verify: bool, force: bool,
    ) -> None:  # fmt: skip
        """Write image FILE (a path, a URL or oci://...) to the board's disk"""
        if os_image_checksum_file is not None:
            words = Path(os_image_checksum_file).read_text().split()
            checksum = words[0] if words else ""
        pairs = dict(_header(text) for text in headers)
        what = [(None, file)] if block_device is not None and file is not None and not targets else _what(file, targets)
        known = {one.name for one in client.targets()} if file is None else set()
        for name, image in what:
            target = f"partlabel:{name}" if name is not None and file is None and name not in known else name
            result = client.flash(
                image, target=target, block_device=block_device, os_image_checksum=checksum, compression=compression,
                force_exporter_http=force_exporter_http, size=size, force_flash_bundle=force_flash_bundle,
                cacert_file=cacert, insecure_tls=insecure_tls, headers=pairs, bearer_token=bearer, retries=retries,
                method=method, power_off=power_off, verify=verify, force=force, progress=_Bar(),
            )  # fmt: skip
            assert not isinstance(result, dict)
            if not result.changed:
                click.echo(f"{result.target}: nothing to do, {result.reason}")
                continue
            click.echo(
                f"{result.target}: {result.written_bytes} bytes written, sha256 {result.sha256}"
                f"{', verified' if result.verified else ''} in {result.seconds:.1f} s"
            )

    @group.command("bootloader-shell")
    def bootloader_shell() -> None:
        """Boot to U-Boot's prompt and use it"""
        with client.bootloader_shell() as serial, serial.pexpect() as console:
            _use(console)

    @group.command("busybox-shell")
    def busybox_shell() -> None:
        """Boot into the flasher system and use its shell"""
        with client.busybox_shell() as serial, serial.pexpect() as console:
            _use(console)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.UsageError("--header: give NAME:VALUE")
    return name.strip(), value.strip()


def _use(console: fdspawn[bytes]) -> None:
    """Terminal and console together until Ctrl-] (or the end of what is piped in)."""
    if sys.stdin.isatty():
        click.echo("Ctrl-] leaves the console", err=True)
        console.sendline("")
        _interact(console)
        return
    import secrets

    import pexpect

    # The prompts that answered the keys which stopped the boot may still be on their way: they answer no line of ours.
    mark = secrets.token_hex(4)
    console.sendline(f"echo {mark}'s'")
    try:
        console.expect_exact(f"{mark}s".encode(), timeout=60)
        console.expect(_PROMPT, timeout=60)
    except (pexpect.TIMEOUT, pexpect.EOF):
        raise click.ClickException("the board does not answer at its prompt") from None
    for line in sys.stdin:
        console.sendline(line.rstrip("\n"))
        try:
            console.expect(_PROMPT, timeout=60)
        except (pexpect.TIMEOUT, pexpect.EOF) as error:
            why = "no prompt within 60 s" if isinstance(error, pexpect.TIMEOUT) else "the console went away"
            raise click.ClickException(f"{why} after {line.strip()[:60]!r}") from None
        sys.stdout.buffer.write((console.before or b"") + (console.after if isinstance(console.after, bytes) else b""))
        sys.stdout.buffer.flush()


def _interact(console: fdspawn[bytes]) -> None:
    import os
    import select
    import termios
    import tty

    stdin = sys.stdin.fileno()
    saved = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    try:
        while True:
            ready, _, _ = select.select([stdin, console.fileno()], [], [])
            if stdin in ready:
                typed = os.read(stdin, 1024)
                if not typed or b"\x1d" in typed:
                    return
                console.send(typed)
            if console.fileno() in ready:
                data = os.read(console.fileno(), 65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)
