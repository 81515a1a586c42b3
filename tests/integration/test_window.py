"""``window`` over the archive of a real server on two timelines, compared with pg_waldump; and whether the server agrees where it ends."""

import json
import re
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_archive import Watched, archive_into_store, backups, refusal, settled, stored_wal
from fix_network import NETWORKS
from fix_postgres import bindir, give_to_server_user, wait_until

from wal_e.archive.archive import Archive
from wal_e.archive.recovery_window import Way, stored_way
from wal_e.operators.wal_search import find_restore_point, find_xid, first_after, last_commit
from wal_e.operators.wal_survey import look
from wal_e.pipeline.lanes import Cooperative
from wal_e.postgres.wal import Lsn
from wal_e.settings import Settings


class Lived(NamedTuple):
    """A running server on timeline 2, its store, three backups there, the last on timeline 2, and what the server said of its transactions."""

    server: object
    store: Path
    names: list[str]
    xids: dict[str, int]


class Told(NamedTuple):
    """The end of a transaction, as pg_waldump tells it."""

    lsn: Lsn
    time: datetime
    xid: int


def transaction(server, sql, end="commit"):
    """Run a transaction; return its number."""
    with server.connect() as session:
        session.execute("begin")
        xid = session.execute("select txid_current()").fetchone()[0]
        session.execute(sql)
        session.execute(end)
        if end.startswith("prepare"):
            session.execute(end.replace("prepare transaction", "commit prepared"))
    return xid


def rows(server, number):
    return transaction(server, f"insert into t select n, repeat(md5(n::text), 60) from generate_series(1, {number}) as n")


@pytest.fixture(scope="module")
def lived(make_shared_server):
    server = make_shared_server()
    store = archive_into_store(server, max_prepared_transactions="5", autovacuum="off")  # each transaction is to be known
    server.psql("create table t (n int, filler text)")
    xids = {"before all": rows(server, 1000)}
    server.wal_e("backup-push", str(server.data), "--fast")
    xids["first"] = rows(server, 3000)
    server.psql("select pg_create_restore_point('noon')")
    xids["prepared"] = transaction(server, "insert into t values (1); savepoint a; insert into t values (2)", "prepare transaction 'p'")
    xids["rolled back"] = transaction(server, "insert into t values (3)", "rollback")
    server.psql("select pg_switch_wal()")
    server.wal_e("backup-push", str(server.data), "--fast")
    xids["last of one"] = rows(server, 2000)
    server.psql("select pg_switch_wal()")
    xids["in the partial one"] = rows(server, 10)
    settled(server)
    server.stop("immediate")
    (server.data / "recovery.signal").touch()
    give_to_server_user(server.data / "recovery.signal")
    server.start(restore_command='wal-e wal-fetch "%f" "%p"')
    server.wait_for("select not pg_is_in_recovery()")
    server.wal_e("backup-push", str(server.data), "--fast")
    xids["last of two"] = rows(server, 1000)
    server.psql("select pg_switch_wal()")
    settled(server)
    names = backups(server)
    assert [name[5:13] for name in names] == ["00000001", "00000001", "00000002"]
    return Lived(server, store, names, xids)


@pytest.fixture(scope="module")
def told(lived, tmp_path_factory):
    """By timeline, every end of a transaction in the whole stored segments, in the order of WAL."""
    place = tmp_path_factory.mktemp("wal")
    for name in stored_wal(lived.store):
        with (place / name).open("wb") as raw:
            subprocess.run(["lzop", "-dc", lived.store / f"wal_005/{name}.lzo"], stdout=raw, check=True)
    return {timeline: list(_dumped(place, timeline)) for timeline in (1, 2)}


def _dumped(place, timeline):
    names = sorted(path.name for path in place.iterdir() if int(path.name[:8], 16) == timeline)
    argv = [bindir() / "pg_waldump", "-p", place, "-t", str(timeline), "-r", "Transaction", names[0], names[-1]]
    for line in subprocess.run(argv, capture_output=True, text=True, env={"TZ": "UTC"}, check=False).stdout.splitlines():
        found = re.search(r"tx: +(\d+), lsn: (\S+), .* desc: (?:COMMIT|ABORT)(?:_PREPARED (\d+):)? (\d{4}-\S+ \S+) UTC", line)
        if found:
            yield Told(Lsn.parse(found[2]), datetime.fromisoformat(f"{found[4]}+00:00"), int(found[3] or found[1]))


@pytest.fixture
def spoilt(lived, make_place):
    """A copy of that store to be spoiled; the place has no server of its own."""
    place = make_place()
    place.run(["cp", "-a", lived.store, place.directory / "store"])
    return lived._replace(server=place, store=place.directory / "store")


