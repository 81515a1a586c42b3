"""``restore`` with a real archive: to each kind of target, over a fork, and the refusals that spare a night."""

import os
import re
import subprocess
from datetime import timedelta

import pytest
from fix_archive import Watched, archive_into_store, refusal, script, unchanged, warnings
from fix_history import Kind, archived, chosen, live, paused, promoted, shown
from fix_postgres import bindir

from wal_e.archive.restore_plan import shown_moment


@pytest.fixture(scope="module")
def history(make_shared_server):
    return live(make_shared_server, Kind())


@pytest.fixture
def place(make_place, history):
    """Where to restore: a server without a data directory."""
    place = make_place()
    place.environ |= {name: value for name, value in history.server.environ.items() if name.startswith("WALE_")}
    return place


def restore(place, *options, **settings):
    """Restore, start, and return what restore printed."""
    said = place.wal_e("restore", str(place.data), *options).stdout
    place.start(archive_mode="off", **settings)
    return said


def rows(place):
    return [int(n) for n in place.psql("select n from t order by n").split()]


def test_without_a_target_the_newest_timeline_is_recovered_to_its_end(place, history):
    said = restore(place)
    promoted(place)
    assert rows(place) == [1, 2, 3, 4, 20, 21]
    assert chosen(said) == history.names[2]
    assert "timeline 2" in said


def test_a_time_is_inclusive_to_the_microsecond(place, history):
    said = restore(place, "--target-time", shown(history.changes[3].time), "--target-action", "promote")
    promoted(place)
    assert rows(place) == [1, 2, 3]
    assert chosen(said) == history.names[0]


def test_a_time_can_be_exclusive_and_pauses_by_default(place, history):
    restore(place, "--target-time", shown(history.changes[3].time), "--exclusive")
    paused(place)
    assert rows(place) == [1, 2]
    assert place.psql("select pg_is_in_recovery()") == "t"


def test_a_time_between_a_fork_and_its_end_is_found_on_the_old_timeline_that_is_named(place, history):
    said = restore(place, "--target-time", shown(history.changes[5].time), "--target-timeline", "1", "--target-action", "promote")
    promoted(place)
    assert rows(place) == [1, 2, 3, 4, 5]
    assert chosen(said) == history.names[1]


@pytest.mark.slow
def test_the_end_of_an_old_timeline_can_be_asked_for(place, history):
    restore(place, "--target-timeline", "1")
    promoted(place)
    assert rows(place) == [1, 2, 3, 4, 5, 6]


def test_a_position_stops_where_it_is(place, history):
    restore(place, "--target-lsn", history.changes[2].lsn, "--target-action", "promote", "--exclusive")
    promoted(place)
    assert rows(place) == [1, 2]


def test_a_transaction_is_found_in_the_backup_before_it(place, history):
    said = restore(place, "--target-xid", history.changes[3].xid, "--exclusive", "--target-action", "promote")
    promoted(place)
    assert rows(place) == [1, 2]
    assert chosen(said) == history.names[0]


def started(place, history, *options):
    """Restore with a store of its own, have the server started, and return what restore printed."""
    store = place.directory / "store"
    place.run(["cp", "-a", history.store, store])
    place.environ["WALE_FILE_PREFIX"] = f"file://localhost{store}"
    place.port, place.socket_dir = history.port, history.sockets
    return place.wal_e("restore", str(place.data), "--start", *options).stdout


def test_a_restore_point_is_found_and_the_server_shuts_down_there(place, history):
    said = started(place, history, "--target-name", "before three", "--target-action", "shutdown")
    assert re.search(r"^state +the server was shut down at the target;", said, re.M)
    assert not place.is_running()
    with (place.data / "postgresql.auto.conf").open("a") as stream:  # without recovery.signal it would replay all WAL that it has
        stream.write("recovery_target_action = 'promote'\n")
    place.start(archive_mode="off")
    promoted(place)
    assert rows(place) == [1, 2]


def test_immediate_stops_at_the_end_of_the_named_backup(place, history):
    said = restore(place, "--target-immediate", "--backup", history.names[0])
    paused(place)
    assert rows(place) == [1]
    assert chosen(said) == history.names[0]


