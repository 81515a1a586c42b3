"""Which WAL a prefix holds: per timeline, as ranges of segments, from one pass over the listing. Nothing here reads or writes.

Keys come in byte order, so all that belongs to one segment is together, and segments of a timeline come in the
order of their positions. Memory goes with the gaps, about 100 bytes each, and with the number of timelines; a million
segments without a gap take the room of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.ranges import Range, Ranges
from wal_e.archive.retention import DEFAULT_SEGMENT_SIZE
from wal_e.blobstore.base import Blob
from wal_e.postgres.wal import MIN_SEGMENT_SIZE, segment_name, segment_start, wal_kind

_SPAN = 2**32  # bytes of WAL under one middle part of a name


class TimelineWal:
    """What is stored of one timeline; segments by their number, which is their position divided by their size.

    ``stored_bytes`` and ``newest`` are those of whole segments. ``twice`` has the segments that are stored under two suffixes.
    """

    def __init__(self, timeline: int) -> None:
        self.timeline = timeline
        self.segments = Ranges()
        self.twice = Ranges()
        self.partial = Ranges()
        self.streaming = Ranges()
        self.stored_bytes = 0
        self.newest: datetime | None = None

    def _count(self, number: int, blob: Blob) -> None:
        if self.segments and self.segments.last == number:
            self.twice.add(number)
        else:
            self.segments.add(number)
        self.stored_bytes += blob.size
        self.newest = blob.modified if self.newest is None else max(self.newest, blob.modified)


class Misfit(NamedTuple):
    """How many segments have names that segments of the assumed size cannot have, and one of them."""

    segments: int
    example: str


class WalIndex:
    """All that is stored as WAL.

    ``histories`` are keys of history files by timeline; ``unknown`` counts keys that are no WAL's;
    ``newest`` is when the newest of all was stored, by the store's clock.
    """

    def __init__(self, segment_size: int) -> None:
        self.segment_size = segment_size
        self._per_span = _SPAN // segment_size
        self.timelines: dict[int, TimelineWal] = {}
        self.histories: dict[int, str] = {}
        self.backup_files = 0
        self.unknown = 0
        self.misfit: Misfit | None = None
        self.newest: datetime | None = None
        self._highest_low = 0

    def name(self, timeline: int, number: int) -> str:
        """The name of a segment."""
        return segment_name(timeline, number * self.segment_size, self.segment_size)

    def number(self, name: str) -> int:
        """The number of a segment, by its name. Raises: WalRefused for a name that segments of this size cannot have."""
        return segment_start(name, self.segment_size) // self.segment_size

    def _number(self, high: int, low: int) -> int | None:
        """The same for the parts of a name that is known to be a segment's; None for one that segments of this size cannot have."""
        return high * self._per_span + low if low < self._per_span else None

    def names(self, timeline: int, ranges: Iterable[Range]) -> Iterator[tuple[str, str, int]]:
        """Yield first name, last name and number of segments of each range."""
        for one in ranges:
            yield self.name(timeline, one.first), self.name(timeline, one.last), one.length

    def segments_of(self, timeline: int) -> Ranges:
        """The whole segments of a timeline."""
        return self.timelines[timeline].segments if timeline in self.timelines else Ranges()

    @property
    def size_by_names(self) -> int:
        """The segment size that fits all names: the usual one, or a smaller one if some name needs that."""
        size = DEFAULT_SEGMENT_SIZE
        while size > MIN_SEGMENT_SIZE and self._highest_low >= _SPAN // size:
            size //= 2
        return size

    def add(self, name: str | None, blob: Blob) -> None:
        """Take in one stored object, in order of key; its name is None when it is no WAL's."""
        self.newest = blob.modified if self.newest is None else max(self.newest, blob.modified)
        kind = wal_kind(name) if name else None
        if name and kind == "history":
            self.histories[int(name[:8], 16)] = blob.key
        elif name and kind == "backup":
            self.backup_files += 1
        elif name and (kind or layout.is_streaming(name)):
            self._add_segment(name, kind or "streaming", blob)
        else:
            self.unknown += 1

    def _add_segment(self, name: str, kind: str, blob: Blob) -> None:
        timeline, low = int(name[:8], 16), int(name[16:24], 16)
        if low > self._highest_low:
            self._highest_low = low
        number = self._number(int(name[8:16], 16), low)
        if number is None:
            self.misfit = Misfit(self.misfit.segments + 1 if self.misfit else 1, name)
            return
        wal = self.timelines.get(timeline) or self.timelines.setdefault(timeline, TimelineWal(timeline))
        if kind == "segment":
            wal._count(number, blob)
        else:
            (wal.partial if kind == "partial" else wal.streaming).add(number)


def index_wal(files: Iterable[tuple[str | None, Blob]], segment_size: int) -> WalIndex:
    """Build the index from the names and objects of a listing, in order of key."""
    index = WalIndex(segment_size)
    for name, blob in files:
        index.add(name, blob)
    return index
