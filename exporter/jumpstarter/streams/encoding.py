# SPDX-License-Identifier: Apache-2.0
"""Compressed byte streams: gzip, xz, bz2 and zstd, with real checks of where the data ends.

A compressed stream is accepted only when its last member is complete, and when nothing but padding follows it. Several
members one after the other (what ``cat a.gz b.gz`` and parallel compressors produce) are one stream.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
from anyio.abc import AnyByteStream, ObjectStream

from jumpstarter.common.storage import Buffer

OUTPUT_CHUNK: Final = 1 << 20
"""Plain bytes handed on at a time."""

_ZSTD_SLICE: Final = 8 << 10  # zstandard's push API cannot bound its output: 8 KiB of input gives 256 MiB at the worst


class Compression(StrEnum):
    """How a file is compressed. Values are what travels in ``x_jmp_content_encoding``."""

    GZIP = "gzip"
    XZ = "xz"
    BZ2 = "bz2"
    ZSTD = "zstd"


SIGNATURE_SIZE: Final = 8
"""Bytes from the start of a file that `detect_compression_from_signature` wants."""

_SIGNATURES: Final[Mapping[bytes, Compression]] = {
    b"\x1f\x8b\x08": Compression.GZIP,
    b"\xfd7zXZ\x00": Compression.XZ,
    b"BZh": Compression.BZ2,
    b"\x28\xb5\x2f\xfd": Compression.ZSTD,
}


class CompressedDataError(ValueError):
    """Compressed input is truncated, corrupt, or followed by something else."""


def detect_compression_from_signature(data: bytes) -> Compression | None:
    """The compression the first bytes of a file show, or None."""
    for signature, compression in _SIGNATURES.items():
        if data.startswith(signature) and (compression is not Compression.BZ2 or _is_bz2(data)):
            return compression
    return None


def _is_bz2(head: bytes) -> bool:
    """bz2's own signature is short: a level and the start of a block, or of the end, must follow."""
    return len(head) < SIGNATURE_SIZE or (head[3] in b"123456789" and head[4:8] in (b"1AY&", b"\x17rE8"))


class _Member(Protocol):
    """One gzip member, xz stream, bz2 stream or zstd frame being decoded."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decode(self, data: Buffer) -> Iterator[bytes]: ...


class _GzipMember:
    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decode(self, data: Buffer) -> Iterator[bytes]:
        while not self._decoder.eof:
            out = self._decoder.decompress(data, OUTPUT_CHUNK)
            if out:
                yield out
            data = self._decoder.unconsumed_tail
            if not data and len(out) < OUTPUT_CHUNK:
                return


class _LibraryMember:
    """xz and bz2: the standard library's decoders share one interface."""

    def __init__(self, decoder: lzma.LZMADecompressor | bz2.BZ2Decompressor) -> None:
        self._decoder = decoder

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decode(self, data: Buffer) -> Iterator[bytes]:
        while not self._decoder.eof:
            out = self._decoder.decompress(data, OUTPUT_CHUNK)
            if out:
                yield out
            data = b""
            if self._decoder.needs_input:
                return


class _ZstdMember:
    def __init__(self) -> None:
        self._decoder = _zstandard().ZstdDecompressor().decompressobj()
        self._rest = b""

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decoder.unused_data) + self._rest

    def decode(self, data: Buffer) -> Iterator[bytes]:
        view = memoryview(data)
        for start in range(0, len(view), _ZSTD_SLICE):
            out = self._decoder.decompress(view[start : start + _ZSTD_SLICE])
            if out:
                yield out
            if self._decoder.eof:
                self._rest = bytes(view[start + _ZSTD_SLICE :])
                return


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise RuntimeError("zstd data needs the zstandard package: pip install 'jumpstarter-lab[storage]'") from error
    return zstandard


def _zstd_errors() -> tuple[type[Exception], ...]:
    return (_zstandard().ZstdError,)


