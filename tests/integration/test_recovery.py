"""Push a working server, lose it, bring it back: the whole way, with real servers."""

import threading

import pytest
from fix_postgres import bindir, wait_until


def archived(make_server, **options):
    """A running server that archives into a store of its own."""
    server = make_server(**options)
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_mode="on", archive_command="wal-e wal-push %p")
    return server


def restored(make_server, origin, *, query="LATEST", signal="recovery.signal", fetch=(), **settings):
    """Fetch a backup into a new directory and start a server on it."""
    target = origin.directory / f"restored-{len(list(origin.directory.glob('restored-*')))}"
    origin.wal_e("backup-fetch", str(target), query, *fetch)
    server = make_server(data=target)
    server.environ |= {name: value for name, value in origin.environ.items() if name.startswith("WALE_")}
    (target / signal).touch()
    server.start(archive_mode="off", restore_command='wal-e wal-fetch "%f" "%p"', **settings)
    return server


def switch_and_wait(server):
    """End the current segment and wait until all is archived; a pooled push leaves pg_stat_archiver behind."""
    server.psql("select pg_switch_wal()")
    server.wait_for("select count(*) = 0 from pg_ls_archive_statusdir() where name like '%.ready'")


def dump(server, db="postgres"):
    lines = server.run([bindir() / "pg_dump", db]).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # followed by random words


def recovered(server):
    server.wait_for("select not pg_is_in_recovery()")


@pytest.mark.parametrize("wal_segsize_mb", [1, 16, 64])
def test_a_loaded_server_comes_back_whole(make_server, wal_segsize_mb):
    origin = archived(make_server, wal_segsize_mb=wal_segsize_mb)
    origin.pgbench("-i", "-q", "-s", "3")
    load = threading.Thread(target=lambda: origin.pgbench("-n", "-c", "2", "-T", "8"))
    load.start()
    origin.wal_e("backup-push", str(origin.data), "--fast", "--pool-size", "2")
    load.join()
    switch_and_wait(origin)
    before = dump(origin)

    target = restored(make_server, origin)
    recovered(target)
    assert dump(target) == before
    checked = target.run([bindir() / "pg_amcheck", "--install-missing", "--heapallindexed", "--all"])
    assert checked.stdout + checked.stderr == ""


def test_pg_verifybackup_accepts_a_restored_directory(make_server):
    origin = archived(make_server)
    origin.pgbench("-i", "-q", "-s", "1")
    origin.wal_e("backup-push", str(origin.data), "--fast")
    target = origin.directory / "restored"
    origin.wal_e("backup-fetch", str(target), "LATEST")
    assert "successfully verified" in origin.run([bindir() / "pg_verifybackup", "-n", target]).stdout
    victim = next(path for path in (target / "base").rglob("*") if path.is_file() and path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[0] ^= 1
    victim.write_bytes(content)
    assert origin.run([bindir() / "pg_verifybackup", "-n", target], check=False).returncode == 1


def test_the_printed_advice_recovers_to_a_point_in_time(make_server):
    origin = archived(make_server)
    origin.psql("create table t as select generate_series(1, 1000) as n")
    origin.wal_e("backup-push", str(origin.data), "--fast")
    origin.psql("insert into t values (1001)")
    noted = origin.psql("select now()")
    origin.psql("drop table t")
    switch_and_wait(origin)

    target = origin.directory / "restored it's 100%"
    advice = origin.wal_e("backup-fetch", str(target), "LATEST").stdout
    script = advice.replace("# recovery_target_time = '2001-02-03 04:05:06+00'", f"recovery_target_time = '{noted}'\nrecovery_target_action = 'promote'")
    assert script != advice
    origin.run(["bash", "-e"], input=script)
    server = make_server(data=target)
    server.start(archive_mode="off")
    recovered(server)
    assert server.psql("select count(*), max(n) from t") == "1001|1001"


def test_a_standby_follows_the_archive_and_can_be_promoted_and_archived_in_turn(make_server):
    origin = archived(make_server)
    origin.psql("create table t as select 1 as n")
    origin.wal_e("backup-push", str(origin.data), "--fast")
    standby = restored(make_server, origin, signal="standby.signal", hot_standby="on")
    origin.psql("insert into t values (2)")
    switch_and_wait(origin)
    standby.wait_for("select count(*) = 2 from t")
    origin.psql("insert into t values (3)")
    switch_and_wait(origin)
    standby.wait_for("select count(*) = 3 from t")

    origin.stop("immediate")
    standby.stop()
    standby.start(archive_mode="on", archive_command="wal-e wal-push %p")
    standby.promote()
    standby.psql("insert into t values (4)")
    standby.wal_e("backup-push", str(standby.data), "--fast")
    standby.psql("insert into t values (5)")
    switch_and_wait(standby)
    names = [row.split("\t")[0] for row in standby.wal_e("backup-list").stdout.splitlines()[1:]]
    assert [name[5:13] for name in names] == ["00000001", "00000002"]
    for query in names:
        again = restored(make_server, standby, query=query)
        recovered(again)
        assert again.psql("select string_agg(n::text, ',' order by n) from t") == "1,2,3,4,5"


def test_a_backup_taken_on_a_standby_restores(make_server):
    origin = archived(make_server)
    origin.psql("create table t as select generate_series(1, 100) as n")
    origin.wal_e("backup-push", str(origin.data), "--fast")
    standby = restored(make_server, origin, signal="standby.signal", hot_standby="on")
    origin.psql("insert into t values (101); checkpoint")
    switch_and_wait(origin)
    standby.wait_for("select count(*) = 101 from t")
    standby.psql("checkpoint")
    push = threading.Thread(target=lambda: standby.wal_e("backup-push", str(standby.data), "--fast"))
    push.start()
    while push.is_alive():  # the WAL that ends the backup comes from the primary
        switch_and_wait(origin)
        push.join(0.5)
    again = restored(make_server, origin)
    recovered(again)
    assert again.psql("select count(*) from t") == "101"


def test_prefetched_segments_are_used_and_nothing_is_left_running(make_server):
    origin = archived(make_server, wal_segsize_mb=1)
    origin.wal_e("backup-push", str(origin.data), "--fast")
    origin.psql("create table t (x text)")
    for _ in range(12):
        origin.psql("insert into t select repeat('x', 100) from generate_series(1, 3000)")
    switch_and_wait(origin)
    server = restored(make_server, origin)
    recovered(server)
    assert server.psql("select count(*) from t") == "36000"
    wait_until(lambda: "wal-prefetch" not in server.run(["ps", "-u", str(server.data.stat().st_uid), "-o", "args"]).stdout, "the end of prefetching")