def test_started_it_says_what_was_reached_and_the_server_goes_on_and_archives(place, history):
    said = started(place, history, "--target-time", shown(history.changes[2].time), "--target-action", "promote")
    assert re.search(r"^state +recovery has ended, the server is in service$", said, re.M)
    assert re.search(r"^timeline +3$", said, re.M)
    assert f"last commit of {shown_moment(history.changes[2].time)}\n" in said
    assert rows(place) == [1, 2]
    archived(place)
    assert (place.directory / "store" / "wal_005" / "00000003.history.lzo").exists()


def test_a_copy_is_started_and_promoted_and_stores_nothing(place, history):
    started(place, history, "--target-xid", history.changes[2].xid, "--target-action", "promote", "--archive-mode", "off")
    assert rows(place) == [1, 2]
    place.psql("select pg_switch_wal()")
    assert place.psql("show archive_mode") == "off"
    assert not (place.directory / "store" / "wal_005" / "00000003.history.lzo").exists()


@pytest.mark.slow
def test_started_it_waits_for_the_pause_at_the_target(place, history):
    said = started(place, history, "--target-immediate", "--backup", history.names[0])
    assert re.search(r"^state +recovery is paused at the target", said, re.M)
    assert place.psql("select pg_is_in_recovery(), pg_get_wal_replay_pause_state()") == "t|paused"


def test_a_started_standby_is_left_when_it_is_consistent(place, history):
    said = started(place, history, "--standby")
    assert re.search(r"^state +the data are consistent, recovery goes on$", said, re.M)
    place.wait_for("select count(*) = 6 from t")


@pytest.mark.slow
def test_a_standby_follows_and_keeps_nothing_of_a_target(place, history):
    restore(place, "--standby", hot_standby="on")
    assert (place.data / "standby.signal").exists()
    place.wait_for("select count(*) = 6 from t")
    assert place.psql("select pg_is_in_recovery()") == "t"


@pytest.mark.slow
def test_the_unfinished_segment_brings_what_was_written_last(place, make_place, history):
    started(place, history)
    archived(place)
    place.psql("insert into t values (100)")
    segment = place.psql("select pg_walfile_name(pg_current_wal_flush_lsn())")
    place.stop("immediate")
    store = place.directory / "store"
    place.run(["lzop", "-o", store / "wal_005" / f"{segment}.streaming.lzo", place.data / "pg_wal" / segment])
    other = make_place()
    other.environ |= {name: value for name, value in place.environ.items() if name.startswith("WALE_")}
    for options, result in (([], [1, 2, 3, 4, 20, 21]), (["--use-partial"], [1, 2, 3, 4, 20, 21, 100])):
        restore(other, *options)
        promoted(other)
        assert rows(other) == result
        other.stop()
        other.run(["rm", "-r", other.data])


def test_a_damaged_copy_is_repaired_in_place(place, history):
    place.wal_e("restore", str(place.data))
    victim = max((place.data / "base").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    victim.write_bytes(b"damaged")
    (place.data / "stray").touch()
    said = restore(place, "--delta", "--target-xid", history.changes[20].xid, "--target-action", "promote")
    promoted(place)
    assert "are fetched" in said
    assert not (place.data / "stray").exists()
    assert 20 in rows(place)


def test_a_plan_touches_nothing_and_says_what_it_would_do(place, history):
    with unchanged(history.store):
        said = Watched(place, history.store)("restore", str(place.data), "--target-xid", history.changes[3].xid, "--dry-run").stdout
    for word in (history.names[0], "recovery.signal", f"recovery_target_xid = '{history.changes[3].xid}'", "free at", "--archive-mode off"):
        assert word in said
    assert not place.data.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--target-time", "2099-01-01 00:00:00+00"), ("lies beyond the end", "timeline 2: from")),
        (("--target-time", "2001-01-01 00:00:00+00"), ("no backup ends before",)),
        (("--target-action", "pause"), ("needs a target",)),
        (("--backup", "base_000000010000000000000001_00000040"), ("there is no backup",)),
    ],
)
def test_what_cannot_be_reached_is_refused_before_the_disk_is_touched(place, history, options, words):
    with unchanged(history.store):
        result = Watched(place, history.store)("restore", str(place.data), *options)
    refusal(result, 1 if "--backup" in options else 2, *words)
    assert not place.data.exists()


