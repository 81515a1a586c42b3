"""One tar stream into files, each summed up on the way.

Runs in a native thread. Reads what this project and the original WAL-E write: GNU and PAX
headers, files, directories and symbolic links; anything else is refused. What comes out is
compared with the manifest by the caller, so everything that was met is reported.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from io import RawIOBase

import google_crc32c

from wal_e.errors import DamageError, local_error
from wal_e.tar.destination import Destination
from wal_e.tar.writer import READ_BYTES, Member


class PartitionReader:
    """Extracts the tar of one partition; afterwards ``members`` holds what was in it."""

    def __init__(self, key: str, destination: Destination, wrote: Callable[[int], None]) -> None:
        self._key = key
        self._destination = destination
        self._wrote = wrote
        self.members: list[Member] = []

    def read(self, stream: RawIOBase) -> None:
        """Extract all members, then read on to the end of the stream.

        Raises: DamageError naming the key, DiskFull, LocalFileError.
        """
        try:
            with tarfile.open(fileobj=stream, mode="r|", bufsize=READ_BYTES, encoding="utf-8", errors="surrogateescape") as archive:
                while (info := archive.next()) is not None:
                    self._extract(archive, info)
                self._read_to_end(archive)
        except tarfile.TarError as error:
            raise self._damaged(f"Its tar cannot be read: {error}.") from None

    def _read_to_end(self, archive: tarfile.TarFile) -> None:
        """Read the padding; ``tarfile`` takes a broken header for the end, and leaves data behind."""
        source = archive.fileobj
        assert source is not None
        while rest := source.read(READ_BYTES):
            if rest.count(0) != len(rest):
                raise self._damaged("There is data after the end of its tar, or a broken header in it.")

    def _extract(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        name = info.name.strip("/") if info.isdir() else info.name
        crc32c = 0
        if info.isreg():
            crc32c = self._extract_file(archive, info)
        elif info.isdir():
            self._destination.make_directory(name, info)
        elif info.issym():
            self._destination.make_symlink(name, info)
        else:
            raise self._damaged(f"Its member {info.name!r} is neither a file nor a directory nor a symbolic link.")
        kind = "file" if info.isreg() else "directory" if info.isdir() else "symlink"
        size = info.size if info.isreg() else 0
        self.members.append(Member(name, kind, size, info.mode, int(info.mtime), crc32c, info.linkname))

    def _extract_file(self, archive: tarfile.TarFile, info: tarfile.TarInfo) -> int:
        """Write the content, which follows the header in the stream; return its CRC-32C."""
        source = archive.fileobj
        assert source is not None
        fd = self._destination.open_file(info.name)
        crc32c, left = 0, info.size
        try:
            while left:
                data = source.read(min(left, READ_BYTES))
                if not data:
                    raise self._damaged(f"Its tar ends within {info.name!r}.")
                crc32c = google_crc32c.extend(crc32c, data)
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                self._wrote(len(data))
            self._destination.finish_file(fd, info)
        except OSError as error:
            raise local_error(error, f"writing {info.name}") from None
        finally:
            os.close(fd)
        return crc32c

    def _damaged(self, detail: str) -> DamageError:
        return DamageError(f"{self._key} is damaged", detail, "Use another backup, or another copy of the store.")
