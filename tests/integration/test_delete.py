"""Deletion beside a real server: what stays can be recovered to the end of the WAL, across timelines."""

import json
import signal

import pytest
from fix_archive import Watched, archive_into_store, listing, refusal, settled, stored_wal


def switched(server):
    """End the current segment, and wait until all is archived."""
    server.psql("select pg_switch_wal()")
    settled(server)


def rows(server, first, last):
    """Fill a table so that WAL grows by some segments of 1 MiB."""
    server.psql("create table if not exists t (n int, filler text)")
    server.psql(f"insert into t select n, repeat(md5(n::text), 60) from generate_series({first}, {last}) as n")
    switched(server)


def pushed(server):
    server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    return names(server)[-1]


def names(server):
    return listed(server.wal_e("backup-list", "--json").stdout)


def listed(text):
    return [row["name"] for row in json.loads(text)]


def restored(make_server, origin, query, **settings):
    """Fetch a backup, recover it to the end of the archive along the newest timeline, and promote it."""
    target = origin.directory / f"restored-{len(list(origin.directory.glob('restored-*')))}"
    origin.wal_e("backup-fetch", str(target), query)
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name.startswith("WALE_")}
    (target / "recovery.signal").touch()
    server.start(**{"archive_mode": "off", "restore_command": 'wal-e wal-fetch "%f" "%p"', "recovery_target_timeline": "latest", **settings})
    server.wait_for("select not pg_is_in_recovery()")
    return server


@pytest.fixture
def history(make_server):
    """Three backups, the last on timeline 2; return the server of timeline 2, the store and the names."""
    origin = make_server(wal_segsize_mb=1)
    store = archive_into_store(origin)
    rows(origin, 1, 2000)
    first = pushed(origin)
    rows(origin, 2001, 4000)
    second = pushed(origin)
    rows(origin, 4001, 6000)
    origin.stop("immediate")
    promoted = restored(make_server, origin, "LATEST", archive_mode="on", archive_command="wal-e wal-push %p")
    rows(promoted, 6001, 8000)
    third = pushed(promoted)
    rows(promoted, 8001, 10000)
    assert [name[5:13] for name in (first, second, third)] == ["00000001", "00000001", "00000002"]
    return promoted, store, [first, second, third]


def all_rows(server):
    return server.psql("select count(*), count(distinct n), max(n) from t") == "10000|10000|10000"


def test_what_is_retained_recovers_to_the_end_of_the_wal(make_server, history):
    server, store, (first, second, third) = history
    before = listing(store)
    shown = server.wal_e("delete", "retain", "2").stdout
    assert listing(store) == before
    assert first in shown

    wal_e = Watched(server, store)
    assert wal_e("delete", "--confirm", "retain", "2").returncode == 0
    assert names(server) == [second, third]
    assert stored_wal(store)[0] == second[5:29]
    assert all_rows(restored(make_server, server, second)), "over the switch of timelines"

    rows_of_wal = len(stored_wal(store))
    assert wal_e("delete", "--confirm", "retain", "1").returncode == 0
    assert names(server) == [third]
    left = stored_wal(store)
    assert left[0] == third[5:29]
    assert 0 < len(left) < rows_of_wal
    assert (store / "wal_005/00000002.history.lzo").exists()
    assert all_rows(restored(make_server, server, third))

    rows(server, 10001, 10002)
    assert names(server) == [third]
    assert pushed(server) != third
    assert "nothing would be deleted" in server.wal_e("delete", "garbage").stdout


def test_an_archive_is_not_touched_by_refused_commands_and_is_gone_after_everything(spoiled):
    server, store, (_, newest) = spoiled
    wal_e = Watched(server, store)
    before = listing(store)
    refusal(wal_e("delete", "--confirm", "retain", "0"), 2, "0")
    refusal(wal_e("delete", "--confirm", "before", "base_0000000100000000000000FF_00000040"), 1, "no backup")
    refusal(wal_e("delete", "--confirm", "before", "newest"), 2, "neither")
    assert wal_e("delete").returncode == 2
    assert listing(store) == before
    assert wal_e("delete", "--confirm", "before", newest).returncode == 0
    assert wal_e("delete", "--confirm", "everything").returncode == 0
    assert list(listing(store)) == ["."]


def test_a_store_that_refuses_is_a_failure_and_the_next_run_finishes(spoiled):
    server, store, (oldest, newest) = spoiled
    wal_e = Watched(server, store)
    objects = store / "basebackups_005" / oldest / "tar_partitions"
    objects.chmod(0o500)
    try:
        said = wal_e("delete", "--confirm", "retain", "1")
    finally:
        objects.chmod(0o700)
    refusal(said, 1, "not everything could be deleted", "no permission", "again", stdout=said.stdout)
    assert "may be left" in said.stdout
    assert listed(wal_e("backup-list", "--json").stdout) == [newest]
    assert wal_e("delete", "--confirm", "retain", "1").returncode == 0
    assert not (store / "basebackups_005" / oldest).exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_deletion_leaves_whole_backups_and_is_finished_by_the_next(spoiled, signum):
    server, store, (_, newest) = spoiled
    wal_e = Watched(server, store)
    for number in range(20_000):
        (store / "wal_005" / f"000000010000000000000001.{number:08X}.backup.lzo").touch()
    with wal_e.started("delete", "--confirm", "-v", "retain", "1") as process:
        process.stdout.readline()
        process.send_signal(signum)  # now it waits for somebody to read on
        process.communicate(timeout=60)
        assert process.returncode == -signum
    assert list((store / "wal_005").glob("000000010000000000000001.*")), "it was killed before its end"
    assert newest in listed(wal_e("backup-list", "--json").stdout)
    assert wal_e("delete", "--confirm", "retain", "1").returncode == 0
    assert listed(wal_e("backup-list", "--json").stdout) == [newest]
    assert stored_wal(store)[0] == newest[5:29]
    assert not list((store / "wal_005").glob("000000010000000000000001.*"))
