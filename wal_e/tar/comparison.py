"""What a directory holds already, beside what a backup holds: which members need not come again.

A file of pages stays when its size and CRC-32C are those of the manifest; times prove nothing about
its content. For other files the CRC-32C proves little: where a file ends with its own, as ``pg_control``,
``pg_filenode.map`` and the state of prepared transactions do, it is the same for every content.
They stay when their time is that of the manifest, too; ``pg_control`` never stays. A file with a second name (a hard link) does not stay: a server would change
the other one too. Nothing is looked at through a symbolic link that the restore does not know.
Paths are remembered as hashes of eight bytes, so that memory stays small for any cluster.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

import google_crc32c

from wal_e.errors import local_error
from wal_e.tar.destination import CONTROL, HELD_CONTROL
from wal_e.tar.writer import READ_BYTES, Member

KEPT, DESCRIBED, FETCHED, ZEROED = range(4)  # fates: stays; stays, and gets its mode and time; comes from the store; becomes zeros


_OF_PAGES = re.compile(
    r"(?:global|base/[0-9]+|pg_tblspc/[0-9]+/PG_[^/]+/[0-9]+)/[0-9]+(?:_[a-z]+)?(?:\.[0-9]+)?|pg_(?:xact|commit_ts|multixact/(?:members|offsets))/[0-9A-F]+"
)


def is_of_pages(path: str) -> bool:
    """Whether a file consists of pages, so that its checksum tells about its content."""
    return _OF_PAGES.fullmatch(path) is not None


def crc32c_of(path: str, looked: Callable[[int], None] = lambda _: None) -> int | None:
    """Sum up a file; None for one that the disk cannot read any more. Raises: LocalFileError."""
    crc32c = 0
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while data := os.read(fd, READ_BYTES):
                crc32c = google_crc32c.extend(crc32c, data)
                looked(len(data))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno == errno.EIO:
            return None
        raise local_error(error, f"reading {path}") from None
    return crc32c


class Paths:
    """A set of paths; one in 2**64 others would be taken for a member."""

    def __init__(self) -> None:
        self._hashes = array("q")
        self._is_sorted = True

    def add(self, path: str) -> None:
        """Remember a path."""
        self._hashes.append(hash(path))
        self._is_sorted = False

    def update(self, other: Paths) -> None:
        """Remember all paths of another set."""
        self._hashes.extend(other._hashes)
        self._is_sorted = False

    def __contains__(self, path: str) -> bool:
        if not self._is_sorted:
            self._hashes = array("q", sorted(self._hashes))
            self._is_sorted = True
        sought = hash(path)
        place = bisect_left(self._hashes, sought)
        return place < len(self._hashes) and self._hashes[place] == sought


class Compared(NamedTuple):
    """What became of some members: the fate of each in their order; all their paths, and those whose place is taken by what belongs there."""

    fates: bytes
    known: Paths
    kept: Paths


class Copy:
    """A directory that may hold some of a backup; used from native threads.

    ``links`` are the symbolic links in it that are followed; ``is_zeroed`` says which files come as
    zeros; ``stays`` are files that are not touched, whatever is in them; ``looked`` is told how many bytes were looked at.
    """

    def __init__(self, root: str, links: frozenset[str], is_zeroed: Callable[[str], bool], stays: frozenset[str], looked: Callable[[int], None]) -> None:
        self._root = root
        self._links = links
        self._is_zeroed = is_zeroed
        self._stays = stays
        self._looked = looked
        self._own: dict[str, bool] = {"": os.path.isdir(root)}

    def compare(self, members: Iterable[Member]) -> Compared:
        """Compare members with what is in their places. Raises: LocalFileError."""
        fates = bytearray()
        known, kept = Paths(), Paths()
        directories: set[str] = set()
        for member in members:
            fate, is_in_place = self._compare(member)
            fates.append(fate)
            known.add(member.path)
            if is_in_place:
                kept.add(member.path)
            parent = os.path.dirname(member.path)
            while parent and parent not in directories:  # a tablespace's place has no member of its own
                directories.add(parent)
                known.add(parent)
                if self.is_own(parent):
                    kept.add(parent)
                parent = os.path.dirname(parent)
        return Compared(bytes(fates), known, kept)

    def is_own(self, directory: str) -> bool:
        """Whether a directory is there, and nothing leads to it but links that are known."""
        if directory not in self._own:
            self._own[directory] = self.is_own(os.path.dirname(directory)) and self._is_directory(directory)
        return self._own[directory]

    def allocated(self, path: str) -> int:
        """Bytes on disk that a file in this place takes now."""
        status = self._status(path)
        return status.st_blocks * 512 if status and stat.S_ISREG(status.st_mode) and status.st_nlink == 1 else 0

    def _compare(self, member: Member) -> tuple[int, bool]:
        """The fate of a member, and whether what is in its place stays."""
        if member.kind == "directory":
            return KEPT, self.is_own(member.path)
        if member.path in self._stays:
            return KEPT, True
        status = self._status(member.path)
        if member.kind == "symlink":
            return KEPT, status is not None and stat.S_ISLNK(status.st_mode) and os.readlink(self._place(member.path)) == member.target
        if member.path == CONTROL:
            return FETCHED, False
        is_zeroed = self._is_zeroed(member.path)
        is_same = status is not None and self._is_same(member, status, is_zeroed)
        if not is_same or status is None:
            return (ZEROED if is_zeroed else FETCHED), False
        is_described = (stat.S_IMODE(status.st_mode), int(status.st_mtime)) == (stat.S_IMODE(member.mode), member.mtime)
        return (KEPT if is_described else DESCRIBED), True

    def _is_same(self, member: Member, status: os.stat_result, is_zeroed: bool) -> bool:
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size or status.st_nlink != 1:
            self._looked(member.size)
            return False
        if is_zeroed:
            self._looked(member.size)
            return status.st_blocks == 0
        if not is_of_pages(member.path) and int(status.st_mtime) != member.mtime:
            self._looked(member.size)
            return False
        return crc32c_of(self._place(member.path), self._looked) == member.crc32c

    def _status(self, path: str) -> os.stat_result | None:
        if not self.is_own(os.path.dirname(path)):
            return None
        try:
            return os.lstat(self._place(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error(error, f"reading {self._place(path)}") from None

    def _place(self, path: str) -> str:
        return os.path.join(self._root, path)

    def _is_directory(self, directory: str) -> bool:
        place = os.path.join(self._root, directory)
        return os.path.isdir(place) and (directory in self._links or not os.path.islink(place))


def beyond(root: str, links: frozenset[str], stays: Paths) -> list[str]:
    """List what is in a directory and not in a set of paths: files and links, and directories as one.

    ``pg_control`` is not listed, under either name; nor is what else is in the place of a tablespace,
    which may hold those of other versions; nor that place itself, where it lies inside the directory.

    Raises: LocalFileError.
    """
    found = []
    pending = [""]
    inside = _inside(root, links)
    above = {path[:end] for path in inside for end in range(len(path)) if path[end] == "/"}
    while pending:
        directory = pending.pop()
        place = os.path.join(root, directory)
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    path = f"{directory}/{entry.name}" if directory else entry.name
                    if entry.name == "lost+found" or path in (CONTROL, HELD_CONTROL) or path in inside:
                        continue
                    if path in stays or path in above:
                        if path in links or entry.is_dir(follow_symlinks=False):
                            pending.append(path)
                    elif directory not in links or not directory.startswith("pg_tblspc/"):
                        found.append(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise local_error(error, f"reading {place}") from None
    return sorted(found)


def _inside(root: str, links: frozenset[str]) -> set[str]:
    """The places in a directory to which links in it lead; what is in them counts below the link."""
    top = os.path.realpath(root)
    places = (os.path.realpath(os.path.join(root, link)) for link in links)
    return {os.path.relpath(place, top) for place in places if place.startswith(f"{top}/")}
