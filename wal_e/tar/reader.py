"""One tar stream into files, each summed up on the way.

Runs in a native thread. Reads what this project and the original WAL-E write: GNU and PAX
headers, files, directories and symbolic links; anything else is refused. What comes out is
compared with the manifest by the caller, so everything that was met is reported.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Container
from io import RawIOBase
from typing import Protocol

import google_crc32c

from wal_e.errors import DamageError, local_error
from wal_e.tar.writer import READ_BYTES, Member


class Sink(Protocol):
    """Where members go: a directory, or whoever looks at them on the way. Files come one after the other."""

    def open_file(self, name: str) -> int:
        """Begin a file; return its descriptor, which the reader closes."""

    def write(self, fd: int, data: bytes) -> None:
        """Take the next bytes of the file. Raises: OSError."""

    def finish_file(self, fd: int, info: tarfile.TarInfo) -> None:
        """End a file. Raises: OSError."""

    def make_directory(self, name: str, info: tarfile.TarInfo) -> None:
        """Take a directory."""

    def make_symlink(self, name: str, info: tarfile.TarInfo) -> None:
        """Take a symbolic link."""


class Sieve:
    """Lets only wanted members through to another sink; of the others nothing is left."""

    def __init__(self, sink: Sink, wanted: Container[str]) -> None:
        self._sink = sink
        self._wanted = wanted
        self._passes = False

    def open_file(self, name: str) -> int:
        """Begin a file; the descriptor of one that is not wanted leads nowhere."""
        self._passes = name in self._wanted
        if self._passes:
            return self._sink.open_file(name)
        try:
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            raise local_error(error, f"opening {os.devnull}") from None

    def write(self, fd: int, data: bytes) -> None:
        """Pass on the next bytes."""
        if self._passes:
            self._sink.write(fd, data)

    def finish_file(self, fd: int, info: tarfile.TarInfo) -> None:
        """Pass on the end."""
        if self._passes:
            self._sink.finish_file(fd, info)

    def make_directory(self, name: str, info: tarfile.TarInfo) -> None:
        """Pass on a directory."""
        if name in self._wanted:
            self._sink.make_directory(name, info)

    def make_symlink(self, name: str, info: tarfile.TarInfo) -> None:
        """Pass on a link."""
        if name in self._wanted:
            self._sink.make_symlink(name, info)


class _Source:
    """A stream as ``tarfile`` reads headers from a file, forward only. Content passes by without a copy, which ``tarfile``'s own streams make three of."""

    def __init__(self, stream: RawIOBase) -> None:
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def read_some(self, size: int) -> bytes:
        """Read what is there, at least one byte and at most ``size``; b"" at the end."""
        data = self._stream.read(size) or b""
        self._position += len(data)
        return data

    def read(self, size: int) -> bytes:
        """Read all of ``size`` bytes, or up to the end. Raises: ReadError for more than any header needs."""
        if size > READ_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self.read_some(size)
        while len(data) < size and (more := self.read_some(size - len(data))):
            data += more
        return data

    def seek(self, position: int) -> None:
        """Read on to a position that lies ahead."""
        while self._position < position and self.read_some(min(position - self._position, READ_BYTES)):
            pass


class PartitionReader:
    """Extracts the tar of one partition; afterwards ``members`` holds what was in it."""

    def __init__(self, key: str, sink: Sink, wrote: Callable[[int], None]) -> None:
        self._key = key
        self._sink = sink
        self._wrote = wrote
        self.members: list[Member] = []

    def read(self, stream: RawIOBase) -> None:
        """Extract all members, then read on to the end of the stream.

        Raises: DamageError naming the key, DiskFull, LocalFileError.
        """
        try:
            source = _Source(stream)
            with tarfile.TarFile(fileobj=source, encoding="utf-8", errors="surrogateescape") as archive:  # type: ignore[arg-type]  # what it needs of a file
                while (info := archive.next()) is not None:
                    self._extract(source, info)
                self._read_to_end(source)
        except tarfile.TarError as error:
            raise self._damaged(f"Its tar cannot be read: {error}.") from None

    def _read_to_end(self, source: _Source) -> None:
        """Read the padding; ``tarfile`` takes a broken header for the end, and leaves data behind."""
        while rest := source.read_some(READ_BYTES):
            if rest.count(0) != len(rest):
                raise self._damaged("There is data after the end of its tar, or a broken header in it.")

    def _extract(self, source: _Source, info: tarfile.TarInfo) -> None:
        name = info.name.strip("/") if info.isdir() else info.name
        crc32c = 0
        if info.isreg():
            crc32c = self._extract_file(source, info)
        elif info.isdir():
            self._sink.make_directory(name, info)
        elif info.issym():
            self._sink.make_symlink(name, info)
        else:
            raise self._damaged(f"Its member {info.name!r} is neither a file nor a directory nor a symbolic link.")
        kind = "file" if info.isreg() else "directory" if info.isdir() else "symlink"
        size = info.size if info.isreg() else 0
        self.members.append(Member(name, kind, size, info.mode, int(info.mtime), crc32c, info.linkname))

    def _extract_file(self, source: _Source, info: tarfile.TarInfo) -> int:
        """Write the content, which follows the header in the stream; return its CRC-32C."""
        fd = self._sink.open_file(info.name)
        crc32c, left = 0, info.size
        try:
            while left:
                data = source.read_some(min(left, READ_BYTES))
                if not data:
                    raise self._damaged(f"Its tar ends within {info.name!r}.")
                crc32c = google_crc32c.extend(crc32c, data)
                left -= len(data)
                self._sink.write(fd, data)
                self._wrote(len(data))
            self._sink.finish_file(fd, info)
        except OSError as error:
            raise local_error(error, f"writing {info.name}") from None
        finally:
            os.close(fd)
        return crc32c

    def _damaged(self, detail: str) -> DamageError:
        return DamageError(f"{self._key} is damaged", detail, "Use another backup, or another copy of the store.")