def run(lived, *options, status=0):
    result = Watched(lived.server, lived.store)("window", "--json", *options)
    assert result.returncode == status, result.stderr
    return json.loads(result.stdout)


def exact(moment):
    return moment.isoformat(timespec="microseconds")


def sentinel(lived, name):
    return json.loads((lived.store / f"basebackups_005/{name}_backup_stop_sentinel.json").read_text())["wal_e"]


def opened(lived):
    return Archive.open(Settings({"WALE_FILE_PREFIX": f"file://localhost{lived.store}"}), Cooperative(4))


def ways(lived):
    """The archive, and by timeline the way from the oldest backup."""
    archive = opened(lived)
    survey = look(archive)
    first = survey.reaches[0].need.start // survey.wal.segment_size
    return archive, {timeline: stored_way(survey.wal, survey.lines.way(timeline, first)) for timeline in (1, 2)}


def test_each_timeline_has_one_window_from_its_oldest_backup_to_its_last_commit_as_pg_waldump_says(lived, told):
    document = run(lived)
    assert document["gaps"] == []
    one, two = document["windows"]
    assert (one["timeline"], two["timeline"], one["backup"], two["backup"]) == (1, 2, lived.names[0], lived.names[0])
    for window in (one, two):
        last = told[window["timeline"]][-1]
        found = window["last_commit"]
        assert (found["lsn"], found["time"], found["xid"]) == (str(last.lsn), exact(last.time), last.xid)
        assert window["end_segment"] == [name for name in stored_wal(lived.store) if int(name[:8], 16) == window["timeline"]][-1]
        assert window["from_lsn"] == sentinel(lived, lived.names[0])["stop_lsn"]
    assert told[1][-1].xid == lived.xids["last of one"], "what is in the partial segment is not on timeline 1"
    assert told[2][-1].xid == lived.xids["last of two"]


def test_a_window_begins_when_nothing_before_it_is_later(lived, told):
    facts = sentinel(lived, lived.names[0])
    before = [one.time for one in told[1] if one.lsn < Lsn.parse(facts["stop_lsn"])]
    begin = datetime.fromisoformat(run(lived)["windows"][0]["from_time"])
    after = next(one.time for one in told[1] if one.lsn >= Lsn.parse(facts["stop_lsn"]))
    assert begin == max(before[-5:])
    assert begin < after
    assert begin <= datetime.fromisoformat(facts["finished"]) + timedelta(milliseconds=1)


def test_people_see_the_same_times_in_lines_and_nothing_is_written(lived):
    before = sorted(path.name for path in lived.store.rglob("*"))
    one, two = run(lived)["windows"]
    shown = Watched(lived.server, lived.store)("window")
    assert shown.returncode == 0
    for line, window in zip(shown.stdout.splitlines(), (one, two), strict=True):
        assert line.startswith(
            f"timeline {window['timeline']}: from {window['from_time']} ({window['from_lsn']}, {lived.names[0]}) to {window['last_commit']['time']}"
        )
    assert sorted(path.name for path in lived.store.rglob("*")) == before


def test_a_gap_splits_the_window_and_is_told_with_the_backup_that_needs_it(spoilt, told):
    stop = Lsn.parse(sentinel(spoilt, spoilt.names[0])["stop_lsn"])
    missing = next(name for name in stored_wal(spoilt.store) if int(name[8:16], 16) == 0 and int(name[16:], 16) * 2**20 > stop + 2**20)
    assert missing < spoilt.names[1][5:29]
    (spoilt.store / f"wal_005/{missing}.lzo").unlink()
    document = run(spoilt)
    assert [(one["timeline"], one["backup"]) for one in document["windows"]] == [(1, spoilt.names[0]), (1, spoilt.names[1]), (2, spoilt.names[1])]
    limit = int(missing[16:], 16) * 2**20
    expected = [one for one in told[1] if one.lsn < limit][-1]
    first = document["windows"][0]
    if expected.lsn >= stop:
        assert first["last_commit"]["time"] == exact(expected.time)
    else:
        assert first["last_commit"] is None
    assert int(first["end_segment"], 16) == int(missing, 16) - 1
    assert [(gap["first"], gap["segments"], gap["needed_by"]) for gap in document["gaps"]] == [(missing, 1, [spoilt.names[0]])]
    text = Watched(spoilt.server, spoilt.store)("window").stdout
    assert f"timeline 1: {missing} is missing, needed by {spoilt.names[0]}" in text


