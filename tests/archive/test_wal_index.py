"""What a listing tells of stored WAL, and how far one gets with it: case by case, and against a recovery that reads segment by segment."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.archive import layout
from wal_e.archive.ranges import Ranges
from wal_e.archive.wal_index import WalIndex, index_wal
from wal_e.archive.wal_reach import Lines, Need, gaps_of, needless, reach_of
from wal_e.blobstore.base import Blob
from wal_e.errors import WalRefused
from wal_e.postgres.wal import Lsn, Switch, segment_name

SIZE = 16 << 20
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def segment(timeline, number, size=SIZE):
    return segment_name(timeline, number * size, size)


def indexed(*names, size=SIZE, suffixes=(".lzo",)):
    """The index of a store that holds these names, in order of key, each of 10 bytes and a second younger than the one before."""
    keys = sorted(name if name.startswith("wal_005/") else layout.wal_key(name, ".lzo") for name in names)
    blobs = [Blob(key, 10, NOW + timedelta(seconds=at)) for at, key in enumerate(keys)]
    return index_wal(((layout.parse_wal_key(blob.key, suffixes), blob) for blob in blobs), size)


def stored(timelines, size=SIZE):
    return indexed(*(segment(timeline, number, size) for timeline, numbers in timelines.items() for number in numbers), size=size)


def history(*switches):
    return tuple(Switch(timeline, Lsn(number * SIZE + 4711)) for timeline, number in switches)


def need(timeline, first, last=None, *, online=True, name="base"):
    start = Lsn(first * SIZE + 40)
    return Need(name, NOW, timeline, start, start + 100 if last is None else Lsn((last + 1) * SIZE), online)


def ranges(timeline, wal):
    return [tuple(one) for one in wal.segments_of(timeline)]


def gaps(wal, lines, *reaches):
    return [(gap.timeline, gap.first, gap.last, gap.needed_by) for gap in gaps_of(wal, lines, reaches)]


# --- ranges ---

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda one: (one[0], one[0] + one[1])), max_size=12)


@given(SPANS)
def test_ranges_are_the_set_of_what_was_added_in_any_order(spans):
    numbers = {number for first, last in spans for number in range(first, last + 1)}
    found = Ranges(spans)
    assert [number for one in found for number in range(one.first, one.last + 1)] == sorted(numbers)
    assert all(later.first > earlier.last + 1 for earlier, later in pairwise(found)), "ranges that touch are one"
    assert found.total == len(numbers)
    assert bool(found) == bool(numbers)
    assert [number in found for number in range(80)] == [number in numbers for number in range(80)]
    if numbers:
        assert (found.first, found.last) == (min(numbers), max(numbers))
        assert {number for gap in found.gaps() for number in range(gap.first, gap.last + 1)} == set(range(min(numbers), max(numbers))) - numbers


@given(SPANS, st.integers(0, 80), st.integers(0, 80))
def test_the_first_missing_and_those_below_are_those_of_the_set(spans, first, last):
    numbers = {number for begin, end in spans for number in range(begin, end + 1)}
    found = Ranges(spans)
    assert found.first_missing(first, last) == min(set(range(first, last + 1)) - numbers, default=None)
    assert found.total_below(first) == len([number for number in numbers if number < first])


def test_a_million_segments_without_a_gap_are_one_range():
    found = Ranges()
    for number in range(1_000_000):
        found.add(number)
    assert [tuple(one) for one in found] == [(0, 999_999)]


# --- the index ---


def test_segments_that_follow_each_other_are_one_range_across_the_middle_part_of_the_name():
    wal = stored({1: [1, 2, 3, 7, *range(254, 259)], 2: [4]})
    assert segment(1, 256) == "000000010000000100000000"
    assert ranges(1, wal) == [(1, 3), (7, 7), (254, 258)]
    assert ranges(2, wal) == [(4, 4)]
    assert wal.timelines[1].stored_bytes == 90
    assert wal.timelines[1].newest == NOW + timedelta(seconds=8)
    assert wal.newest == NOW + timedelta(seconds=9)


def test_what_is_no_whole_segment_is_told_apart_and_never_counts_as_one():
    one = segment(1, 5)
    wal = indexed(f"{one}.partial", f"{one}.00000028.backup", "00000002.history", f"{segment(2, 5)}.streaming", "wal_005/notes.txt", f"wal_005/{one}.gz")
    assert (ranges(1, wal), ranges(2, wal)) == ([], [])
    assert [tuple(part) for part in wal.timelines[1].partial] == [(5, 5)]
    assert [tuple(part) for part in wal.timelines[2].streaming] == [(5, 5)]
    assert wal.histories == {2: "wal_005/00000002.history.lzo"}
    assert (wal.backup_files, wal.unknown) == (1, 2)


def test_a_segment_under_two_suffixes_counts_once_and_is_told():
    twice = [layout.wal_key(segment(1, 2), suffix) for suffix in (".lzo", ".zst")]
    wal = indexed(segment(1, 1), *twice, segment(1, 3), suffixes=(".lzo", ".zst"))
    assert ranges(1, wal) == [(1, 3)]
    assert [tuple(one) for one in wal.timelines[1].twice] == [(2, 2)]
    assert wal.timelines[1].stored_bytes == 40


@pytest.mark.parametrize(("size", "by_names"), [(1 << 20, 1 << 20), (4 << 20, 4 << 20), (16 << 20, 16 << 20), (64 << 20, 16 << 20)])
def test_the_names_tell_of_a_smaller_segment_size_and_not_of_a_larger(size, by_names):
    last = (1 << 32) // size - 1
    assert stored({1: [last]}, size).size_by_names == by_names


def test_a_name_that_segments_of_this_size_cannot_have_is_counted_and_is_no_segment():
    wal = indexed("000000010000000000000FFF", segment(1, 1))
    assert ranges(1, wal) == [(1, 1)]
    assert wal.misfit == (1, "000000010000000000000FFF")
    with pytest.raises(WalRefused):
        wal.number("000000010000000000000FFF")


# --- how far one gets ---


def test_a_whole_line_is_good_to_its_end():
    wal = stored({1: range(3, 10)})
    reach = reach_of(need(1, 4, 5), wal, Lines(wal, {}, {}))
    assert (reach.unusable_without, reach.missing, reach.target, reach.end) == (None, None, 1, segment(1, 9))
    assert reach.consistent == ((1, 4, 5),)


def test_the_new_timeline_begins_in_the_segment_in_which_it_left_the_old_one():
    histories = {2: history((1, 9))}
    wal = stored({1: range(3, 9), 2: range(9, 12)})
    lines = Lines(wal, histories, {})
    reach = reach_of(need(1, 4), wal, lines)
    assert (reach.target, reach.missing, reach.end) == (2, None, segment(2, 11))
    assert gaps(wal, lines, reach) == []
    assert lines.parent(2) == Switch(1, Lsn(9 * SIZE + 4711))


def test_without_the_first_segment_of_the_new_timeline_one_stops_before_it_even_if_the_old_one_has_that_segment():
    wal = stored({1: range(3, 10), 2: range(10, 12)})
    lines = Lines(wal, {2: history((1, 9))}, {})
    reach = reach_of(need(1, 4), wal, lines)
    assert (reach.missing, reach.end) == (segment(2, 9), segment(1, 8))
    assert gaps(wal, lines, reach) == [(2, 9, 9, ("base",))]


def test_a_switch_on_a_boundary_begins_with_the_segment_after_it():
    wal = stored({1: range(3, 9), 2: range(9, 12)})
    reach = reach_of(need(1, 4), wal, Lines(wal, {2: (Switch(1, Lsn(9 * SIZE)),)}, {}))
    assert reach.missing is None
    assert reach.way == ((1, 4, 8), (2, 9, 11))


def test_a_timeline_that_was_left_in_the_segment_where_it_began_needs_none_of_its_own():
    wal = stored({1: range(3, 9), 3: range(9, 12)})
    lines = Lines(wal, {2: history((1, 9)), 3: (*history((1, 9)), Switch(2, Lsn(9 * SIZE + 5000)))}, {})
    reach = reach_of(need(1, 4), wal, lines)
    assert (reach.target, reach.missing, reach.end) == (3, None, segment(3, 11))


def test_a_timeline_of_which_only_the_history_is_there_ends_where_it_began():
    wal = stored({1: range(3, 9)})
    reach = reach_of(need(1, 4), wal, Lines(wal, {2: history((1, 9))}, {}))
    assert (reach.target, reach.missing, reach.end) == (2, None, segment(1, 8))
    shorter = stored({1: range(3, 8)})
    assert reach_of(need(1, 4), shorter, Lines(shorter, {2: history((1, 9))}, {})).missing == segment(1, 8)


def test_a_timeline_that_left_before_the_backup_was_consistent_is_not_its_target():
    wal = stored({1: range(3, 12), 2: range(5, 30)})
    lines = Lines(wal, {2: history((1, 5))}, {})
    assert reach_of(need(1, 4, 6), wal, lines).target == 1
    assert reach_of(need(1, 4), wal, lines).target == 2


def test_a_backup_without_its_own_wal_is_unusable_and_says_the_first_segment():
    wal = stored({1: [3, 5, 7, 8]})
    reach = reach_of(need(1, 4, 6), wal, Lines(wal, {}, {}))
    assert (reach.unusable_without, reach.missing, reach.end) == (segment(1, 4), segment(1, 4), None)


def test_a_backup_with_nothing_at_all_misses_what_it_needs():
    wal = stored({})
    lines = Lines(wal, {}, {})
    reach = reach_of(need(1, 4, 5), wal, lines)
    assert reach.unusable_without == reach.missing == segment(1, 4)
    assert gaps(wal, lines, reach) == [(1, 4, 5, ("base",))]


def test_an_offline_backup_brings_its_own_wal_and_needs_what_comes_after_it_only_if_there_is_any():
    nothing, later = stored({1: [1, 2]}), stored({1: [1, 2, 5]})
    assert reach_of(need(1, 4, online=False), nothing, Lines(nothing, {}, {})).missing is None
    broken = reach_of(need(1, 4, online=False), later, Lines(later, {}, {}))
    assert (broken.unusable_without, broken.missing) == (None, segment(1, 4))


def test_a_backup_whose_end_is_stored_on_the_timeline_that_took_over_is_usable():
    wal = stored({1: [4], 2: [5, 6]})
    reach = reach_of(need(1, 4, 4)._replace(stop=Lsn(5 * SIZE + 100)), wal, Lines(wal, {2: history((1, 5))}, {}))
    assert (reach.unusable_without, reach.missing) == (None, None)


def test_what_a_server_has_archived_counts_as_the_end():
    wal = stored({1: range(3, 9)})
    lines = Lines(wal, {}, {1: 11})
    reach = reach_of(need(1, 4), wal, lines)
    assert (reach.missing, reach.end) == (segment(1, 9), segment(1, 8))
    assert gaps(wal, lines, reach) == [(1, 9, 11, ("base",))]
    assert reach_of(need(1, 4), wal, Lines(wal, {}, {1: 5})).missing is None


def test_gaps_name_the_backups_they_are_in_the_way_of_and_no_others():
    wal = stored({1: [1, 3, *range(5, 10), *range(12, 20)], 2: range(9, 12)})
    lines = Lines(wal, {2: history((1, 9))}, {})
    reaches = [reach_of(need(1, 3, name="old"), wal, lines), reach_of(need(1, 6, name="new"), wal, lines)]
    assert gaps(wal, lines, *reaches) == [(1, 2, 2, ()), (1, 4, 4, ("old",)), (1, 10, 11, ())]
    assert [reach.missing for reach in reaches] == [segment(1, 4), None]


def test_segments_no_backup_needs_are_those_before_all_backups_and_on_lines_that_none_follows():
    wal = stored({1: range(1, 20), 2: range(9, 12), 3: range(2, 5)})
    lines = Lines(wal, {2: history((1, 9)), 3: history((1, 2))}, {})
    assert needless(wal, lines, [need(1, 6)]) == {1: 5, 2: 0, 3: 3}
    assert needless(wal, lines, []) == {1: 19, 2: 3, 3: 3}


def test_a_backup_that_began_before_the_switch_needs_the_old_timeline_from_its_start():
    wal = stored({1: range(5, 9), 2: range(9, 12)})
    lines = Lines(wal, {2: history((1, 9))}, {})
    backup = need(2, 7, 10)
    assert reach_of(backup, wal, lines).consistent == ((1, 7, 8), (2, 9, 10))
    assert needless(wal, lines, [backup]) == {1: 2, 2: 0}


def test_where_the_history_of_a_timeline_is_not_known_its_segments_may_be_needed():
    wal = stored({1: range(5, 9), 2: range(2, 5)})
    assert needless(wal, Lines(wal, {}, {}), [need(1, 6)]) == {1: 1, 2: 0}


@st.composite
def worlds(draw):
    """Timelines that left each other anywhere, some of their segments stored, and a backup on one of them."""
    paths = {1: ()}
    for timeline in range(2, draw(st.integers(1, 5)) + 1):
        parent = draw(st.sampled_from(sorted(paths)))
        begin = paths[parent][-1].end if paths[parent] else 0
        paths[timeline] = (*paths[parent], Switch(parent, Lsn(draw(st.integers(begin, 30 * SIZE)))))
    have = {timeline: draw(st.sets(st.integers(0, 30), min_size=1)) for timeline in paths}
    timeline = draw(st.sampled_from(sorted(paths)))
    begin = paths[timeline][-1].end if paths[timeline] else 0
    start = draw(st.integers(begin, 31 * SIZE - 1))
    stop = draw(st.integers(start, 31 * SIZE - 1))
    return paths, have, Need("base", NOW, timeline, Lsn(start), Lsn(stop), True)


def asked(path, timeline, number):
    """The timeline whose segment of this number a server reads that recovers towards a timeline: the newest that had begun."""
    later = [*(step.timeline for step in path), timeline][1:]
    begins = {1: 0} | {one: step.end // SIZE for step, one in zip(path, later, strict=True)}
    return max(step for step, begin in begins.items() if begin <= number)


@given(worlds())
def test_the_first_missing_segment_is_the_one_at_which_a_recovery_stops(world):
    paths, have, backup = world
    wal = stored(have)
    histories = {timeline: path for timeline, path in paths.items() if path}
    lines = Lines(wal, histories, {})
    reach = reach_of(backup, wal, lines)
    follows = [
        one for one, path in paths.items() if one == backup.timeline or any(step.timeline == backup.timeline and step.end >= backup.stop for step in path)
    ]
    assert reach.target == max(follows)
    path = paths[reach.target]
    first, end = backup.start // SIZE, max(have[reach.target])
    read = [(asked(path, reach.target, number), number) for number in range(first, end + 1)]
    lacking = [one for one in read if one[1] not in have[one[0]]]
    assert [(step, number) for step, *span in reach.way for number in range(span[0], span[1] + 1)] == read
    if lacking:
        assert reach.missing == segment(*lacking[0])
        absent = {(gap.timeline, number): gap.needed_by for gap in gaps_of(wal, lines, [reach]) for number in range(gap.first, gap.last + 1)}
        assert all(absent[one] == ("base",) for one in lacking)
    useless = needless(wal, lines, [backup])
    for step, number in read:
        if number in have[step]:
            assert number >= sorted(have[step])[useless[step]] if useless[step] < len(have[step]) else False


def test_a_timeline_that_only_a_history_names_is_there_and_where_it_left_is_known():
    wal = stored({1: range(3, 6), 3: range(9, 12)})
    lines = Lines(wal, {3: (*history((1, 6)), *history((2, 9)))}, {})
    assert (lines.timelines, lines.parent(2), lines.parent(1)) == ([1, 2, 3], *history((1, 6)), None)
    reach = reach_of(need(1, 4), wal, lines)
    assert (reach.missing, gaps(wal, lines, reach)) == (segment(2, 6), [(2, 6, 8, ("base",))])


def test_an_empty_prefix_is_an_empty_index():
    wal = index_wal([], SIZE)
    assert (wal.timelines, wal.newest, wal.size_by_names) == ({}, None, SIZE)
    assert Lines(wal, {}, {}).timelines == []
    assert isinstance(wal, WalIndex)
