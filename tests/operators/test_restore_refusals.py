"""What a restore must not pass over: timelines that nobody can come to, tablespaces in places that are taken, and files in them that only seem to be strays."""

from datetime import timedelta

import build_wal
import pytest
from build_records import MOMENT, SIZE, Builder
from fix_memory import open_searched

from wal_e.archive import layout
from wal_e.archive.layout import BackupName
from wal_e.archive.restore_plan import CURRENT, Goal
from wal_e.archive.sentinel import Facts, Sentinel, Tablespace, render_sentinel
from wal_e.errors import DamageError, TargetRefused, UsageError, WalGap
from wal_e.operators.restore import Wish, plan_restore
from wal_e.operators.restore_tablespaces import planned_locations, require_apart
from wal_e.operators.wal_survey import look
from wal_e.operators.window import lost_timelines
from wal_e.postgres.recovery import STANDBY
from wal_e.postgres.wal import Lsn, segment_name
from wal_e.tar.comparison import Paths, beyond

FIRST = 7
FORK = f"1\t{Lsn(FIRST * SIZE)}\tbefore the backup\n".encode()


@pytest.fixture
def archive():
    """A backup on timeline 1 with three segments, and two segments of timeline 2, whose history a test may store."""
    archive = open_searched()
    built = Builder(FIRST * SIZE)
    for number in range(3):
        built.commit(number + 1, MOMENT + timedelta(hours=number))
        built.next_segment()
    for number, segment in enumerate(built.segments(), FIRST):
        put(archive, segment_name(1, number * SIZE, SIZE), segment)
        if number > FIRST:
            put(archive, segment_name(2, number * SIZE, SIZE), segment)
    name = str(BackupName(segment_name(1, FIRST * SIZE, SIZE), SIZE // 2))
    start, stop = Lsn(FIRST * SIZE + SIZE // 2), Lsn(FIRST * SIZE + SIZE // 2 + 400)
    facts = Facts(MOMENT, MOMENT, start, stop, 1, build_wal.SYSTEM_IDENTIFIER, 15, SIZE, 2, 1, "k", "h", True, "2")
    archive.store.put(layout.sentinel_key(name), [render_sentinel(Sentinel(segment_name(1, stop, SIZE), SIZE // 2 + 400, 1, "/x", (), facts))])
    return archive


def put(archive, name, content):
    archive.store.put(layout.wal_key(name, ".lzo"), list(archive.pipeline.encode(lambda stream: stream.write(content))))


def planned(archive, **wish):
    return plan_restore(archive, Wish("wal-e wal-fetch %f %p", Goal(), **wish))


def test_a_newer_timeline_whose_history_is_lost_is_an_error_that_says_how_to_do_without(archive):
    with pytest.raises(WalGap, match=r"00000002\.history is not in the store") as caught:
        planned(archive)
    assert "--target-timeline 1" in caught.value.hint
    assert planned(archive, timeline="1").aim.course.timeline == planned(archive, timeline=CURRENT).aim.course.timeline == 1


def test_a_newer_timeline_whose_history_is_damaged_is_an_error_that_names_the_key(archive):
    archive.store.put(layout.wal_key("00000002.history", ".lzo"), [b"\x89LZO\x00\r\n\x1a\nand no more"])
    with pytest.raises(DamageError, match=r"wal_005/00000002\.history\.lzo is damaged"):
        planned(archive)
    assert list(lost_timelines(look(archive))) == [2]


def test_a_newer_timeline_to_which_no_backup_leads_is_told(archive, capsys):
    put(archive, "00000002.history", FORK)
    assert planned(archive).aim.course.timeline == 1
    assert "timeline 2 is left out" in capsys.readouterr().err
    assert lost_timelines(look(archive)) == {}


def test_such_a_timeline_is_refused_by_its_number_with_what_can_be_restored(archive):
    put(archive, "00000002.history", FORK)
    with pytest.raises(TargetRefused, match="no backup leads to timeline 2") as caught:
        planned(archive, timeline="2")
    assert "timeline 1: from" in caught.value.detail


def test_what_can_be_restored_is_told_as_far_as_damage_allows(archive):
    archive.store.put(layout.wal_key(segment_name(1, (FIRST + 2) * SIZE, SIZE), ".lzo"), [b"\x89LZO\x00\r\n\x1a\nand no more"])
    with pytest.raises(TargetRefused, match="there is no timeline 9") as caught:
        planned(archive, timeline="9")
    assert segment_name(1, (FIRST + 2) * SIZE, SIZE) in caught.value.detail


@pytest.mark.parametrize(("timeline", "followed"), [("1", "1"), ("latest", "latest")])
def test_a_standby_follows_the_timeline_that_is_asked_for(archive, timeline, followed):
    put(archive, "00000002.history", FORK)
    plan = planned(archive, timeline=timeline, role=STANDBY)
    assert f"recovery_target_timeline = '{followed}'" in plan.advice.settings


def test_a_tablespace_that_the_backup_does_not_have_is_refused():
    sentinel = Sentinel("000000010000000000000001", 0, 1, "/x", (Tablespace("16384", "/there"),), None)
    with pytest.raises(UsageError, match="the backup has no tablespace 16385") as caught:
        planned_locations("/target", sentinel, {"16385": {"loc": "/elsewhere"}})
    assert "16384" in caught.value.detail
    assert planned_locations("/target", sentinel, {"16384": {"loc": "/elsewhere"}, "base_prefix": "/x"}) == {"16384": "/elsewhere"}


@pytest.mark.parametrize(
    ("place", "is_taken"), [("pg_tblspc/x", True), ("base", True), ("pg_wal/a/b", True), ("global/x", True), ("own", False), ("../pg_x", False)]
)
def test_a_tablespace_does_not_go_among_the_files_of_the_cluster(tmp_path, place, is_taken):
    locations = {"16384": str(tmp_path / "target" / place)}
    if is_taken:
        with pytest.raises(TargetRefused, match="among PostgreSQL's own files"):
            require_apart(str(tmp_path / "target"), locations)
    else:
        require_apart(str(tmp_path / "target"), locations)


def test_a_tablespace_inside_the_data_directory_is_no_stray_and_what_else_is_there_is(tmp_path):
    inside = tmp_path / "spaces" / "one"
    for directory in (tmp_path / "pg_tblspc", inside / "PG_15_202209061"):
        directory.mkdir(parents=True)
    (tmp_path / "pg_tblspc/16384").symlink_to(inside)
    for path in (inside / "PG_15_202209061/kept", inside / "PG_15_202209061/stray", tmp_path / "spaces/stray"):
        path.touch()
    stays = Paths()
    for known in ("pg_tblspc", "pg_tblspc/16384", "pg_tblspc/16384/PG_15_202209061", "pg_tblspc/16384/PG_15_202209061/kept"):
        stays.add(known)
    assert beyond(str(tmp_path), frozenset({"pg_tblspc/16384"}), stays) == ["pg_tblspc/16384/PG_15_202209061/stray", "spaces/stray"]
