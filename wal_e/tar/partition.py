"""Which files travel together: the plan of a base backup's tar partitions.

A partition is a lane's unit of work. Its size is a compromise: many enough that the lanes end
together, few enough that a store is not littered, never so large that a retry hurts. Files
are never split; large ones go first, the largest of them first of all. The cluster is
walked twice instead of being remembered, so that memory does not grow with it.

Small files that are none of pages (settings, maps, versions) keep to themselves, where one partition is not
enough: a delta restore fetches some of them nearly always, and with them whatever is in their partition.

WAL-E's limit of 6144 members a partition (1.5 GiB of 256 KiB files) is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wal_e.postgres.files import FileEntry
from wal_e.tar.comparison import is_of_pages

MAX_MEMBERS = 6144
MIN_BYTES = 64 * 1024 * 1024
MAX_BYTES = 1024 * 1024 * 1024
PARTITIONS_PER_LANE = 8
LARGE_BYTES = 16 * 1024 * 1024


class Partition(NamedTuple):
    """Members of one tar, in order; ``number`` counts from 0 in the order of the plan."""

    number: int
    entries: list[FileEntry]


class Survey(NamedTuple):
    """What a first walk found: sum of file sizes, number of entries, and the large files."""

    total_bytes: int
    entries: int
    large: list[FileEntry]


def survey(entries: Iterable[FileEntry]) -> Survey:
    """Walk once: sum up, and remember only the large files, largest first."""
    total_bytes = count = 0
    large = []
    for entry in entries:
        count += 1
        total_bytes += entry.size
        if entry.size >= LARGE_BYTES:
            large.append(entry)
    large.sort(key=lambda entry: (-entry.size, entry.path))
    return Survey(total_bytes, count, large)


def target_bytes(total_bytes: int, lanes: int) -> int:
    """The size of data at which a partition is full."""
    return max(MIN_BYTES, min(MAX_BYTES, total_bytes // (PARTITIONS_PER_LANE * lanes)))


def partitions(found: Survey, walk_again: Callable[[], Iterable[FileEntry]], lanes: int) -> Iterator[Partition]:
    """Yield the partitions: the large files of the survey, then the rest as a second walk meets it.

    The first member of partition 0 is the data directory itself, if the walk starts with it.
    """
    full_bytes = target_bytes(found.total_bytes, lanes)
    large = {entry.path for entry in found.large}
    root: list[FileEntry] = []
    pages, others = _Filling(full_bytes), _Filling(full_bytes)
    number = 0
    for entry in _root_first(walk_again(), found.large, large):
        if entry.path == "":
            root = [entry]
            continue
        filling = pages if found.total_bytes <= full_bytes or entry.path in large or is_of_pages(entry.path) else others
        if filling.is_full_for(entry, len(root)):
            yield Partition(number, root + filling.take())
            number, root = number + 1, []
        filling.add(entry)
    for filling in (pages, others):
        if entries := root + filling.take():
            yield Partition(number, entries)
            number, root = number + 1, []


class _Filling:
    """The entries of a partition that is not full yet."""

    def __init__(self, full_bytes: int) -> None:
        self._full_bytes = full_bytes
        self._bytes = 0
        self._entries: list[FileEntry] = []

    def is_full_for(self, entry: FileEntry, besides: int) -> bool:
        """Whether an entry has no place any more, with so many besides."""
        return (self._bytes > 0 and self._bytes + entry.size > self._full_bytes) or len(self._entries) + besides == MAX_MEMBERS

    def add(self, entry: FileEntry) -> None:
        """Take an entry."""
        self._entries.append(entry)
        self._bytes += entry.size

    def take(self) -> list[FileEntry]:
        """Hand out the entries, and begin anew."""
        entries, self._entries, self._bytes = self._entries, [], 0
        return entries


def _root_first(walked: Iterable[FileEntry], large: list[FileEntry], large_paths: set[str]) -> Iterator[FileEntry]:
    rest = iter(walked)
    for entry in rest:
        if entry.path != "":
            yield from large
            if entry.path not in large_paths:
                yield entry
            break
        yield entry
    for entry in rest:
        if entry.path not in large_paths:
            yield entry
