"""Which stretches of stored WAL lead from a backup to somewhere, without a gap. Nothing here reads or writes.

A *way* is the segments that a recovery reads one after the other. Towards one timeline, backups in front of a gap come only
that far, and those behind it have a way of their own: each way without a gap is one window, which begins with the oldest of
its backups.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from wal_e.archive.wal_index import WalIndex
from wal_e.archive.wal_reach import Lines, Need, Stretch, reach_of
from wal_e.postgres.wal import Lsn, segment_name


class Way(NamedTuple):
    """Segments that a recovery reads one after the other; a position in it is counted from 0."""

    segment_size: int
    stretches: tuple[Stretch, ...]

    @property
    def segments(self) -> int:
        """How many segments."""
        return sum(last - first + 1 for _, first, last in self.stretches)

    def name(self, position: int) -> str:
        """The name of one of its segments."""
        for timeline, first, last in self.stretches:
            if position <= last - first:
                return segment_name(timeline, (first + position) * self.segment_size, self.segment_size)
            position -= last - first + 1
        raise IndexError(position)

    def from_lsn(self, lsn: Lsn) -> Way:
        """The same without the segments that end before a position."""
        number = lsn // self.segment_size
        return Way(self.segment_size, tuple(Stretch(one.timeline, max(one.first, number), one.last) for one in self.stretches if one.last >= number))

    def up_to_lsn(self, lsn: Lsn) -> Way:
        """The same without the segments that begin at a position or behind it."""
        number = (lsn - 1) // self.segment_size
        return Way(self.segment_size, tuple(Stretch(one.timeline, one.first, min(one.last, number)) for one in self.stretches if one.first <= number))


class Unbroken(NamedTuple):
    """A way to somewhere on a timeline, and the oldest backup that it leads away from; empty when that has all its WAL within itself."""

    timeline: int
    need: Need
    way: Way


def stored_way(index: WalIndex, stretches: Iterable[Stretch]) -> Way:
    """The beginning of a way, up to the first segment that is not stored."""
    stored: list[Stretch] = []
    for timeline, first, last in stretches:
        missing = index.segments_of(timeline).first_missing(first, last)
        if missing is None:
            stored.append(Stretch(timeline, first, last))
            continue
        if missing > first:
            stored.append(Stretch(timeline, first, missing - 1))
        break
    return Way(index.segment_size, tuple(stored))


def unbroken_ways(needs: Iterable[Need], index: WalIndex, lines: Lines) -> list[Unbroken]:
    """All windows, by timeline and then by where they begin.

    A way that ends on another timeline than it was meant for is one to that other timeline, and told there.
    """
    oldest: dict[tuple[int, Stretch | str], Unbroken] = {}
    for need in sorted(needs, key=lambda need: need.stop):
        for timeline in lines.timelines or [need.timeline]:
            if not lines.descends(timeline, need.timeline, need.stop):
                continue
            reach = reach_of(need, index, lines, timeline)
            way = stored_way(index, reach.way)
            ends_on = way.stretches[-1].timeline if way.stretches else need.timeline
            if reach.unusable_without is None and ends_on == timeline:
                end: Stretch | str = Stretch(timeline, 0, way.stretches[-1].last) if way.stretches else need.name
                oldest.setdefault((timeline, end), Unbroken(timeline, need, way))
    return sorted(oldest.values(), key=lambda one: (one.timeline, one.need.stop))
