"""Files of a running cluster into one tar stream.

Runs in a native thread: it reads, sums and writes, and never logs or waits for anything but
the disk and the pipe. PostgreSQL goes on changing the files meanwhile. WAL replay repairs what
is torn, so a file is taken with the size it had when it was opened: what it grew by is left
out, what it shrank by is filled with zeros, and a file that is gone is left out. The format is
GNU tar with whole seconds, which the original WAL-E and every tar can read.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tarfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from io import RawIOBase
from typing import NamedTuple

import google_crc32c

from wal_e.errors import local_error
from wal_e.postgres.files import FileEntry
from wal_e.postgres.page import LivePages

READ_BYTES = 256 * 1024
BLOCK = tarfile.BLOCKSIZE
END_OF_ARCHIVE = bytes(2 * BLOCK)


class Member(NamedTuple):
    """What went into a tar, or came out of it.

    ``size`` in bytes; ``mtime`` in seconds; ``crc32c`` of the content of a file, else 0;
    ``target`` of a symbolic link, else "".
    """

    path: str
    kind: str
    size: int
    mode: int
    mtime: int
    crc32c: int
    target: str


class Throttle:
    """Keeps a lane below a number of bytes per second; ``rate`` 0 is no limit."""

    def __init__(self, rate: float, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
        self._rate = rate
        self._sleep = sleep
        self._clock = clock
        self._due = clock()

    def spend(self, size: int) -> None:
        """Pause for as long as these bytes may take."""
        if self._rate:
            now = self._clock()
            self._due = max(self._due, now) + size / self._rate
            if self._due > now:
                self._sleep(self._due - now)


class PartitionWriter:
    """Writes the tar of one partition; afterwards ``members`` holds what is in it. With ``pages``, those are looked at on the way."""

    def __init__(
        self, data_directory: str, entries: Iterable[FileEntry], throttle: Throttle, read: Callable[[int], None], pages: LivePages | None = None
    ) -> None:
        self._root = data_directory
        self._entries = entries
        self._throttle = throttle
        self._read = read
        self._pages = pages
        self.members: list[Member] = []

    def write(self, stream: RawIOBase) -> None:
        """Write every entry that still exists, and the end of the archive."""
        for entry in self._entries:
            if entry.kind == "file":
                self._write_file(stream, entry)
            else:
                _write_all(stream, header(entry, 0))
                self.members.append(Member(entry.path, entry.kind, 0, entry.mode, entry.mtime, 0, entry.target))
        _write_all(stream, END_OF_ARCHIVE)

    def _write_file(self, stream: RawIOBase, entry: FileEntry) -> None:
        path = os.path.join(self._root, entry.path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise local_error(error, f"reading {path}") from None
        try:
            size = os.fstat(fd).st_size
            head = header(entry, size)
            crc32c = 0
            left = size
            scan = self._pages.scan(entry.path, fd) if self._pages else None
            while left:
                data = self._take(fd, min(left, READ_BYTES), path)
                if scan:
                    scan.feed(data)
                crc32c = google_crc32c.extend(crc32c, data)
                left -= len(data)
                _write_all(stream, head + data if head else data)
                head = b""
            padding = bytes(-size % BLOCK)
            if head or padding:
                _write_all(stream, head + padding)
        finally:
            os.close(fd)
        self.members.append(Member(entry.path, "file", size, entry.mode, entry.mtime, crc32c, ""))

    def _take(self, fd: int, size: int, path: str) -> bytes:
        """Read the next bytes, zeros where the file has become shorter."""
        self._throttle.spend(size)
        try:
            data = os.read(fd, size)
        except OSError as error:
            raise local_error(error, f"reading {path}") from None
        self._read(size)
        return data or bytes(size)


def write_contents(stream: RawIOBase, contents: Iterable[tuple[FileEntry, bytes]]) -> list[Member]:
    """Write a tar of files whose content is at hand, and of directories; return its members."""
    members = []
    for entry, content in contents:
        _write_all(stream, header(entry, len(content)) + content + bytes(-len(content) % BLOCK))
        members.append(Member(entry.path, entry.kind, len(content), entry.mode, entry.mtime, google_crc32c.value(content), ""))
    _write_all(stream, END_OF_ARCHIVE)
    return members


_TYPES = {"file": tarfile.REGTYPE, "directory": tarfile.DIRTYPE, "symlink": tarfile.SYMTYPE}


def header(entry: FileEntry, size: int) -> bytes:
    """Render the GNU tar header of one member; the data directory itself has an empty name."""
    info = tarfile.TarInfo(entry.path)
    info.type = _TYPES[entry.kind]
    info.size = size
    info.mode = stat.S_IMODE(entry.mode)
    info.mtime = entry.mtime
    info.uid, info.gid = entry.uid, entry.gid
    info.uname, info.gname = _user(entry.uid), _group(entry.gid)
    info.linkname = entry.target
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@lru_cache(maxsize=64)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@lru_cache(maxsize=64)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _write_all(stream: RawIOBase, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
