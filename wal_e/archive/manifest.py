"""The manifest of a backup: every file with its CRC-32C, every partition with its SHA-256.

JSON lines, format 1, in this order, and always streamed:

1. a header: ``{"format": 1, "backup": NAME, "major": 15}``;
2. per partition its members, ``{"path": ..., "kind": ..., "size": ..., "mode": ..., "mtime": ...,
   "crc32c": ..., "target": ..., "partition": N}`` (``path_hex`` instead of ``path``, and ``target_hex``, where
   the name is not UTF-8; ``crc32c`` in eight hex digits for files; ``target`` for links), followed by
   ``{"partition": N, "key": ..., "size": stored bytes, "sha256": of the stored bytes, "files": members}``;
3. ``{"sha256": ...}`` over all lines before it.

The sentinel repeats that last hash, so that a manifest cannot be exchanged unnoticed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from io import RawIOBase
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple

from wal_e.errors import DamageError, local_error
from wal_e.tar.writer import Member

FORMAT = 1
COPY_BYTES = 256 * 1024
SPOOLING = "writing the manifest to a temporary file"

_SIZE = re.compile(rb'"size":([0-9]+)')


class StoredPartition(NamedTuple):
    """One partition as stored: number, key, size in bytes and SHA-256 (hex) of the stored bytes, count of members."""

    number: int
    key: str
    size: int
    sha256: str
    files: int


class ManifestWriter:
    """Collects the lines in a spool as partitions become complete; ``content_bytes`` sums up the files in them."""

    def __init__(self, backup: str, major: int) -> None:
        self._spool = _new_spool()
        self._hash = hashlib.sha256()
        self.content_bytes = 0
        self._append({"format": FORMAT, "backup": backup, "major": major})

    def add(self, partition: StoredPartition, members: Iterable[Member]) -> None:
        """Append one complete partition."""
        for member in members:
            self.content_bytes += member.size
            self._append(_member_line(member, partition.number))
        self._append({"partition": partition.number, "key": partition.key, "size": partition.size, "sha256": partition.sha256, "files": partition.files})

    def finish(self) -> str:
        """Append the hash of all before and return it (hex)."""
        digest = self._hash.hexdigest()
        self._append({"sha256": digest})
        return digest

    def write(self, stream: RawIOBase) -> None:
        """Write everything into a stream."""
        try:
            self._spool.seek(0)
        except OSError as error:
            raise local_error(error, SPOOLING) from None
        while data := self._spool.read(COPY_BYTES):
            view = memoryview(data)
            while view:
                view = view[stream.write(view) :]

    def close(self) -> None:
        """Forget the spool."""
        _forget(self._spool)

    def _append(self, document: dict[str, Any]) -> None:
        line = _line(document)
        self._hash.update(line)
        try:
            self._spool.write(line)
        except OSError as error:
            raise local_error(error, SPOOLING) from None


class Manifest:
    """A fetched manifest, verified as a whole before anything is taken from it."""

    def __init__(self, spool: IO[bytes], key: str, backup: str, digest: str) -> None:
        self._spool = spool
        self._key = key
        self._verify(backup, digest)

    @classmethod
    def fetch(cls, decode: Callable[[Callable[[RawIOBase], None]], None], key: str, backup: str, digest: str) -> Manifest:
        """Read a manifest through ``decode``, which runs a consumer of the raw stream.

        Raises: DamageError when its content is not what the sentinel's hash says.
        """
        spool = _new_spool()

        def consume(stream: RawIOBase) -> None:
            try:
                while data := stream.read(COPY_BYTES):
                    spool.write(data)
                spool.flush()
            except OSError as error:
                raise local_error(error, SPOOLING) from None

        try:
            decode(consume)
            return cls(spool, key, backup, digest)
        except BaseException:
            _forget(spool)
            raise

    def partitions(self) -> Iterator[tuple[StoredPartition, list[Member]]]:
        """Yield each partition with its members, in the order of the manifest."""
        return self._partitions_from(0)

    def largest_first(self) -> Iterator[tuple[StoredPartition, list[Member]]]:
        """Yield the same, those with the most content first: lanes that take them in this order end together."""
        for _, offset in sorted(self._places, reverse=True):
            yield next(self._partitions_from(offset))

    def close(self) -> None:
        """Forget the spool."""
        _forget(self._spool)

    def _partitions_from(self, offset: int) -> Iterator[tuple[StoredPartition, list[Member]]]:
        self._spool.seek(offset)
        members: list[Member] = []
        for document in map(json.loads, self._spool):
            if "key" in document:
                yield StoredPartition(document["partition"], document["key"], document["size"], document["sha256"], document["files"]), members
                members = []
            elif "kind" in document:
                members.append(_parsed_member(document))

    @functools.cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Bytes of content of each partition, and where its lines begin."""
        self._spool.seek(0)
        begin = end = len(self._spool.readline())
        places, content_bytes = [], 0
        for line in self._spool:
            end += len(line)
            if line.startswith(b'{"partition":'):
                places.append((content_bytes, begin))
                begin, content_bytes = end, 0
            elif size := _SIZE.search(line):
                content_bytes += int(size[1])
        return places

    def _verify(self, backup: str, digest: str) -> None:
        self._spool.seek(0)
        computed = hashlib.sha256()
        line = header = b""
        for number, line in enumerate(self._spool):
            if number == 0:
                header = line
            if line.startswith(b'{"sha256":'):
                break
            computed.update(line)
        try:
            whole = line == _line({"sha256": digest}) and computed.hexdigest() == digest and not self._spool.read(1)
            document = json.loads(header)
            understood = document["format"] == FORMAT and document["backup"] == backup
        except (ValueError, KeyError, TypeError):
            whole = understood = False
        if not whole or not understood:
            raise DamageError(
                f"{self._key} is not the manifest of this backup",
                "Its hash differs from the one in the sentinel." if not whole else "It belongs to another backup, or to a later format.",
                "Use another backup, or another copy of the store.",
            )


def _new_spool() -> IO[bytes]:
    try:
        return TemporaryFile()
    except OSError as error:
        raise local_error(error, SPOOLING) from None


def _forget(spool: IO[bytes]) -> None:
    with contextlib.suppress(OSError):  # what is still buffered may find no space, and nobody needs it
        spool.close()


def _line(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _named(field: str, text: str) -> dict[str, str]:
    try:
        text.encode()
    except UnicodeEncodeError:
        return {f"{field}_hex": text.encode("utf-8", "surrogateescape").hex()}
    return {field: text}


def _name(document: dict[str, Any], field: str) -> str:
    if f"{field}_hex" in document:
        return bytes.fromhex(document[f"{field}_hex"]).decode("utf-8", "surrogateescape")
    return str(document.get(field, ""))


def _member_line(member: Member, partition: int) -> dict[str, Any]:
    line: dict[str, Any] = _named("path", member.path)
    line.update(kind=member.kind, size=member.size, mode=member.mode, mtime=member.mtime)
    if member.kind == "file":
        line["crc32c"] = f"{member.crc32c:08x}"
    if member.target:
        line.update(_named("target", member.target))
    line["partition"] = partition
    return line


def _parsed_member(document: dict[str, Any]) -> Member:
    crc32c = int(document.get("crc32c", "0"), 16)
    return Member(_name(document, "path"), document["kind"], document["size"], document["mode"], document["mtime"], crc32c, _name(document, "target"))
