"""What goes and what stays: against the ways that recovery can take, and case by case."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wal_e.archive.retention import Before, BeforeSegment, Held, Holdings, Remnant, Retain, Start, WalNeed, plan
from wal_e.errors import UsageError
from wal_e.postgres.wal import Lsn, Switch, segment_name

SIZE = 16 << 20
NOW = datetime(2026, 3, 1, tzinfo=UTC)
ANCIENT = datetime(2000, 1, 1, tzinfo=UTC)
LAST = 280  # the highest segment in these worlds; a name's middle part changes at 256


def segment(timeline, number):
    return segment_name(timeline, number * SIZE, SIZE)


def held(timeline, number, hours=0, *, identifier=7, size=SIZE, usable=True):
    """A backup that was finished so many hours after a moment and took one."""
    name = f"base_{segment(timeline, number)}_00000040"
    finished = NOW + timedelta(hours=hours)
    return Held(name, segment(timeline, number), finished - timedelta(hours=1), finished, identifier, size, usable)


def history(*switches):
    return tuple(Switch(timeline, Lsn(number * SIZE + 4711)) for timeline, number in switches)


def need(planned, holdings):
    return WalNeed(planned.starts, holdings)


def names(backups):
    return [backup.name for backup in backups]


@st.composite
def worlds(draw):
    """Timelines that left each other anywhere, backups on them that finished in any order, histories that are known in part."""
    paths = {1: ()}
    for timeline in range(2, draw(st.integers(1, 6)) + 1):
        parent = draw(st.sampled_from(sorted(paths)))
        begin = paths[parent][-1].end if paths[parent] else 0
        paths[timeline] = (*paths[parent], Switch(parent, Lsn(draw(st.integers(begin, LAST * SIZE)))))
    backups = {}
    for hours in range(draw(st.integers(1, 8))):
        timeline = draw(st.sampled_from(sorted(paths)))
        begin = paths[timeline][-1].end if paths[timeline] else 0
        lsn = draw(st.integers(begin, LAST * SIZE))
        one = held(timeline, lsn // SIZE, hours, identifier=draw(st.sampled_from([7, None])))
        name = f"base_{one.segment}_{lsn % SIZE:08d}"
        backups[name] = (one._replace(name=name), lsn)
    known = {timeline: path for timeline, path in paths.items() if path and draw(st.booleans())}
    return paths, backups, known


POLICIES = st.one_of(st.integers(1, 5).map(Retain), st.integers(0, 7))


def chosen(policy, backups):
    return policy if isinstance(policy, Retain) else Before(list(backups)[policy % len(backups)])


def needed(paths, backup, lsn):
    """Every segment that some recovery from this backup may read, along each timeline that it can reach."""
    own = int(backup.segment[:8], 16)
    for target, path in paths.items():
        steps = [*path, Switch(target, Lsn(LAST * SIZE))]
        ends = {switch.timeline: switch.end for switch in steps}
        if own not in ends or ends[own] < lsn:
            continue
        begins = {own: lsn} | {later.timeline: earlier.end for earlier, later in pairwise(steps) if later.timeline > own}
        for timeline, begin in begins.items():
            for number in range(max(begin, lsn) // SIZE, ends[timeline] // SIZE + 1):
                yield segment(timeline, number)


@given(worlds(), POLICIES, st.booleans())
def test_nothing_goes_that_recovery_from_a_kept_backup_may_read(world, policy, several_clusters):
    paths, backups, known = world
    holdings = Holdings([backup for backup, _ in backups.values()], histories=known, system_identifiers=frozenset({7, 8} if several_clusters else {7}))
    planned = plan(holdings, chosen(policy, backups))
    judge = need(planned, holdings)
    for backup in planned.kept:
        for name in needed(paths, *backups[backup.name]):
            for file in (name, f"{name}.partial", f"{name}.00000028.backup"):
                assert judge.keeps(file, ANCIENT), (backup.name, file)


@given(worlds(), POLICIES)
def test_once_done_the_same_plan_finds_nothing_more(world, policy):
    _, backups, known = world
    files = [segment(timeline, number) for timeline in world[0] for number in range(0, LAST, 9)]
    before = Holdings([backup for backup, _ in backups.values()], histories=known)
    planned = plan(before, chosen(policy, backups))
    left = [file for file in files if need(planned, before).keeps(file, ANCIENT)]
    after = before._replace(held=planned.kept)
    again = plan(after, chosen(policy, backups))
    assert again.going == ()
    assert again.kept == planned.kept
    assert all(need(again, after).keeps(file, ANCIENT) for file in left)


@given(worlds(), POLICIES)
def test_the_newest_backup_always_stays(world, policy):
    _, backups, known = world
    holdings = Holdings([backup for backup, _ in backups.values()], histories=known)
    planned = plan(holdings, chosen(policy, backups))
    assert planned.kept[-1] == holdings.held[-1]
    assert sorted(planned.going + planned.kept) == sorted(holdings.held)


@given(worlds(), st.integers(1, 6), st.integers(0, LAST))
def test_before_a_segment_all_backups_stay_that_lie_after_it_or_elsewhere(world, timeline, number):
    paths, backups, known = world
    assume(timeline in paths)
    holdings = Holdings([backup for backup, _ in backups.values()], histories=known)
    ancestors = {switch.timeline for switch in paths[timeline]}
    planned = plan(holdings, BeforeSegment(segment(timeline, number)))
    for backup in planned.going:
        assert int(backup.segment[:8], 16) in {timeline, *ancestors}
        assert backup.segment[8:] < segment(timeline, number)[8:]
    judge = need(planned, holdings)
    assert all(judge.keeps(segment(timeline, later), ANCIENT) for later in range(number, LAST))
    for backup in planned.kept:
        assert all(judge.keeps(name, ANCIENT) for name in needed(paths, *backups[backup.name]))


def test_the_archive_on_which_the_original_was_observed():
    """The original deleted the segment of timeline 2, too, which a server may be writing; and it never deleted .partial files."""
    holdings = Holdings([held(1, 5)], histories={2: history((1, 1))})
    judge = need(plan(holdings, Before(held(1, 5).name)), holdings)
    stored = NOW  # after the backup
    files = [segment(1, 1), segment(1, 2), f"{segment(1, 2)}.partial", f"{segment(1, 1)}.00000028.backup", segment(2, 2), segment(1, 255)]
    assert [file for file in files if judge.keeps(file, stored)] == [segment(2, 2), segment(1, 255)]
    assert not judge.keeps(segment(2, 2), ANCIENT)


def test_a_start_segment_is_needed_and_the_one_before_it_is_not():
    holdings = Holdings([held(1, 256)])
    judge = need(plan(holdings, Retain(1)), holdings)
    assert judge.keeps(segment(1, 256), ANCIENT)
    assert not judge.keeps(segment(1, 255), NOW)


def test_what_lies_behind_the_start_goes_on_every_timeline_that_led_to_it_however_late_it_was_stored():
    holdings = Holdings([held(3, 50)], histories={2: history((1, 20)), 3: history((1, 20), (2, 30))})
    judge = need(plan(holdings, Retain(1)), holdings)
    later = NOW + timedelta(days=1)
    assert not any(judge.keeps(file, later) for file in [segment(1, 5), segment(1, 19), segment(2, 20), segment(2, 29), segment(3, 30), segment(3, 49)])
    assert judge.keeps(segment(1, 21), later), "after 1 was left, somebody may write there"
    assert not judge.keeps(segment(1, 21), ANCIENT)


def test_a_recovery_back_in_time_makes_the_newest_backup_the_one_with_the_lower_position():
    holdings = Holdings([held(1, 100, 1), held(2, 60, 2)], histories={2: history((1, 50))})
    planned = plan(holdings, Retain(1))
    assert names(planned.kept) == [held(2, 60).name]
    judge = need(planned, holdings)
    assert judge.keeps(segment(2, 60), ANCIENT)
    assert not judge.keeps(segment(1, 100), ANCIENT)


def test_timelines_that_leave_after_the_start_are_kept_and_those_before_it_are_not():
    holdings = Holdings([held(1, 40)], histories={2: history((1, 30)), 3: history((1, 45)), 4: history((1, 45), (3, 46)), 5: history((1, 30), (2, 60))})
    judge = need(plan(holdings, Retain(1)), holdings)
    assert [timeline for timeline in range(2, 6) if judge.keeps(segment(timeline, 70), ANCIENT)] == [3, 4]


def test_a_timeline_whose_history_is_not_known_is_kept_from_the_start_on():
    holdings = Holdings([held(1, 40)])
    judge = need(plan(holdings, Retain(1)), holdings)
    assert judge.keeps(segment(2, 40), ANCIENT)
    assert judge.keeps(segment(2, 39), NOW)
    assert not judge.keeps(segment(2, 39), ANCIENT)


def test_a_server_that_has_no_backup_yet_keeps_its_wal():
    holdings = Holdings([held(1, 100)], histories={2: history((1, 50))})
    judge = need(plan(holdings, Retain(1)), holdings)
    assert judge.keeps(segment(2, 55), NOW)


def test_the_clocks_of_store_and_server_may_differ():
    holdings = Holdings([held(1, 100)], histories={2: history((1, 50))})
    judge = need(plan(holdings, Retain(1)), holdings)
    started = held(1, 100).started
    assert judge.keeps(segment(2, 55), started - timedelta(minutes=30))
    assert not judge.keeps(segment(2, 55), started - timedelta(hours=2))


def test_backups_of_several_clusters_go_by_time_and_their_positions_prove_nothing():
    old, new = held(1, 200, 1, identifier=7), held(1, 5, 2, identifier=8)
    holdings = Holdings([old, new])
    planned = plan(holdings, Retain(1))
    assert names(planned.going) == [old.name]
    judge = need(planned, holdings)
    assert judge.keeps(segment(1, 5), ANCIENT)
    assert judge.keeps(segment(1, 4), NOW)
    assert not judge.keeps(segment(1, 4), ANCIENT)


def test_a_bare_segment_is_refused_where_there_are_several_clusters():
    with pytest.raises(UsageError, match="too little"):
        plan(Holdings([held(1, 200, 1), held(1, 5, 2, identifier=8)]), BeforeSegment(segment(1, 9)))
    with pytest.raises(UsageError):
        plan(Holdings([held(1, 200, 1)], system_identifiers=frozenset({7, 8})), BeforeSegment(segment(1, 9)))


def test_a_backup_that_cannot_be_read_stays_is_not_counted_and_holds_its_wal():
    damaged = held(1, 10, 1, usable=False)
    holdings = Holdings([damaged, held(1, 20, 2), held(1, 30, 3)])
    planned = plan(holdings, Retain(1))
    assert names(planned.going) == [held(1, 20).name]
    assert need(planned, holdings).keeps(segment(1, 10), ANCIENT)
    assert plan(Holdings([held(1, 20, 1), held(1, 30, 2, usable=False)]), Retain(1)).going == ()


def test_before_passes_over_a_backup_that_cannot_be_read():
    planned = plan(Holdings([held(1, 10, 1, usable=False), held(1, 20, 2), held(1, 30, 3)]), Before(held(1, 30).name))
    assert names(planned.going) == [held(1, 20).name]


def test_the_segment_in_which_a_timeline_was_left_stays_for_a_backup_that_starts_in_it():
    holdings = Holdings([held(2, 20)], histories={2: history((1, 20))})
    judge = need(plan(holdings, Retain(1)), holdings)
    assert [number for number in range(15, 25) if judge.keeps(segment(1, number), ANCIENT)] == [20]


def test_before_a_segment_a_backup_stays_that_was_made_on_a_timeline_after_it_was_left():
    holdings = Holdings([held(1, 40, 1), held(1, 60, 2), held(2, 80, 3)], histories={2: history((1, 50))})
    assert names(plan(holdings, BeforeSegment(segment(2, 70))).going) == [held(1, 40).name]


def test_fewer_backups_than_to_retain_all_stay_and_older_wal_goes():
    holdings = Holdings([held(1, 20, 1), held(1, 30, 2)])
    planned = plan(holdings, Retain(7))
    assert planned.going == ()
    assert not need(planned, holdings).keeps(segment(1, 19), ANCIENT)
    assert need(planned, holdings).keeps(segment(1, 20), ANCIENT)


def test_with_nothing_to_keep_no_wal_goes():
    assert need(plan(Holdings([]), Retain(1)), Holdings([])).keeps(segment(1, 1), ANCIENT)


def remnant(number, state, hours):
    stored = NOW + timedelta(hours=hours)
    return Remnant(f"base_{segment(1, number)}_00000040", segment(1, number), stored, stored, state)


def test_a_push_at_work_keeps_the_wal_from_its_start_on():
    holdings = Holdings([held(1, 100)], remnants=[remnant(60, "alive", 0)])
    planned = plan(holdings, Retain(1))
    assert planned.remnants_going == ()
    assert need(planned, holdings).keeps(segment(1, 60), ANCIENT)
    assert not need(planned, holdings).keeps(segment(1, 59), ANCIENT)


@pytest.mark.parametrize(("state", "hours", "goes"), [("deleted", 0, True), ("dead", -5, True), ("dead", 5, False), ("alive", -5, False)])
def test_remnants_go_when_their_deletion_had_begun_or_when_they_are_dead_and_older_than_what_stays(state, hours, goes):
    planned = plan(Holdings([held(1, 100)], remnants=[remnant(60, state, hours)]), Retain(1))
    assert bool(planned.remnants_going) is goes
    assert bool(planned.remnants_kept) is not goes


def test_backups_of_other_programs_keep_their_wal():
    holdings = Holdings([held(1, 100)], foreign=[Start(segment(1, 70), NOW)])
    judge = need(plan(holdings, Retain(1)), holdings)
    assert judge.keeps(segment(1, 70), ANCIENT)
    assert not judge.keeps(segment(1, 69), ANCIENT)


@pytest.mark.parametrize("size", [1 << 20, 64 << 20, 1 << 30])
def test_switches_are_compared_in_the_cluster_s_own_segments(size):
    start = segment_name(1, 40 * size, size)
    backup = held(1, 0, size=size)._replace(segment=start)
    left = Switch(1, Lsn(41 * size))
    for switch, kept in ((Lsn(39 * size), False), (Lsn(41 * size), True)):
        holdings = Holdings([backup], histories={2: (left._replace(end=switch),)})
        assert need(plan(holdings, Retain(1)), holdings).keeps(segment_name(2, 42 * size, size), ANCIENT) is kept
