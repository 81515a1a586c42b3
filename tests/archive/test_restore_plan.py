"""Points to restore to, as they are written, and the backups that lead there."""

from datetime import UTC, datetime, timedelta

import pytest

from wal_e.archive import layout
from wal_e.archive.restore_plan import (
    CURRENT,
    IMMEDIATE,
    LATEST,
    NAME,
    Course,
    Goal,
    courses,
    goal_at_lsn,
    goal_at_name,
    goal_at_time,
    goal_at_xid,
    parse_time,
    recovery_targets,
    shown_moment,
)
from wal_e.archive.wal_index import index_wal
from wal_e.archive.wal_reach import Lines, Need
from wal_e.blobstore.base import Blob
from wal_e.errors import UsageError
from wal_e.postgres.wal import Lsn, Switch, segment_name

SIZE = 16 << 20
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-03-01 12:00:00+00", NOON),
        ("2026-03-01 12:00:00.000+00:00", NOON),
        ("2026-03-01T12:00:00Z", NOON),
        (" 2026-03-01 13:00:00+01 ", NOON),
        ("2026-03-01 07:00:00-05", NOON),
        ("2026-03-01 13:00:00 Europe/Berlin", NOON),
        ("2026-03-01 12:00:00 UTC", NOON),
        ("2026-03-01 12:00:00.123456+00", NOON + timedelta(microseconds=123456)),
        ("2026-03-01 12:00:00.12+00", NOON + timedelta(milliseconds=120)),
    ],
)
def test_a_time_is_read_as_postgresql_and_iso_8601_write_it(text, moment):
    assert parse_time(text) == moment
    assert parse_time(shown_moment(moment)) == moment


def test_a_time_without_a_zone_is_local_and_shown_in_utc(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert goal_at_time("2026-03-01 21:00:00", inclusive=True).value == "2026-03-01 12:00:00+00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "12:00", "2026-13-01 00:00:00+00", "2026-03-01 12:00:00 Nowhere/City", "2026-03-01 12:00:00+01 UTC"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="not a point in time"):
        parse_time(text)


def test_inclusive_stops_at_the_first_commit_later_than_the_time_and_exclusive_at_one_of_that_time():
    assert goal_at_time("2026-03-01 12:00:00+00", inclusive=True).begins_after == NOON
    assert goal_at_time("2026-03-01 12:00:00+00", inclusive=False).begins_after == NOON - timedelta(microseconds=1)


def test_a_transaction_with_its_epoch_is_the_one_without():
    assert goal_at_xid(str(3 * 2**32 + 750), inclusive=True).xid == 750
    assert goal_at_xid("750", inclusive=True).value == "750"


@pytest.mark.parametrize(
    ("read", "text"),
    [(goal_at_lsn, "16"), (goal_at_lsn, "0/1G"), (goal_at_xid, "-1"), (goal_at_xid, "x"), (goal_at_xid, str(2**64))],
)
def test_what_is_no_position_and_no_transaction_is_refused(read, text):
    with pytest.raises(UsageError):
        read(text, inclusive=True)


@pytest.mark.parametrize("text", ["", "x" * 64, "ü" * 32])
def test_a_name_that_no_restore_point_can_have_is_refused(text):
    with pytest.raises(UsageError):
        goal_at_name(text)


def indexed(timelines):
    names = [segment_name(timeline, number * SIZE, SIZE) for timeline, numbers in timelines.items() for number in numbers]
    blobs = [Blob(layout.wal_key(name, ".lzo"), 10, NOON) for name in sorted(names)]
    return index_wal(((layout.parse_wal_key(blob.key, (".lzo",)), blob) for blob in blobs), SIZE)


def need(name, timeline, number):
    return Need(name, NOON + timedelta(hours=number), timeline, Lsn(number * SIZE + 40), Lsn(number * SIZE + 300), True)


INDEX = indexed({1: range(1, 9), 2: range(5, 12)})
LINES = Lines(INDEX, {2: (Switch(1, Lsn(5 * SIZE + 500)),)}, {})
BEFORE, AT, AFTER, ON_TWO = need("before", 1, 2), need("at", 1, 5), need("after", 1, 7), need("on two", 2, 9)
NEEDS = [BEFORE, AT, AFTER, ON_TWO]


def chosen(wanted, needs=NEEDS, index=INDEX, lines=LINES):
    return [(course.need.name, course.timeline) for course in courses(needs, index, lines, wanted)]


def test_latest_is_the_newest_timeline_to_which_a_backup_leads_and_the_last_backup_comes_first():
    assert chosen(LATEST) == [("on two", 2), ("at", 2), ("before", 2)]


def test_a_number_chooses_the_timeline_and_a_backup_that_ends_behind_the_fork_stays_on_the_old_one():
    assert chosen("1") == [("after", 1), ("at", 1), ("before", 1)]
    assert chosen("7") == []


def test_current_is_each_backups_own_timeline():
    assert chosen(CURRENT) == [("on two", 2), ("after", 1), ("at", 1), ("before", 1)]


def test_latest_with_one_backup_is_the_newest_that_descends_from_it():
    assert chosen(LATEST, [AFTER]) == [("after", 1)]
    assert chosen(LATEST, [BEFORE]) == [("before", 2)]
    assert chosen(LATEST, []) == []


def test_a_way_goes_over_the_fork_and_ends_before_a_gap():
    [course] = courses([BEFORE], INDEX, LINES, "2")
    assert [tuple(stretch) for stretch in course.way.stretches] == [(1, 2, 4), (2, 5, 11)]
    assert (course.way.segments, course.missing) == (10, None)
    index = indexed({1: range(1, 9), 2: (5, 6, 8)})
    [course] = courses([BEFORE], index, Lines(index, {2: (Switch(1, Lsn(5 * SIZE + 500)),)}, {}), "2")
    assert [tuple(stretch) for stretch in course.way.stretches] == [(1, 2, 4), (2, 5, 6)]
    assert course.missing == segment_name(2, 7 * SIZE, SIZE)


def course(timeline, own=1):
    return Course(need("base", own, 1), timeline, None, None, None)


@pytest.mark.parametrize(
    ("goal", "settings"),
    [
        (Goal(), {}),
        (Goal(IMMEDIATE), {"recovery_target": "immediate", "recovery_target_action": "pause"}),
        (Goal(NAME, "x"), {"recovery_target_name": "x", "recovery_target_action": "pause"}),
        (goal_at_lsn("0/a", inclusive=False), {"recovery_target_lsn": "0/A", "recovery_target_inclusive": "off", "recovery_target_action": "pause"}),
        (goal_at_xid("7", inclusive=True), {"recovery_target_xid": "7", "recovery_target_inclusive": "on", "recovery_target_action": "pause"}),
        (
            goal_at_time("2026-03-01 12:00:00.5+00", inclusive=True),
            {"recovery_target_time": "2026-03-01 12:00:00.5+00", "recovery_target_inclusive": "on", "recovery_target_action": "pause"},
        ),
    ],
)
def test_the_settings_name_the_goal_and_the_timeline_that_was_planned_for(goal, settings):
    assert recovery_targets(goal, course(1), "pause", 15) == {**settings, "recovery_target_timeline": "current"}
    assert recovery_targets(goal, course(2), "pause", 15) == {**settings, "recovery_target_timeline": "2"}
    assert recovery_targets(goal, course(2), "pause", 11) == {**settings, "recovery_target_timeline": "2"}
    assert recovery_targets(goal, course(1), "pause", 11) == settings