def test_the_time_of_the_last_commit_is_out_of_reach_and_one_before_it_is_not(place, history):
    run = Watched(place, history.store)
    last = history.changes[21].time
    refusal(run("restore", str(place.data), "--dry-run", "--target-time", shown(last)), 2, "lies beyond the end")
    assert run("restore", str(place.data), "--dry-run", "--target-time", shown(last - timedelta(microseconds=1))).returncode == 0
    assert run("restore", str(place.data), "--dry-run", "--target-time", shown(last), "--exclusive").returncode == 0


def test_a_gap_is_named_and_what_can_be_restored_is_shown(place, history):
    store = place.directory / "store"
    place.run(["cp", "-a", history.store, store])
    after = sorted(path for path in (store / "wal_005").glob("00000002*.lzo") if len(path.name) == 28)
    missing = after[-2]
    missing.unlink()
    run = Watched(place, store)
    error = refusal(run("restore", str(place.data), "--backup", history.names[0]), 2, missing.name[:24], "What can be restored")
    assert error.error == "WalGap"
    before = run("restore", str(place.data), "--dry-run", "--target-xid", history.changes[3].xid)  # it lies before the gap
    assert before.returncode == 0
    assert [record.message for record in warnings(before)] == [f"{history.names[2]} is passed over"]
    assert not place.data.exists()


def test_what_is_left_of_an_earlier_recovery_is_taken_out(place, history):
    """The backup of timeline 2 has the settings of the restore that it came from."""
    said = place.wal_e("restore", str(place.data)).stdout
    settings = (place.data / "postgresql.auto.conf").read_text()
    assert "recovery_target_xid" not in settings
    assert settings.count("restore_command") == 1
    assert re.search(r"^taken out .*recovery_target_xid", said, re.M)


def test_a_restored_directory_passes_pg_verifybackup(place, history):
    place.wal_e("restore", str(place.data))
    assert "successfully verified" in place.run([bindir() / "pg_verifybackup", "-n", place.data]).stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root restores for others")
def test_root_restores_for_the_user_that_the_files_belonged_to(place, history):
    env = {**place.environ, "HOME": "/root"}
    subprocess.run([script(), "restore", place.data], env=env, check=True, capture_output=True, timeout=120)
    owner = history.server.data.stat().st_uid
    assert {path.lstat().st_uid for path in (place.data, *place.data.rglob("*"))} == {owner}
    place.start(archive_mode="off")
    promoted(place)


def test_tablespaces_go_where_they_are_told(make_place, make_server):
    origin = make_server(wal_segsize_mb=1)
    archive_into_store(origin)
    there = origin.make_directory("space")
    origin.psql(f"create tablespace s location '{there}'")
    origin.psql("create table t tablespace s as select generate_series(1, 10) as n")
    origin.wal_e("backup-push", str(origin.data), "--fast")
    origin.psql("insert into t values (11)")
    archived(origin)
    oid = origin.psql("select oid from pg_tablespace where spcname = 's'")
    origin.stop()
    places = [make_place() for _ in range(2)]
    for place, options in zip(places, (["--tablespace", f"{oid}={places[0].directory}/elsewhere"], ["--blind"]), strict=True):
        place.environ |= {name: value for name, value in origin.environ.items() if name.startswith("WALE_")}
        refused = place.wal_e("restore", str(place.data), check=False)
        assert refused.returncode == 2
        assert "is not empty" in refused.stderr
        restore(place, *options)
        promoted(place)
        assert rows(place) == list(range(1, 12))
    assert (places[0].data / "pg_tblspc" / oid).readlink() == places[0].directory / "elsewhere"
    assert not (places[1].data / "pg_tblspc" / oid).is_symlink()