_FACTORIES: Final[Mapping[Compression, Callable[[], _Member]]] = {
    Compression.GZIP: _GzipMember,
    Compression.XZ: lambda: _LibraryMember(lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    Compression.BZ2: lambda: _LibraryMember(bz2.BZ2Decompressor()),
    Compression.ZSTD: _ZstdMember,
}


class Decompressor:
    """Decodes a compressed stream chunk by chunk; memory stays bounded whatever the ratio.

    Call `feed` for every chunk and `finish` at the end. Both raise CompressedDataError that says what is wrong and at
    which compressed byte.
    """

    def __init__(self, compression: Compression | str) -> None:
        self.compression = Compression(compression)
        self._new = _FACTORIES[self.compression]
        self._errors: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, OSError, EOFError)
        if self.compression is Compression.ZSTD:
            self._errors += _zstd_errors()
        self._member: _Member | None = None
        self._members = 0
        self._padding = 0
        self._taken = 0
        self._head = b""

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Plain bytes that ``data`` completes, in chunks of about 1 MiB; consume all of it before the next call."""
        self._taken += len(data)
        rest: Buffer = data
        while len(rest):
            if self._member is None:
                rest = self._between_members(bytes(rest))
                if not rest:
                    return
                self._member = self._new()
            try:
                yield from self._member.decode(rest)
            except self._errors as error:
                raise CompressedDataError(
                    f"{self.compression} data is corrupt near compressed byte {self._taken}: {error}"
                ) from error
            if not self._member.eof:
                return
            rest = self._member.unused_data
            self._member = None
            self._members += 1
            self._padding = 0

    def finish(self) -> None:
        """End of input: raises unless the last member was complete."""
        if self._member is not None or self._head:
            if self._members and self._head:
                raise self._garbage(len(self._head))
            raise CompressedDataError(
                f"{self.compression} data is truncated: it ends after {self._taken} compressed bytes, "
                "before its end marker"
            )
        if not self._members:
            raise CompressedDataError(f"{self.compression} data is empty")
        if self.compression is Compression.XZ and self._padding % 4:
            raise self._garbage(self._padding)

    def _between_members(self, rest: bytes) -> bytes:
        """What starts the next member in ``rest`` once padding is taken off; raises when that is no member."""
        rest, self._head = self._head + rest, b""
        if self._members and self.compression in (Compression.XZ, Compression.GZIP):
            stripped = rest.lstrip(b"\0")
            self._padding += len(rest) - len(stripped)
            rest = stripped
        if not rest or not self._members:
            return rest
        longest = 6
        if len(rest) < longest and any(s.startswith(rest) for s in self._starts()):
            self._head = rest  # too short to tell: wait for more
            return b""
        if not any(rest.startswith(s) for s in self._starts()):
            raise self._garbage(len(rest))
        if self.compression is Compression.XZ and self._padding % 4:
            raise self._garbage(len(rest) + self._padding)
        return rest

    def _starts(self) -> list[bytes]:
        starts = [s for s, c in _SIGNATURES.items() if c is self.compression]
        if self.compression is Compression.ZSTD:  # skippable frames
            starts += [bytes((0x50 + n, 0x2A, 0x4D, 0x18)) for n in range(16)]
        return starts

    def _garbage(self, size: int) -> CompressedDataError:
        return CompressedDataError(
            f"something that is no {self.compression} data follows its end, near compressed byte {self._taken - size}"
        )


def decompress(chunks: Iterator[Buffer], compression: Compression | str) -> Iterator[bytes]:
    """Plain bytes of a whole compressed stream; raises CompressedDataError unless it is complete."""
    decoder = Decompressor(compression)
    for chunk in chunks:
        yield from decoder.feed(chunk)
    decoder.finish()


class _Encoder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def _encoder(compression: Compression) -> _Encoder:
    if compression is Compression.GZIP:
        return zlib.compressobj(wbits=31)
    if compression is Compression.XZ:
        return lzma.LZMACompressor(lzma.FORMAT_XZ)
    if compression is Compression.BZ2:
        return bz2.BZ2Compressor()
    encoder: _Encoder = _zstandard().ZstdCompressor(write_checksum=True).compressobj()
    return encoder


@dataclass(kw_only=True, eq=False)
class DecompressedStream(ObjectStream[bytes]):
    """A byte stream whose received bytes are decoded in a worker thread; sending is not possible."""

    stream: AnyByteStream
    compression: Compression

    def __post_init__(self) -> None:
        self._decoder = Decompressor(self.compression)
        self._ready: Iterator[bytes] = iter(())
        self._ended = False

    async def receive(self, max_bytes: int = OUTPUT_CHUNK) -> bytes:
        """The next plain bytes; EndOfStream only after a complete compressed stream, else CompressedDataError."""
        while True:
            if (out := await anyio.to_thread.run_sync(next, self._ready, None)) is not None:
                return out
            if self._ended:
                raise anyio.EndOfStream
            try:
                data = await self.stream.receive()
            except anyio.EndOfStream:
                self._ended = True
                await anyio.to_thread.run_sync(self._decoder.finish)
                raise
            self._ready = self._decoder.feed(data)

    async def send(self, item: bytes) -> None:
        """Refused: a stream that is decoded while reading has no way back."""
        raise NotImplementedError("a decompressed stream can only be read")

    async def send_eof(self) -> None:
        """Passed on to the stream below."""
        await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream below."""
        await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the stream below."""
        return self.stream.extra_attributes


@dataclass(kw_only=True, eq=False)
class CompressedStream(ObjectStream[bytes]):
    """A byte stream whose sent bytes are encoded in a worker thread; what is received passes through unchanged."""

    stream: AnyByteStream
    compression: Compression

    def __post_init__(self) -> None:
        self._encoder = _encoder(self.compression)
        self._ended = False

    async def receive(self, max_bytes: int = OUTPUT_CHUNK) -> bytes:
        """Bytes of the stream below, as they are."""
        return await self.stream.receive()

    async def send(self, item: bytes) -> None:
        """Encode and pass on what the encoder gives up."""
        if out := await anyio.to_thread.run_sync(self._encoder.compress, item):
            await self.stream.send(out)

    async def send_eof(self) -> None:
        """Write the end of the compressed data, then end the stream below."""
        await self._end()
        await self.stream.send_eof()

    async def aclose(self) -> None:
        """Close the stream below. Without `send_eof` before, the compressed data stays without its end, so that a
        transfer that failed half way cannot be taken for a whole one."""
        await self.stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the stream below."""
        return self.stream.extra_attributes

    async def _end(self) -> None:
        if not self._ended:
            self._ended = True
            if out := await anyio.to_thread.run_sync(self._encoder.flush):
                await self.stream.send(out)


