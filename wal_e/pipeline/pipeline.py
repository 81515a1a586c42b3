"""Bytes through a chain of codec processes, in both directions, with bounded memory.

The raw side is the wide side, so it never passes through this process's event loop: it is a
file that the codec reads or writes itself, or a producer or consumer in a native thread.
Only coded bytes are seen here. A stream has ended well only when every process of its chain
was reaped with status 0: a killed codec looks like a clean end of file.
"""

from __future__ import annotations

import io
import os

from wal_e.blobstore.base import SelfWriting
from wal_e.errors import CodecFailed, DamageError
from wal_e.pipeline.chain import Chain
from wal_e.pipeline.stage import CODECS, LZOP, Stage, gpg

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from wal_e.pipeline.process import Waits

CHUNK_BYTES = 256 * 1024
HEAD_BYTES = 16  # enough to recognise every codec and cipher
WAL_PIPE_BYTES = 256 * 1024
BACKUP_PIPE_BYTES = 1024 * 1024


class Pipeline:
    """The codec, and the cipher if there is one, of everything that this run stores.

    ``recipient`` is the gpg key to encrypt for, empty for none.
    """

    def __init__(self, waits: Waits, recipient: str = "", pipe_bytes: int = WAL_PIPE_BYTES) -> None:
        self._waits = waits
        self._pipe_bytes = pipe_bytes
        self._stages = (LZOP, gpg(recipient)) if recipient else (LZOP,)

    @property
    def suffix(self) -> str:
        """What a key of something encoded here ends with."""
        return LZOP.suffix

    def encode_file(self, raw: int) -> EncodedFile:
        """The coded content of an open file, from its current offset.

        Raises, when it is read: ToolMissing, CodecFailed, ConfigurationError (no such key), DiskFull.
        """
        return EncodedFile(self._waits, self._pipe_bytes, self._stages, raw)

    def encode(self, produce: Callable[[io.RawIOBase], None]) -> Iterator[bytes]:
        """Yield the coded form of what a producer writes, in a native thread, into a stream.

        Raises: what the producer raises; ToolMissing, CodecFailed, ConfigurationError.
        """
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            raw, sink = chain.pipe()
            coded = chain.start([(stage, stage.encode) for stage in self._stages], raw, chain.pipe_out())
            producer = chain.beside(produce, sink, "wb")
            while chunk := self._waits.read(coded, CHUNK_BYTES):
                yield chunk
            failure = producer.join()
            if failure is not None and not isinstance(failure, BrokenPipeError):
                raise failure
            chain.finish()
            if failure is not None:
                raise CodecFailed("a codec stopped reading too early")
        finally:
            chain.cancel()

    def decode_file(self, coded: Iterable[bytes], key: str, raw: int) -> None:
        """Decode a stored stream into an open file.

        Raises: DamageError naming the key; DiskFull; ToolMissing; what ``coded`` raises.
        """
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            chunks, stages = _recognised(coded, key)
            sink = chain.start_decoding(stages, raw)
            chain.feed(sink, chunks)
            chain.finish(key)
        finally:
            chain.cancel()

    def decode_stored_file(self, stored: int, key: str, raw: int) -> None:
        """Decode an open file from its beginning into another; the programs do all the reading and writing.

        Raises: DamageError naming the key; DiskFull; ToolMissing.
        """
        stages = _stages_of(os.pread(stored, HEAD_BYTES, 0), key)
        if not stages:
            return _copy(stored, raw)
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            chain.start(stages, stored, raw)
            return chain.finish(key)
        finally:
            chain.cancel()

    def decode(self, coded: Iterable[bytes], key: str, consume: Callable[[io.RawIOBase], None]) -> None:
        """Decode a stored stream; a consumer reads it, in a native thread, up to its end.

        Raises: DamageError naming the key; what the consumer or ``coded`` raises; ToolMissing.
        """
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            chunks, stages = _recognised(coded, key)
            raw, decoded = chain.pipe()
            sink = chain.start_decoding(stages, decoded)
            consumer = chain.beside(consume, raw, "rb")
            chain.feed(sink, chunks)
            failure = consumer.join()
            if failure is not None and not isinstance(failure, DamageError):
                raise failure
            chain.finish(key, abandoned=failure)
            if failure is not None:
                raise failure
        finally:
            chain.cancel()


class EncodedFile(SelfWriting):
    """The coded content of an open file, once: as chunks, or written by the last program itself."""

    def __init__(self, waits: Waits, pipe_bytes: int, stages: tuple[Stage, ...], raw: int) -> None:
        self._waits = waits
        self._pipe_bytes = pipe_bytes
        self._commands = [(stage, stage.encode) for stage in stages]
        self._raw = raw

    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks."""
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            coded = chain.start(self._commands, self._raw, chain.pipe_out())
            while chunk := self._waits.read(coded, CHUNK_BYTES):
                yield chunk
            chain.finish()
        finally:
            chain.cancel()

    def write_to(self, descriptor: int) -> None:
        """Let the last program write into an open file."""
        chain = Chain(self._waits, self._pipe_bytes)
        try:
            chain.start(self._commands, self._raw, descriptor)
            chain.finish()
        finally:
            chain.cancel()


def _recognised(coded: Iterable[bytes], key: str) -> tuple[Iterator[bytes], list[tuple[Stage, tuple[str, ...]]]]:
    """Look at the first bytes; return all the bytes and the stages that decode them, outermost first.

    Nothing is started before the store has answered: a missing key costs no process.
    """
    chunks = iter(coded)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    return _chained(head, chunks), _stages_of(head, key)


def _stages_of(head: bytes, key: str) -> list[tuple[Stage, tuple[str, ...]]]:
    """The stages that decode what begins with these bytes, outermost first."""
    codec = CODECS.get("." + key.rpartition(".")[2])
    cipher = gpg()
    stages = [cipher] if cipher.recognises(head) else []
    if codec is not None and not stages and not codec.recognises(head):
        raise DamageError(
            f"{key} is not {codec.name} data",
            "Its first bytes are neither those of the codec nor those of an encrypted message." if head else "The object is empty.",
            "The object was damaged or replaced after it was stored; use another backup, or another copy of the store.",
        )
    if codec is not None:
        stages.append(codec)
    return [(stage, stage.decode) for stage in stages]


def _chained(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _copy(source: int, destination: int) -> None:
    offset = 0
    while copied := os.sendfile(destination, source, offset, CHUNK_BYTES):
        offset += copied
