"""Which ways without a gap lead from which backup to where: case by case."""

from datetime import UTC, datetime

import pytest

from wal_e.archive import layout
from wal_e.archive.recovery_window import Way, stored_way, unbroken_ways
from wal_e.archive.wal_index import index_wal
from wal_e.archive.wal_reach import Lines, Need, Stretch
from wal_e.blobstore.base import Blob
from wal_e.postgres.wal import Lsn, Switch, segment_name

SIZE = 16 << 20
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def stored(timelines):
    names = sorted(segment_name(timeline, number * SIZE, SIZE) for timeline, numbers in timelines.items() for number in numbers)
    return index_wal(((name, Blob(layout.wal_key(name, ".lzo"), 10, NOW)) for name in names), SIZE)


def need(name, first, last=None, *, timeline=1, online=True):
    return Need(name, NOW, timeline, Lsn(first * SIZE + 40), Lsn((first if last is None else last) * SIZE + 5000), online)


def history(*switches):
    return tuple(Switch(timeline, Lsn(number * SIZE + 4711)) for timeline, number in switches)


def windows(index, histories, *needs):
    found = unbroken_ways(needs, index, Lines(index, histories, {}))
    return [(one.timeline, one.need.name, [tuple(stretch) for stretch in one.way.stretches]) for one in found]


def test_backups_with_one_end_make_one_window_that_begins_with_the_oldest():
    index = stored({1: range(3, 20)})
    assert windows(index, {}, need("b", 9), need("a", 4, 5), need("c", 15)) == [(1, "a", [(1, 4, 19)])]


def test_a_gap_makes_two_windows_and_a_backup_into_which_it_falls_makes_none():
    index = stored({1: [*range(3, 10), *range(12, 20)]})
    expected = [(1, "a", [(1, 4, 9)]), (1, "c", [(1, 13, 19)])]
    assert windows(index, {}, need("a", 4), need("into it", 8, 11), need("c", 13), need("d", 14)) == expected


def test_without_its_first_segment_a_backup_has_no_window():
    assert windows(stored({1: range(5, 9)}), {}, need("a", 4)) == []
    assert windows(stored({}), {}, need("a", 4)) == []


def test_each_timeline_has_windows_of_its_own_from_backups_before_and_behind_the_fork():
    index = stored({1: range(3, 12), 2: range(7, 15)})
    histories = {2: history((1, 7))}
    found = windows(index, histories, need("before", 4), need("behind", 9), need("on two", 10, timeline=2))
    assert found == [(1, "before", [(1, 4, 11)]), (2, "before", [(1, 4, 6), (2, 7, 14)])]
    found = windows(index, histories, need("behind", 9), need("on two", 10, timeline=2))
    assert found == [(1, "behind", [(1, 9, 11)]), (2, "on two", [(2, 10, 14)])]


def test_a_gap_before_the_fork_leaves_the_new_timeline_to_the_backups_behind_it():
    index = stored({1: [3, 4, 6, 7], 2: range(7, 15)})
    found = windows(index, {2: history((1, 7))}, need("a", 3), need("b", 6), need("c", 9, timeline=2))
    assert found == [(1, "a", [(1, 3, 4)]), (1, "b", [(1, 6, 7)]), (2, "b", [(1, 6, 6), (2, 7, 14)])]


def test_a_timeline_of_which_only_the_history_is_stored_has_no_window():
    assert windows(stored({1: range(3, 8)}), {2: history((1, 7))}, need("a", 3)) == [(1, "a", [(1, 3, 7)])]


def test_a_backup_with_all_its_wal_in_itself_is_a_window_even_with_nothing_behind_it():
    assert windows(stored({}), {}, need("off", 4, online=False)) == [(1, "off", [])]
    assert windows(stored({1: range(4, 7)}), {}, need("off", 4, online=False)) == [(1, "off", [(1, 4, 6)])]


def test_a_stored_way_is_cut_before_the_first_segment_that_is_not_there():
    index = stored({1: [3, 4], 2: [5, 6, 8]})
    assert stored_way(index, [Stretch(1, 3, 4), Stretch(2, 5, 8)]) == Way(SIZE, (Stretch(1, 3, 4), Stretch(2, 5, 6)))
    assert stored_way(index, [Stretch(1, 2, 4)]) == Way(SIZE, ())
    assert stored_way(index, [Stretch(1, 3, 5), Stretch(2, 6, 6)]) == Way(SIZE, (Stretch(1, 3, 4),)), "nothing behind a gap counts"


def test_a_way_counts_its_segments_over_timelines_and_can_be_cut_at_positions():
    way = Way(SIZE, (Stretch(1, 254, 256), Stretch(2, 257, 258)))
    assert [way.name(position) for position in range(way.segments)] == [
        "0000000100000000000000FE",
        "0000000100000000000000FF",
        "000000010000000100000000",
        "000000020000000100000001",
        "000000020000000100000002",
    ]
    with pytest.raises(IndexError):
        way.name(5)
    assert way.from_lsn(Lsn(256 * SIZE)).stretches == (Stretch(1, 256, 256), Stretch(2, 257, 258))
    assert way.from_lsn(Lsn(0)) == way
    assert way.from_lsn(Lsn(259 * SIZE)).segments == 0
    assert way.up_to_lsn(Lsn(257 * SIZE)).stretches == (Stretch(1, 254, 256),), "a position on a boundary needs nothing behind it"
    assert way.up_to_lsn(Lsn(257 * SIZE + 1)).stretches == (Stretch(1, 254, 256), Stretch(2, 257, 257))