def decompress_stream(stream: AnyByteStream, compression: Compression | str | None) -> AnyByteStream:
    """``stream`` with its received bytes decoded; unchanged when ``compression`` is None or empty."""
    if not compression:
        return stream
    return DecompressedStream(stream=stream, compression=Compression(compression))


def compress_stream(stream: AnyByteStream, compression: Compression | str | None) -> AnyByteStream:
    """``stream`` with its sent bytes encoded; unchanged when ``compression`` is None or empty."""
    if not compression:
        return stream
    return CompressedStream(stream=stream, compression=Compression(compression))


class ChunkDecoder:
    """Decoding for callers that want one ``bytes`` per chunk: see `Decompressor` for errors."""

    def __init__(self, compression: Compression | str) -> None:
        self._decoder = Decompressor(compression)

    def decompress(self, data: Buffer) -> bytes:
        """The plain bytes that ``data`` completes."""
        return b"".join(self._decoder.feed(data))

    def finish(self) -> bytes:
        """End of input: raises CompressedDataError unless the data is complete; nothing is left to return."""
        self._decoder.finish()
        return b""


class ChunkEncoder:
    """Encoding chunk by chunk; `finish` returns the end of the compressed data and must be the last call."""

    def __init__(self, compression: Compression | str) -> None:
        self._encoder = _encoder(Compression(compression))

    def compress(self, data: bytes) -> bytes:
        """Compressed bytes, often none."""
        return self._encoder.compress(data)

    def finish(self) -> bytes:
        """What is left."""
        return self._encoder.flush()


def decompressor(compression: Compression | str) -> ChunkDecoder:
    """A decoder; ValueError for a compression nobody knows."""
    return ChunkDecoder(compression)


def compressor(compression: Compression | str) -> ChunkEncoder:
    """An encoder; ValueError for a compression nobody knows."""
    return ChunkEncoder(compression)
