# SPDX-License-Identifier: Apache-2.0
"""A flash by U-Boot alone."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from jumpstarter.common.exceptions import ConfigurationError
from jumpstarter_driver_flashers.job import Outcome, finish
from jumpstarter_driver_flashers.pieces import Ahead, Piece, cut
from jumpstarter_driver_flashers.run_base import RunBase
from jumpstarter_driver_flashers.uboot_stage import BlockDevice, UbootStage, refuse_if_larger
from jumpstarter_driver_storage.record import Record
from jumpstarter_driver_uboot.link import UbootError

__all__ = ["UbootRun"]

_AREA_GAP: Final = 1 << 20
_CRC: Final = 4


@dataclass
class UbootRun(RunBase):
    """Has U-Boot load, write and read back piece by piece."""

    _disk: BlockDevice = field(init=False)

    async def _by_uboot(self, uboot: UbootStage) -> Outcome:
        driver, job = self.driver, self.job
        image = await self._meanwhile(self._uboot_ready(uboot))
        device = self._disk
        base = driver.uboot_base() or await self._load_address(uboot)
        chunk = driver.chunk_bytes()
        areas = (base, base + chunk + _AREA_GAP, base + 2 * (chunk + _AREA_GAP))
        if job.record is not None:
            return await self._compare(uboot, device, areas[2], job.record)
        assert image is not None
        if device.block_size and chunk % device.block_size:
            raise ConfigurationError(f"uboot_chunk: is no multiple of the {device.block_size} byte blocks of {device}")
        refuse_if_larger(device, image.size, job.target)
        digests = b""
        done = 0
        pieces = Ahead(cut(image, chunk), driver.tftp_root(), f"jl-{secrets.token_hex(6)}")
        try:
            while (piece := await pieces.next()) is not None:
                self._begin()
                await self._write_piece(uboot, device, piece, areas, done)
                digests += piece.crc.to_bytes(_CRC, "big")
                done += piece.size
                self.written = done
                self.say("writing", done, image.size)
        finally:
            await finish(pieces.close())
        return Outcome(
            done, image.sha256, done, job.verify, True, digests, chunk, image.stored_size, image.stored_sha256
        )

    async def _uboot_ready(self, uboot: UbootStage) -> None:
        driver = self.driver
        for command in driver.uboot_commands:
            await uboot.run(command, 60)
        self._disk = await uboot.find(BlockDevice.parse(self.job.device))
        if self.job.record is None:
            server, port = await self._tftp_address()
            await uboot.network(server, port, driver.tftp_windowsize, driver.network_timeout)

    async def _write_piece(
        self, uboot: UbootStage, device: BlockDevice, piece: Piece, areas: tuple[int, int, int], offset: int
    ) -> None:
        timeout = self.driver.transfer_timeout
        load, data, back = areas
        padded = -(-piece.size // device.block_size) * device.block_size
        if piece.name is None:
            await uboot.fill(data, padded)
        else:
            if padded != piece.size or piece.packed:
                await uboot.fill(data + max(0, padded - device.block_size), device.block_size)
            if piece.packed:
                await uboot.load(hex(load), piece.name, piece.stored, timeout)
                await uboot.unpack(load, data, piece.size)
            else:
                await uboot.load(hex(data), piece.name, piece.stored, timeout)
            if (found := await uboot.crc32(data, piece.size)) != piece.crc:
                raise UbootError(f"{piece.name} arrived damaged in RAM (crc32 {found:08x}, not {piece.crc:08x})")
        await uboot.write(device, data, offset, padded, timeout)
        if self.job.verify:
            await uboot.read(device, back, offset, padded, timeout)
            if (found := await uboot.crc32(back, piece.size)) != piece.crc:
                raise UbootError(
                    f"verification failed: bytes {offset} to {offset + piece.size} of {device} read back with crc32 "
                    f"{found:08x}, not {piece.crc:08x}"
                )

    async def _compare(self, uboot: UbootStage, device: BlockDevice, back: int, record: Record) -> Outcome:
        digests, chunk = record.block_digests(), record.block_size
        offset = 0
        for start in range(0, len(digests), _CRC):
            size = min(chunk, record.size - offset)
            padded = -(-size // device.block_size) * device.block_size
            await uboot.read(device, back, offset, padded, self.driver.transfer_timeout)
            same = await uboot.crc32(back, size) == int.from_bytes(digests[start : start + _CRC], "big")
            if not same:
                return Outcome(record.size, "", 0, True, False)
            offset += size
            self.say("comparing", offset, record.size)
        return Outcome(record.size, record.sha256, 0, True, True)

    async def _load_address(self, uboot: UbootStage) -> int:
        for name in ("kernel_addr_r", "loadaddr"):
            value = await uboot.getenv(name)
            with contextlib.suppress(ValueError):
                if value:
                    return int(value, 16)
        raise ConfigurationError(
            "uboot_address: is needed, U-Boot of this board knows neither kernel_addr_r nor loadaddr"
        )
