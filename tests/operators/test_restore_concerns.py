"""What a plan warns of: damage that was found before, and a moment that also lies on a timeline that was left."""

from datetime import timedelta

import build_wal
import pytest
from build_records import MOMENT, SIZE, Builder
from fix_memory import open_searched

from wal_e.archive import layout
from wal_e.archive.backup_checks import BackupCheck, write_check
from wal_e.archive.drill_record import FAILED, PROVEN, DrillRecord, write_drill
from wal_e.archive.layout import BackupName
from wal_e.archive.restore_plan import Goal, goal_at_time, shown_moment
from wal_e.archive.sentinel import DamagedPages, Facts, PageChecks, Sentinel, render_sentinel
from wal_e.cli.restore_text import plan_text
from wal_e.operators.restore import Wish, plan_restore
from wal_e.postgres.wal import Lsn, segment_name

FIRST, LEFT = 7, 9  # numbers of segments: the first one, and the one in which timeline 1 was left
MINUTE = timedelta(minutes=1)


@pytest.fixture
def archive():
    """Timeline 1 has a commit each minute, in a segment each; it was left before that of minute 2. Timeline 2 has them from minute 10 on."""
    archive = open_searched()
    old = Builder(FIRST * SIZE)
    for minute in range(6):
        old.commit(minute + 1, MOMENT + minute * MINUTE)
        old.next_segment()
    store(archive, 1, FIRST, old)
    new = Builder(LEFT * SIZE, timeline=2)
    for minute in range(10, 13):
        new.commit(minute + 1, MOMENT + minute * MINUTE)
        new.next_segment()
    store(archive, 2, LEFT, new)
    put(archive, "wal_005/00000002.history.lzo", f"1\t{Lsn(LEFT * SIZE + 40)}\tno recovery target specified\n".encode())
    return archive


def store(archive, timeline, first, built):
    for number, segment in enumerate(built.segments(), first):
        put(archive, layout.wal_key(segment_name(timeline, number * SIZE, SIZE), ".lzo"), segment)


def put(archive, key, content):
    archive.store.put(key, list(archive.pipeline.encode(lambda stream: stream.write(content))))


def add_backup(archive, number, minute, *, timeline=1, pages=None):
    name = str(BackupName(segment_name(timeline, number * SIZE, SIZE), SIZE // 2))
    start, stop, started = Lsn(number * SIZE + SIZE // 2), Lsn(number * SIZE + SIZE // 2 + 400), MOMENT + minute * MINUTE
    known = Facts(started, started, start, stop, timeline, build_wal.SYSTEM_IDENTIFIER, 15, SIZE, 2, 1, "k", "h", True, "2", page_checksums=pages)
    archive.store.put(layout.sentinel_key(name), [render_sentinel(Sentinel(segment_name(timeline, stop, SIZE), SIZE // 2 + 400, 1, "/x", (), known))])
    return name


def concerns(archive, goal=Goal(), **wish):  # noqa: B008  # immutable
    return plan_restore(archive, Wish("wal-e wal-fetch %f %p", goal, **wish)).concerns


def at(minute):
    return goal_at_time(shown_moment(MOMENT + minute * MINUTE), inclusive=True)


@pytest.fixture
def names(archive):
    return [add_backup(archive, FIRST, 0.2), add_backup(archive, FIRST + 1, 1.2)]


@pytest.mark.parametrize(
    ("minute", "told"),
    [
        (1.5, None),  # before the timeline was left: it is the same on both
        (3, "--target-timeline 1."),
        (4.9, "--target-timeline 1."),
        (7, "--target-timeline 1, without --target-time."),  # neither has a commit then; timeline 1 had not been left for long
        (11, None),  # in the life of timeline 2
    ],
)
def test_a_moment_that_also_lies_on_the_timeline_that_was_left_is_told(archive, names, minute, told):
    sentences = concerns(archive, at(minute))
    assert (told in sentences[1]) if told else (sentences == ())


def test_a_moment_of_both_timelines_is_told_although_the_new_one_has_commits_before_it(archive, names):
    """Somebody promoted a copy, and the old server went on."""
    later = Builder((FIRST + 6) * SIZE)
    later.commit(20, MOMENT + 12 * MINUTE)
    later.next_segment()
    store(archive, 1, FIRST + 6, later)
    assert "--target-timeline 1." in concerns(archive, at(11))[1]


@pytest.mark.parametrize("timeline", ["1", "current"])
def test_who_names_the_timeline_that_was_left_is_told_nothing(archive, names, timeline):
    assert concerns(archive, at(3), timeline=timeline) == ()


def test_without_a_time_the_timelines_are_no_concern(archive, names):
    assert concerns(archive) == ()


def check(*, ok, minute=0):
    return BackupCheck(MOMENT + minute * MINUTE, ok, 1, 1, 0 if ok else 2, () if ok else ("part 3 is gone", "part 4 is gone"))


def drill(outcome):
    return DrillRecord(MOMENT, outcome, "" if outcome == PROVEN else "it does not start.", "the end", "15.1", 1)


def test_pages_that_were_damaged_in_the_cluster_are_told_with_the_backup_to_take_instead(archive, names):
    newest = add_backup(archive, LEFT, 11, timeline=2, pages=PageChecks(9, (DamagedPages("base/5/16384", ((5, 5),)), DamagedPages("base/5/16390", ((1, 2),)))))
    wrong, instead = concerns(archive)
    assert wrong == f"Something is wrong with {newest}. The cluster had damaged pages when it was backed up: base/5/16384, block 5, and 1 more."
    assert f"--backup {names[1]} begins with an older one" in instead


def test_what_was_found_last_counts_and_an_older_one_that_failed_too_is_not_offered(archive, names):
    write_check(archive.store, names[1], "full", check(ok=False))
    write_drill(archive.store, names[0], drill(FAILED))
    wrong, instead = concerns(archive)
    assert wrong == f"Something is wrong with {names[1]}. backup-verify at 2026-03-09 03:00:00+00 found: part 3 is gone, and 1 more."
    assert instead.startswith("There is no older backup")
    assert "Its drill at" in concerns(archive, backup=names[0])[0]
    assert "it does not start." in concerns(archive, backup=names[0])[0]


def test_a_fast_look_that_failed_is_forgotten_when_all_was_read_and_good_later(archive, names):
    write_check(archive.store, names[1], "fast", check(ok=False))
    assert len(concerns(archive)) == 2
    write_check(archive.store, names[1], "full", check(ok=True, minute=1))
    write_drill(archive.store, names[1], drill(PROVEN))
    assert concerns(archive) == ()


def test_the_plan_shows_them_and_every_setting_that_will_be_written(archive, names):
    write_check(archive.store, names[1], "full", check(ok=False))
    text = plan_text(plan_restore(archive, Wish("wal-e wal-fetch %f %p")), "archive_mode = 'off'\n", "")
    assert f"ATTENTION  Something is wrong with {names[1]}." in text
    assert "             archive_mode = 'off'\n" in text
