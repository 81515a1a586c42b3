"""Which backup a restore begins with, over a store in memory: clocks that disagree, names that come twice, unfinished segments."""

import os
from datetime import timedelta

import build_wal
import pytest
from build_records import MOMENT, SIZE, Builder
from fix_memory import open_searched

from wal_e.archive import layout
from wal_e.archive.layout import BackupName
from wal_e.archive.restore_plan import IMMEDIATE, Goal, goal_at_lsn, goal_at_name, goal_at_time, goal_at_xid, shown_moment
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel
from wal_e.errors import BackupNotFound, DamageError, TargetRefused, UsageError, WalGap
from wal_e.operators.restore import Settling, Wish, plan_restore
from wal_e.operators.restore_target import TablespaceChoice, Target
from wal_e.postgres.recovery import STANDBY
from wal_e.postgres.wal import Lsn, segment_name

FIRST = 7
HOUR = timedelta(hours=1)


@pytest.fixture
def archive():
    """A store with a commit, numbered from 1, at each hour and in each of ten segments from FIRST on; a restore point in the fifth and in the eighth."""
    archive = open_searched()
    built = Builder(FIRST * SIZE)
    for number in range(10):
        if number in (4, 7):
            built.restore_point("twice", MOMENT + number * HOUR)
        built.commit(number + 1, MOMENT + number * HOUR)
        built.next_segment()
    for number, segment in enumerate(built.segments(), FIRST):
        put(archive, key(number), segment)
    return archive


def put(archive, name, content):
    archive.store.put(name, list(archive.pipeline.encode(lambda stream: stream.write(content))))


def key(number):
    return layout.wal_key(segment_name(1, number * SIZE, SIZE), ".lzo")


