"""Pages of relation files: which files consist of them, and which of them are damaged.

A relation's file is ``[directory]/NUMBER[_fsm|_vm|_init][.SEGMENT]`` below ``base``, ``global`` and ``pg_tblspc``
(``common/relpath.c``); a block's number counts through all segments of 1 GiB. Other files have no pages with a
checksum. Of a running server a page may be read while it is written, half old and half new. Such a page is another
one a moment later, or it is newer than the beginning of the backup: then WAL has an image of it, and recovery
puts that in its place (``sendFile()`` in ``basebackup.c``, which reads it again, too).
"""

from __future__ import annotations

import os
import re
import sys

from wal_e.errors import ConfigurationError, local_error
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Met = Callable[[int, bytes], None]

CHECKSUMS_ON = 1  # PG_DATA_CHECKSUM_VERSION; other values of pg_control's field are none, or still on the way
SEGMENT_BYTES = 1 << 30  # of a relation, not of WAL: RELSEG_SIZE blocks
RELATION_FORKS = ("", "fsm", "vm", "init")  # by ForkNumber
MAX_SUSPECTS = 1000  # pages of one partition that may wait for a verdict; a race never leaves so many

_RELATION = re.compile(r"(?P<relation>(?:base/[0-9]+|global|pg_tblspc/[0-9]+/PG_[^/]+/[0-9]+)/[0-9]+(?:_(?:fsm|vm|init))?)(?:\.(?P<segment>[0-9]+))?")


class RelationFile(NamedTuple):
    """One file of a relation's fork: the path of its first segment, and which segment this is."""

    relation: str
    segment: int

    def first_block(self, block_size: int) -> int:
        """The number of the first block in the file."""
        return self.segment * (SEGMENT_BYTES // block_size)


class DamagedPages(NamedTuple):
    """Blocks of a relation that are damaged, in ranges of first and last, in order."""

    relation: str
    blocks: tuple[tuple[int, int], ...]

    @property
    def number(self) -> int:
        """How many pages."""
        return sum(last - first + 1 for first, last in self.blocks)

    def __str__(self) -> str:
        shown = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in self.blocks[:20])
        return f"{self.relation}, {'block' if self.number == 1 else 'blocks'} {shown}{', ...' if len(self.blocks) > 20 else ''}"


class Suspect(NamedTuple):
    """A page that may be damaged, or torn and of no account; and the position of WAL that it says it was changed at."""

    relation: str
    block: int
    lsn: Lsn


class PageRanges:
    """Collects damaged blocks; memory goes with the ranges."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def add(self, relation: str, first: int, last: int) -> None:
        """Take in blocks, usually behind the ones before."""
        ranges = self._ranges.setdefault(relation, [])
        if ranges and ranges[-1][1] + 1 == first:
            ranges[-1] = (ranges[-1][0], last)
        else:
            ranges.append((first, last))

    def extend(self, others: Iterable[DamagedPages]) -> None:
        """Take in what others found."""
        for relation, blocks in others:
            for first, last in blocks:
                self.add(relation, first, last)

    def damaged(self) -> tuple[DamagedPages, ...]:
        """All of them, in order of relation and block."""
        return tuple(DamagedPages(relation, _joined(ranges)) for relation, ranges in sorted(self._ranges.items()))


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def relation_file(path: str) -> RelationFile | None:
    """Tell whether a path, relative to the data directory, is a file with pages; None for all others."""
    match = _RELATION.fullmatch(path)
    return RelationFile(match["relation"], int(match["segment"] or 0)) if match else None


def page_lsn(page: bytes) -> Lsn:
    """The position of WAL up to which a page was changed; its high half is stored first."""
    return Lsn(int.from_bytes(page[:4], "little") << 32 | int.from_bytes(page[4:8], "little"))


def require_numpy() -> None:
    """Raise ConfigurationError where numpy is not installed, which sums up pages fast enough."""
    try:
        import numpy as np  # noqa: F401
    except ImportError:
        raise ConfigurationError(
            "numpy is not installed",
            "Page checksums are computed with it.",
            f"Install it with {sys.executable} -m pip install 'wal-e[verify]', or leave the pages out: "
            "backup-verify --fast, backup-push without --verify-page-checksums.",
        ) from None


class PageScan:
    """Looks at the pages of one file as it streams by; ``met`` is told block and bytes of each that has a wrong checksum."""

    def __init__(self, first_block: int, block_size: int, met: Met) -> None:
        from wal_e.postgres.page_checksum import wrong_pages

        self._wrong_pages = wrong_pages
        self._block = first_block
        self._block_size = block_size
        self._met = met
        self._rest = b""
        self.pages = 0

    def feed(self, data: bytes) -> None:
        """Look at the next bytes; a page that is not whole yet waits for the others."""
        if self._rest:
            data = self._rest + data
        size = self._block_size
        number = len(data) // size
        for index in self._wrong_pages(data, size, self._block):
            self._met(self._block + index, bytes(data[index * size : (index + 1) * size]))
        self._block += number
        self.pages += number
        self._rest = data[number * size :]


class LivePages:
    """The pages of one partition while its files are read.

    ``start`` is where the backup began. Afterwards ``damaged`` has the pages that are, and ``suspects`` those that say they
    are newer than the start; whether that can be is known at the end.
    """

    def __init__(self, block_size: int, start: Lsn) -> None:
        self._block_size = block_size
        self._start = start
        self._scans: list[PageScan] = []
        self.damaged = PageRanges()
        self.suspects: list[Suspect] = []

    @property
    def pages(self) -> int:
        """How many were looked at."""
        return sum(scan.pages for scan in self._scans)

    def scan(self, path: str, fd: int) -> PageScan | None:
        """Begin a file that is open at its beginning; None when it has no pages. Raises, when fed: LocalFileError."""
        file = relation_file(path)
        if file is None:
            return None
        first = file.first_block(self._block_size)
        scan = PageScan(first, self._block_size, lambda block, page: self._judge(file.relation, block, page, self._again(path, fd, block - first)))
        self._scans.append(scan)
        return scan

    def _again(self, path: str, fd: int, index: int) -> bytes:
        try:
            return os.pread(fd, self._block_size, index * self._block_size)
        except OSError as error:
            raise local_error(error, f"reading {path}") from None

    def _judge(self, relation: str, block: int, page: bytes, again: bytes) -> None:
        """Judge a page by what is in its place now."""
        if again != page:
            return
        lsn = page_lsn(page)
        if lsn >= self._start and len(self.suspects) < MAX_SUSPECTS:
            self.suspects.append(Suspect(relation, block, lsn))
        else:
            self.damaged.add(relation, block, block)