def test_an_empty_archive_says_so_with_1_and_one_without_a_usable_backup_with_2(spoilt, make_place):
    place = make_place()
    store = place.make_directory("store")
    empty = Watched(place, store)("window")
    assert refusal(empty, 1, "nothing can be recovered", "no complete backup").error == "BackupNotFound"
    for name in spoilt.names:
        (spoilt.store / f"wal_005/{name[5:29]}.lzo").unlink()
    result = Watched(spoilt.server, spoilt.store)("window", "--json")
    assert json.loads(result.stdout)["windows"] == []
    assert refusal(result, 2, "nothing can be recovered", stdout=result.stdout).error == "WalGap"


def test_damage_where_a_window_ends_names_the_key(spoilt):
    last = stored_wal(spoilt.store)[-1]
    path = spoilt.store / f"wal_005/{last}.lzo"
    path.write_bytes(path.read_bytes()[:1000])
    result = Watched(spoilt.server, spoilt.store)("window")
    assert refusal(result, 2, f"wal_005/{last}.lzo", stdout=result.stdout).error == "DamageError"


def test_transactions_and_restore_points_are_found_where_pg_waldump_has_them(lived, told):
    archive, way = ways(lived)
    by_xid = {one.xid: one for one in (*told[1], *told[2])}
    for name in ("first", "prepared", "rolled back", "last of one"):
        record = find_xid(archive, way[1], lived.xids[name])
        assert (record.lsn, record.time) == (by_xid[lived.xids[name]].lsn, by_xid[lived.xids[name]].time)
        assert record.kind == ("abort" if name == "rolled back" else "commit")
    assert find_xid(archive, way[1], lived.xids["in the partial one"]) is None
    assert find_xid(archive, way[2], lived.xids["in the partial one"]).time == by_xid[lived.xids["in the partial one"]].time
    noon = find_restore_point(archive, way[2], "noon")
    assert by_xid[lived.xids["first"]].lsn < noon.lsn < by_xid[lived.xids["prepared"]].lsn
    assert find_restore_point(archive, way[2], "midnight") is None


def test_the_first_commit_after_a_moment_is_the_one_at_which_recovery_stops(lived, told):
    archive, way = ways(lived)
    inside = [one for one in told[1] if one.lsn >= way[1].stretches[0].first * way[1].segment_size]
    for at, one in enumerate(inside):
        following = next((later for later in inside if later.time > one.time), None)
        found = first_after(archive, way[1], one.time)
        assert (found.lsn if found else None) == (following.lsn if following else None), at
        assert first_after(archive, way[1], one.time - timedelta(microseconds=1)).time >= one.time
    assert last_commit(archive, way[1]).time == inside[-1].time
    assert last_commit(archive, Way(way[1].segment_size, ())) is None


@pytest.mark.parametrize("too_late", [timedelta(microseconds=-1), timedelta(0)])
def test_the_server_recovers_to_the_microsecond_before_the_end_of_the_window_and_to_no_later_one(lived, make_server, told, too_late):
    copy = make_server(data_name="none")
    copy.environ |= {"WALE_FILE_PREFIX": f"file://localhost{lived.store}", "WALE_LOG_DESTINATION": "stderr"}
    copy.run(["rm", "-rf", copy.data])
    copy.wal_e("backup-fetch", str(copy.data), "LATEST")
    (copy.data / "recovery.signal").touch()
    give_to_server_user(copy.data / "recovery.signal")
    target = exact(told[2][-1].time + too_late)
    copy.start(check=False, restore_command='wal-e wal-fetch "%f" "%p"', recovery_target_time=target, recovery_target_action="pause", archive_mode="off")
    if too_late:
        copy.wait_for("select pg_get_wal_replay_pause_state() = 'paused'")
    else:
        wait_until(lambda: "recovery ended before configured recovery target was reached" in copy.log_text(), "recovery stops with an error")


def test_the_window_of_a_network_store_is_the_same(lived):
    network = NETWORKS["s3"]()
    place = lived.server
    put = "import sys; from wal_e.settings import Settings; from wal_e.blobstore.registry import open_store, call_directly; import os, pathlib\n"
    put += "store = open_store(Settings(os.environ, {}), lanes=1, offload=call_directly); root = pathlib.Path(sys.argv[1])\n"
    put += "[store.put(str(path.relative_to(root)), [path.read_bytes()]) for path in sorted(root.rglob('*')) if path.is_file()]"
    settings = {**network.environ, "WALE_FILE_PREFIX": ""}
    place.run([Path(sys.executable), "-c", put, str(lived.store)], env=settings)
    wal_e = Watched(place)
    wal_e.env |= settings
    result = wal_e("window", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["windows"] == run(lived)["windows"]
