# SPDX-License-Identifier: Apache-2.0
"""A flash by a small system in the board's RAM."""

from __future__ import annotations

import asyncio
import base64
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter.driver import call_cancelled
from jumpstarter.driver.calls import call_to_end
from jumpstarter_driver_flashers.images import StoredImage
from jumpstarter_driver_flashers.job import Outcome
from jumpstarter_driver_flashers.linux_stage import LinuxStage, Source
from jumpstarter_driver_flashers.run_base import RunBase
from jumpstarter_driver_flashers.shell import ShellError, ShellLink
from jumpstarter_driver_flashers.uboot_stage import UbootStage
from jumpstarter_driver_pyserial.hub import ConsoleHub, Writer
from jumpstarter_driver_storage.errors import JobCancelled

__all__ = ["LinuxRun"]


@dataclass
class LinuxRun(RunBase):
    """Boots the flasher system and has it fetch, write and read back."""

    _stage: LinuxStage = field(init=False)

    async def _by_linux(self, uboot: UbootStage, hub: ConsoleHub, writer: Writer) -> Outcome:
        driver, job = self.driver, self.job
        image = await self._meanwhile(self._boot_linux(uboot, hub, writer))
        stage = self._stage
        device = await stage.resolve(job.device)
        timeout = driver.flash_timeout
        if job.record is not None:
            found = await stage.digest(device, job.record.size, timeout)
            same = found == job.record.sha256
            return Outcome(job.record.size, found, 0, True, same)
        size, sha256 = (image.size, image.sha256) if image is not None else (job.direct_size, job.direct_sha256)
        await stage.check_room(device, size, job.target)
        if image is not None:
            source = await self._offer(stage, image)
        else:
            source = await self._direct(stage)
        self._begin()
        if job.method == "fls":
            await self._write_by_fls(stage, source, device, timeout)
        else:
            await stage.write(source, device, size, timeout)
        self.written = size
        if job.verify:
            found = await stage.digest(device, size, timeout)
            if found != sha256:
                if image is not None:
                    self._distrust(image)
                raise ShellError(
                    f"verification failed: {device} reads back with sha256 {found}, the image has {sha256}"
                )
        stored = (image.stored_size, image.stored_sha256) if image is not None else (size, sha256)
        return Outcome(size, sha256, size, job.verify, source_size=stored[0], source_sha256=stored[1])

    async def _boot_linux(self, uboot: UbootStage, hub: ConsoleHub, writer: Writer) -> None:
        driver = self.driver
        bundle = await asyncio.to_thread(driver.bundle)
        spec = bundle.manifest.spec
        files: list[tuple[str, Path, str]] = [
            ("spec.kernel.file", bundle.file(spec.kernel.file, "spec.kernel.file"), spec.kernel.address)
        ]
        variant = bundle.manifest.variant(driver.dtb_variant())
        if variant is not None and variant.file is not None and spec.dtb is not None:
            files.append(("spec.dtb", bundle.file(variant.file, "spec.dtb.variants"), spec.dtb.address))
        if spec.initram is not None:  # last: boot commands use ${filesize} of it
            path = bundle.file(spec.initram.file, "spec.initram.file")
            files.append(("spec.initram.file", path, spec.initram.address))
        server, port = await self._tftp_address()
        await uboot.network(server, port, driver.tftp_windowsize, driver.network_timeout)
        environment = {
            "dhcp_addr": await uboot.getenv("ipaddr") or "", "gw_addr": await uboot.getenv("gatewayip") or ""
        }  # fmt: skip
        for _, path, address in files:
            name = await self._place(driver.tftp_root(), path)
            await uboot.load(address, name, path.stat().st_size, driver.transfer_timeout)
        await uboot.boot(bundle.manifest.bootcmd(driver.dtb_variant()), driver.transfer_timeout)
        shell = ShellLink(hub, writer, since=hub.head)
        self.say("waiting for the flasher system", 0, None)
        await shell.login(spec.login, driver.boot_timeout)
        self._stage = LinuxStage(shell, self.say, stall=driver.stall_timeout, appear=round(driver.device_timeout))
        await self._stage.prepare(environment, spec.preflash_commands)
        await self._stage.network()

    async def _offer(self, stage: LinuxStage, image: StoredImage) -> Source:
        """The image on the exporter's HTTP server, in a form that the board can unpack."""
        folder = f"jl-{secrets.token_hex(12)}"
        if image.compression is not None and await stage.unpacker(image.compression) is None:
            name = await call_to_end(self._unpacked, folder, image)
            return await self._served(stage, name, None)
        name = await self._link(self.driver.http_root(), image.path, f"{folder}/image")
        return await self._served(stage, name, image.compression)

    async def _served(self, stage: LinuxStage, name: str, compression: str | None) -> Source:
        """A file of the exporter's HTTP server, with the login that this may want. What arrives is compared with its
        digest, so that a certificate nobody can check does no harm."""
        url = await self.driver.http_url(name)
        login = await self.driver.ask("http", "get_credentials")
        if login is None:
            return Source(url, compression, insecure=url.startswith("https:"))
        pair = base64.b64encode(f"{login['username']}:{login['password']}".encode()).decode()
        await stage.shell.secret("JLHTTP", f"Authorization: Basic {pair}")
        return Source(url, compression, ("JLHTTP",), url.startswith("https:"))

    async def _direct(self, stage: LinuxStage) -> Source:
        wish = self.job.wish
        assert wish.url is not None
        names = []
        for number, (name, value) in enumerate(wish.headers.items()):
            variable = f"JLH{number}"
            await stage.shell.secret(variable, f"{name}: {value}")
            names.append(variable)
        cacert = None
        pem = wish.cacert or await asyncio.to_thread(self.driver.cacert_text)
        if pem and not wish.insecure_tls and wish.url.startswith("https:"):
            path = self.driver.http_root() / f"jl-{secrets.token_hex(12)}" / "cacert.crt"
            await call_to_end(self._write_text, path, pem)
            cacert = "/tmp/cacert.crt"
            await stage.fetch_file(await self._served(stage, f"{path.parent.name}/{path.name}", None), cacert)
        return Source(wish.url, None, tuple(names), wish.insecure_tls, cacert)

    async def _write_by_fls(self, stage: LinuxStage, source: Source, device: str, timeout: float) -> None:
        program, sha256 = self.driver.fls()
        name = await self._link(self.driver.http_root(), program, f"jl-{secrets.token_hex(12)}/fls", copy=True)
        if source.headers:
            raise ConfigurationError("method fls: the image needs a login, which fls cannot be given; use method shell")
        await stage.write_by_fls(
            await self._served(stage, name, None), str(program), sha256, source.url, device, timeout
        )

    def _unpacked(self, folder: str, image: StoredImage) -> str:
        path = self.driver.http_root() / folder / "image"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._placed.append(path)
        with open(path, "xb") as file:
            for chunk in image.chunks():
                if call_cancelled():
                    raise JobCancelled
                file.write(chunk)
        return f"{folder}/image"

    def _distrust(self, image: StoredImage) -> None:
        """The exporter's copy may be what is wrong: the next flash gets the image anew."""
        image.path.with_suffix(".json").unlink(missing_ok=True)
