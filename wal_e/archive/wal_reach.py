"""How far one gets from each backup with the WAL that is stored, and which gaps are in the way. Nothing here reads or writes.

Recovery towards a timeline reads each segment from the newest timeline on the way there that had begun by then
(``XLogFileReadAnyTLI()`` in PostgreSQL): where a timeline was left in the middle of a segment, the new
one has a segment of the same position, and that one is read. The old one's is often there as ``.partial`` only,
which is no gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from wal_e.archive.ranges import Range
from wal_e.archive.wal_index import WalIndex
from wal_e.postgres.wal import Lsn, Switch


class Need(NamedTuple):
    """What a backup asks for: it begins at ``start`` and is consistent at ``stop``, on a timeline; time is aware, UTC.

    An offline backup has the WAL that it needs within itself.
    """

    name: str
    finished: datetime
    timeline: int
    start: Lsn
    stop: Lsn
    online: bool


class Stretch(NamedTuple):
    """Segments that follow each other on one timeline, by number."""

    timeline: int
    first: int
    last: int


class Reach(NamedTuple):
    """How far one gets from a backup.

    ``consistent`` is what it needs to be usable at all, ``way`` what leads from it to the end of the timeline
    ``target``. The names of the first missing segment of each are None when nothing is missing; ``end`` is the last
    segment before it, None when the very first is missing or nothing is stored yet.
    """

    need: Need
    consistent: tuple[Stretch, ...]
    unusable_without: str | None
    target: int
    way: tuple[Stretch, ...]
    missing: str | None
    end: str | None


class Gap(NamedTuple):
    """Segments that are not stored although later ones are, or although a timeline went on; ``needed_by`` are names of backups."""

    timeline: int
    first: int
    last: int
    needed_by: tuple[str, ...]


class Lines:
    """The timelines of an index, and which left which and where, as far as histories tell."""

    def __init__(self, index: WalIndex, histories: Mapping[int, Sequence[Switch]], ends: Mapping[int, int]) -> None:
        """``ends`` has the number of the last segment of timelines of which more is known to exist than is stored."""
        self._index = index
        self._histories = histories
        self._ends = {timeline: wal.segments.last for timeline, wal in index.timelines.items() if wal.segments}
        for timeline, number in ends.items():
            self._ends[timeline] = max(number, self._ends.get(timeline, number))
        ancestors = {switch.timeline for history in histories.values() for switch in history}
        self.timelines = sorted({*index.timelines, *histories, *self._ends, *ancestors})

    def parent(self, timeline: int) -> Switch | None:
        """Which timeline it left, and where, as its own history or a descendant's tells; None for the first one, and where that is not known."""
        if timeline in self._histories:
            return self._histories[timeline][-1]
        pairs = (pair for history in self._histories.values() for pair in pairwise(history))
        return next((earlier for earlier, later in pairs if later.timeline == timeline), None)

    def begin(self, timeline: int) -> int:
        """The number of the first segment of a timeline, 0 where that is not known."""
        parent = self.parent(timeline)
        return parent.end // self._index.segment_size if parent else 0

    def descends(self, timeline: int, ancestor: int, lsn: Lsn) -> bool:
        """Whether a timeline is the ancestor, or left it at this position or later, directly or over others."""
        return timeline == ancestor or any(switch.timeline == ancestor and switch.end >= lsn for switch in self._histories.get(timeline, ()))

    def way(self, timeline: int, first: int, last: int | None = None) -> tuple[Stretch, ...]:
        """The segments that recovery towards a timeline reads, from a number on; to the end of the timeline without a last."""
        size = self._index.segment_size
        history = self._histories.get(timeline, ())
        steps = [*(switch.timeline for switch in history), timeline]
        begins = [0, *(switch.end // size for switch in history)]
        end = self._ends.get(timeline, begins[-1] - 1) if last is None else last
        lasts = [*(begin - 1 for begin in begins[1:]), end]
        stretches = [Stretch(step, max(begin, first), min(stop, end)) for step, begin, stop in zip(steps, begins, lasts, strict=True)]
        return tuple(stretch for stretch in stretches if stretch.first <= stretch.last)

    def first_missing(self, way: Iterable[Stretch]) -> tuple[int, int] | None:
        """Timeline and number of the first segment of a way that is not stored."""
        for timeline, first, last in way:
            missing = self._index.segments_of(timeline).first_missing(first, last)
            if missing is not None:
                return timeline, missing
        return None


def reach_of(need: Need, index: WalIndex, lines: Lines, target: int | None = None) -> Reach:
    """Tell how far one gets from a backup: to the end of a timeline, by default the newest that descends from it."""
    first = need.start // index.segment_size
    if target is None:
        target = max((one for one in lines.timelines if lines.descends(one, need.timeline, need.stop)), default=need.timeline)
    way = lines.way(target, first)
    consistent = _consistent(need, index, lines, target)
    lacking = lines.first_missing(consistent)
    missing = lines.first_missing(way) or lacking
    return Reach(need, consistent, lacking and index.name(*lacking), target, way, missing and index.name(*missing), _end(index, way, missing))


def _consistent(need: Need, index: WalIndex, lines: Lines, target: int) -> tuple[Stretch, ...]:
    """What makes a backup usable: on its own timeline, else towards the target, which may have the last of it in a segment of its own."""
    if not need.online:
        return ()
    first = need.start // index.segment_size
    last = max(first, (need.stop - 1) // index.segment_size)
    own, other = lines.way(need.timeline, first, last), lines.way(target, first, last)
    return other if lines.first_missing(own) and not lines.first_missing(other) else own


def reach_without(reach: Reach, index: WalIndex, useless: Iterable[tuple[int, int]]) -> Reach:
    """The same where some segments that are stored, by timeline and number, are of no use."""
    known = list(useless)
    lacking = _first_of(reach.consistent, index, reach.unusable_without, known)
    missing = _first_of(reach.way, index, reach.missing, known) or lacking
    return reach._replace(
        unusable_without=lacking and index.name(*lacking),
        missing=missing and index.name(*missing),
        end=_end(index, reach.way, missing) if missing else reach.end,
    )


def _first_of(way: Iterable[Stretch], index: WalIndex, missing: str | None, useless: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first segment of a way that is missing or of no use."""
    stops = [*useless, *([(int(missing[:8], 16), index.number(missing))] if missing else [])]
    for timeline, first, last in way:
        numbers = [number for one, number in stops if one == timeline and first <= number <= last]
        if numbers:
            return timeline, min(numbers)
    return None


def _end(index: WalIndex, way: tuple[Stretch, ...], missing: tuple[int, int] | None) -> str | None:
    """The last segment of a way before the one that is missing."""
    end: tuple[int, int] | None = None
    for timeline, first, last in way:
        if missing is not None and missing[0] == timeline and first <= missing[1] <= last:
            end = (timeline, missing[1] - 1) if missing[1] > first else end
            break
        end = timeline, last
    return index.name(*end) if end else None


def gaps_of(index: WalIndex, lines: Lines, reaches: Sequence[Reach]) -> Iterator[Gap]:
    """Yield what is not stored, by timeline and position, with the backups in whose way it is."""
    for timeline in sorted({*lines.timelines, *(stretch.timeline for reach in reaches for stretch in (*reach.consistent, *reach.way))}):
        for absent in _absent(timeline, index, reaches):
            needed_by = {reach.need.name: None for reach in reaches if any(_meet(timeline, absent, stretch) for stretch in (*reach.consistent, *reach.way))}
            yield Gap(timeline, absent.first, absent.last, tuple(needed_by))


def _meet(timeline: int, absent: Range, stretch: Stretch) -> bool:
    return stretch.timeline == timeline and stretch.first <= absent.last and absent.first <= stretch.last


def _absent(timeline: int, index: WalIndex, reaches: Sequence[Reach]) -> Iterator[Range]:
    """Yield the ranges of a timeline that are not stored: before, between and after those that are."""
    segments = index.segments_of(timeline)
    asked = [stretch for reach in reaches for stretch in (*reach.consistent, *reach.way) if stretch.timeline == timeline]
    first = min((stretch.first for stretch in asked), default=None)
    last = max((stretch.last for stretch in asked), default=None)
    if not segments:
        if first is not None and last is not None:
            yield Range(first, last)
        return
    if first is not None and first < segments.first:
        yield Range(first, segments.first - 1)
    yield from segments.gaps()
    if last is not None and segments.last < last:
        yield Range(segments.last + 1, last)


def needless(index: WalIndex, lines: Lines, needs: Sequence[Need]) -> dict[int, int]:
    """Count, per timeline, the segments that no recovery from one of the backups reads."""
    return {timeline: index.segments_of(timeline).total_below(_needed_from(timeline, index, lines, needs)) for timeline in index.timelines}


def _needed_from(timeline: int, index: WalIndex, lines: Lines, needs: Sequence[Need]) -> int:
    """The number from which on segments of a timeline can be of use; where lineage is not known, all can."""
    size = index.segment_size
    segments = index.segments_of(timeline)
    never = segments.last + 1 if segments else 0
    found = [never]
    for need in needs:
        if lines.descends(timeline, need.timeline, need.stop):
            found.append(max(need.start // size, lines.begin(timeline)))
        elif lines.descends(need.timeline, timeline, need.start):
            found.append(need.start // size)
        elif timeline > need.timeline and timeline > 1 and lines.parent(timeline) is None:
            found.append(0)
    return min(found)