def add_backup(archive, number, *, started, facts=True, longer=0):
    """A backup that lies within one segment, behind the commit there, or goes on in later ones; times are those of the machine that pushed it."""
    name = str(BackupName(segment_name(1, number * SIZE, SIZE), SIZE // 2))
    start, stop = Lsn(number * SIZE + SIZE // 2), Lsn((number + longer) * SIZE + SIZE // 2 + 400)
    known = Facts(started, started + timedelta(minutes=10), start, stop, 1, build_wal.SYSTEM_IDENTIFIER, 15, SIZE, 2, 1, "k", "h", True, "2")
    sentinel = Sentinel(segment_name(1, stop, SIZE), SIZE // 2 + 400, 1, "/x", (), known if facts else None)
    archive.store.put(layout.sentinel_key(name), [render_sentinel(sentinel)])
    return name


def planned(archive, goal=Goal(), **wish):  # noqa: B008  # immutable
    return plan_restore(archive, Wish("wal-e wal-fetch %f %p", goal, **wish))


def at(moment, inclusive=True):
    return goal_at_time(shown_moment(moment), inclusive)


@pytest.fixture
def names(archive):
    """Three backups, half an hour after the commit of their segments."""
    return [add_backup(archive, FIRST + number, started=MOMENT + number * HOUR + HOUR / 2) for number in (0, 3, 6)]


@pytest.mark.parametrize(
    ("goal", "backup", "lsn_in"),
    [
        (Goal(), 2, 9),
        (at(MOMENT + 8 * HOUR), 2, 9),
        (at(MOMENT + 5 * HOUR), 1, 6),
        (at(MOMENT + 5 * HOUR, inclusive=False), 1, 5),
        (at(MOMENT + HOUR), 0, 2),
        (goal_at_xid("3", inclusive=True), 0, 2),
        (goal_at_xid("10", inclusive=True), 2, 9),
        (goal_at_name("twice"), 2, 7),
        (goal_at_lsn(str(Lsn((FIRST + 5) * SIZE)), inclusive=True), 1, 5),
        (Goal(IMMEDIATE), 2, 6),
    ],
)
def test_the_newest_backup_that_ends_before_the_goal_is_chosen_and_the_wal_up_to_it(archive, names, goal, backup, lsn_in):
    plan = planned(archive, goal)
    assert plan.backup.name == names[backup]
    assert plan.aim.lsn // SIZE == FIRST + lsn_in
    assert plan.aim.way.segments == FIRST + lsn_in - plan.aim.course.need.start // SIZE + 1


def test_a_named_backup_stops_at_the_first_restore_point_of_two(archive, names):
    assert planned(archive, goal_at_name("twice"), backup=names[0]).aim.lsn // SIZE == FIRST + 4


def test_a_backup_whose_clock_was_slow_is_not_taken_for_a_time_before_it(archive):
    """It says that it began before the time asked for; the commit before it in the WAL is later, so it holds what should not be there."""
    good = add_backup(archive, FIRST, started=MOMENT + HOUR / 2)
    add_backup(archive, FIRST + 3, started=MOMENT + 2 * HOUR)
    assert planned(archive, at(MOMENT + 2 * HOUR + HOUR / 2)).backup.name == good


def test_a_time_within_a_backup_is_left_to_the_one_before(archive):
    good = add_backup(archive, FIRST, started=MOMENT + HOUR / 2)
    add_backup(archive, FIRST + 3, started=MOMENT + 3 * HOUR - HOUR / 2)
    assert planned(archive, at(MOMENT + 3 * HOUR - timedelta(minutes=1))).backup.name == good


def test_a_transaction_within_a_backup_is_reached_from_the_one_before(archive):
    older = add_backup(archive, FIRST, started=MOMENT)
    add_backup(archive, FIRST + 6, started=MOMENT + 6 * HOUR, longer=1)
    plan = planned(archive, goal_at_xid("8", inclusive=True))
    assert (plan.backup.name, plan.aim.lsn // SIZE) == (older, FIRST + 7)


def test_a_restore_point_within_a_backup_is_not_it_where_one_of_that_name_comes_before(archive):
    older = add_backup(archive, FIRST, started=MOMENT)
    add_backup(archive, FIRST + 6, started=MOMENT + 6 * HOUR, longer=1)
    plan = planned(archive, goal_at_name("twice"))
    assert (plan.backup.name, plan.aim.lsn // SIZE) == (older, FIRST + 4)


def test_what_lies_within_the_only_backup_cannot_be_reached(archive):
    add_backup(archive, FIRST + 6, started=MOMENT + 6 * HOUR, longer=1)
    with pytest.raises(TargetRefused, match="no backup ends before"):
        planned(archive, goal_at_xid("8", inclusive=True))


def test_a_backup_of_the_original_is_taken_by_when_its_sentinel_was_stored(archive):
    name = add_backup(archive, FIRST, started=MOMENT, facts=False)
    assert planned(archive).backup.name == name
    with pytest.raises(TargetRefused, match="no backup ends before"):
        planned(archive, at(MOMENT + HOUR))  # it was stored now, by the store's clock


def test_the_version_of_a_backup_of_the_original_is_read_where_that_told_it(archive):
    name = add_backup(archive, FIRST, started=MOMENT, facts=False)
    archive.store.put(layout.version_key(name), [b"PostgreSQL 11.22 (Debian 11.22-1) on x86_64"])
    assert planned(archive).advice.settings_file == "recovery.conf"


def test_a_gap_that_lies_behind_the_goal_does_not_matter(archive, names):
    archive.store.delete([key(FIRST + 8)])
    assert planned(archive, at(MOMENT + 4 * HOUR)).backup.name == names[1]
    with pytest.raises(WalGap, match="cannot be brought to the end") as caught:
        planned(archive)
    assert segment_name(1, (FIRST + 8) * SIZE, SIZE) in caught.value.detail
    assert "timeline 1: from" in caught.value.detail
    for goal in (at(MOMENT + 8 * HOUR), goal_at_xid("10", inclusive=True), goal_at_lsn(str(Lsn((FIRST + 9) * SIZE)), inclusive=True)):
        with pytest.raises(WalGap, match="not reached before a gap"):
            planned(archive, goal)


def test_a_backup_without_its_wal_is_passed_over_unless_it_is_named(archive, names):
    archive.store.delete([key(FIRST + 6)])
    assert planned(archive, Goal(IMMEDIATE)).backup.name == names[1]
    with pytest.raises(WalGap, match="cannot be used"):
        planned(archive, Goal(IMMEDIATE), backup=names[2])


@pytest.mark.parametrize("goal", [at(MOMENT + 9 * HOUR), goal_at_lsn(str(Lsn((FIRST + 9) * SIZE + SIZE - 8)), inclusive=True)])
def test_a_goal_in_the_last_segment_behind_its_last_record_is_beyond(archive, names, goal):
    with pytest.raises(TargetRefused, match="lies beyond the end"):
        planned(archive, goal)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"goal": goal_at_lsn("FF/0", inclusive=True)}, "lies beyond the end"),
        ({"goal": goal_at_lsn("0/100", inclusive=True)}, "no backup ends before"),
        ({"goal": goal_at_xid("2000000000", inclusive=True)}, "is not in the archive"),
        ({"goal": goal_at_xid("1", inclusive=True)}, "is not in the archive"),
        ({"goal": goal_at_name("nowhere")}, "is not in the archive"),
        ({"goal": at(MOMENT - HOUR)}, "no backup ends before"),
        ({"timeline": "7"}, "there is no timeline 7"),
    ],
)
def test_what_cannot_be_reached_is_refused_and_what_can_is_shown(archive, names, wish, message):
    with pytest.raises(TargetRefused, match=message) as caught:
        planned(archive, **wish)
    assert ("timeline 1: from" in caught.value.detail) and ("wal-e window" in caught.value.hint)


def test_without_a_backup_or_without_that_one_there_is_nothing_to_restore(archive):
    with pytest.raises(BackupNotFound, match="no backup yet"):
        planned(archive)
    add_backup(archive, FIRST, started=MOMENT)
    with pytest.raises(BackupNotFound, match="there is no backup base_"):
        planned(archive, backup="base_000000010000000000000001_00000040")


def test_a_standby_follows_the_latest_timeline_and_has_no_target(archive, names):
    assert planned(archive, role=STANDBY).advice == (
        "standby.signal",
        "postgresql.auto.conf",
        "restore_command = 'wal-e wal-fetch %f %p'\nrecovery_target_timeline = 'latest'\n",
    )
    with pytest.raises(UsageError):
        planned(archive, Goal(IMMEDIATE), role=STANDBY)


def settled(archive, plan, directory):
    """What is made of a directory that was fetched."""
    (directory / "pg_wal").mkdir(parents=True)
    (directory / "PG_VERSION").write_text("15\n")
    choice = TablespaceChoice(False, {})
    Settling(archive, plan, choice)(Target(str(directory), {}, choice))


def test_a_copy_does_not_archive_whatever_its_configuration_says(archive, names, tmp_path):
    directory = tmp_path / "target"
    directory.mkdir()
    (directory / "postgresql.auto.conf").write_text("archive_mode = 'on'\n")
    settled(archive, planned(archive, archive_mode="off"), directory)
    assert (directory / "postgresql.auto.conf").read_text().endswith("archive_mode = 'off'\n")
    settled(archive, planned(archive), tmp_path / "other")
    assert "archive_mode" not in (tmp_path / "other" / "postgresql.auto.conf").read_text()


def test_the_unfinished_segment_comes_into_pg_wal_when_it_continues_the_archive(archive, names, tmp_path):
    name = segment_name(1, (FIRST + 10) * SIZE, SIZE)
    content = build_wal.build_segment(name, segment_size=SIZE)
    put(archive, layout.streaming_key(name, ".lzo"), content)
    plan = planned(archive, tail="use")
    assert plan.tail == name
    settled(archive, plan, tmp_path / "target")
    assert (tmp_path / "target" / "pg_wal" / name).read_bytes() == content
    assert planned(archive).tail is None


def test_an_unfinished_segment_that_does_not_continue_the_archive_is_refused(archive, names):
    name = segment_name(1, (FIRST + 11) * SIZE, SIZE)
    put(archive, layout.streaming_key(name, ".lzo"), build_wal.build_segment(name, segment_size=SIZE))
    with pytest.raises(TargetRefused, match="not there as an unfinished segment"):
        planned(archive, tail="use")
    with pytest.raises(UsageError, match="for the end of the WAL"):
        planned(archive, Goal(IMMEDIATE), tail="use")


def test_an_unfinished_segment_that_is_another_is_damage(archive, names, tmp_path):
    name, other = (segment_name(1, (FIRST + number) * SIZE, SIZE) for number in (10, 12))
    put(archive, layout.streaming_key(name, ".lzo"), build_wal.build_segment(other, segment_size=SIZE))
    with pytest.raises(DamageError, match="not the beginning of that segment"):
        settled(archive, planned(archive, tail="use"), tmp_path / "target")


def test_a_directory_is_settled_for_the_version_that_it_has(archive, tmp_path):
    """A backup of the original may not tell its version before it is fetched."""
    add_backup(archive, FIRST, started=MOMENT, facts=False)
    plan = planned(archive)
    (tmp_path / "target" / "pg_wal").mkdir(parents=True)
    (tmp_path / "target" / "PG_VERSION").write_text("10\n")
    choice = TablespaceChoice(False, {})
    Settling(archive, plan, choice)(Target(str(tmp_path / "target"), {}, choice))
    assert sorted(os.listdir(tmp_path / "target")) == ["PG_VERSION", "pg_wal", "recovery.conf"]
