"""Drills with a real server: backups are proven, or what is wrong with them is found, and nothing is left of it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from fix_archive import Pushed, Watched, archive_into_store, backups, copied, listing, refusal, script, settled, stored_wal, warnings
from fix_postgres import bindir, give_to_server_user, wait_until


@pytest.fixture(scope="module")
def origin(make_shared_server):
    """A stopped server with a tablespace, one backup, and after it a restore point and more rows; its configuration archives."""
    server = make_shared_server()
    store = archive_into_store(server)
    place = server.make_directory("tablespace")
    server.psql(f"create tablespace elsewhere location '{place}'")
    server.psql("create table t (n int primary key) tablespace elsewhere")
    server.psql("insert into t select generate_series(1, 1000)")
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("create database other")
    server.psql("select pg_create_restore_point('before the rest')")
    server.psql("insert into t select generate_series(1001, 1500)")
    server.psql("select pg_switch_wal()")
    settled(server)
    server.stop()
    return Pushed(server, store, backups(server))


@pytest.fixture
def spoilt(origin, make_place):
    """A copy of the store, to be spoiled by the test."""
    return copied(origin, make_place())


def drill(pushed, *args, **options):
    return Watched(pushed.server, pushed.store)("drill", "--bindir", str(bindir()), *args, **options)


def checker():
    return "pg_amcheck" if (bindir() / "pg_amcheck").exists() else "amcheck"


def record(pushed):
    return json.loads((pushed.store / "basebackups_005" / pushed.names[0] / "drill.json").read_text())


def written(pushed, text):
    """A file of assertions."""
    path = pushed.server.directory / "assertions.sql"
    path.write_text(text)
    give_to_server_user(path)
    return str(path)


def test_a_good_backup_is_proven_and_nothing_but_the_record_comes_into_the_store(spoilt):
    before = listing(spoilt.store)
    asserted = written(spoilt, "-- all rows; those too\nselect count(*) = 1500 from t;\nselect exists (select from pg_database where datname = 'other');")
    result = drill(spoilt, "--json", "--sql", asserted)
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["backup"], shown["outcome"], shown["checked_with"], shown["statements"]) == (spoilt.names[0], "proven", checker(), 2)
    assert shown["timeline"] == 2
    assert shown["last_commit"] > "2026"
    assert all(shown[field] > 0 for field in ("fetch_s", "recovery_s", "check_s", "restored_bytes"))
    assert shown["kept"] is None
    assert {**record(spoilt), "backup": spoilt.names[0], "kept": None} == {**shown, "format": 1}
    listed = Watched(spoilt.server, spoilt.store)("backup-list", "--json")
    assert [backup["last_drill"] for backup in json.loads(listed.stdout)] == [{name: value for name, value in record(spoilt).items() if name != "format"}]
    key = f"basebackups_005/{spoilt.names[0]}/drill.json"
    assert {name: entry for name, entry in listing(spoilt.store).items() if name != key} == before


def test_a_drill_stops_at_a_target_and_may_be_kept_to_look_into(spoilt):
    asserted = written(spoilt, "select count(*) = 1000 from t")
    parent = spoilt.server.make_directory("parent")
    args = ("--target-name", "before the rest", "--sql", asserted, "--directory", str(parent), "--keep")
    result = drill(spoilt, *args)
    assert result.returncode == 0, result.stderr
    [kept] = parent.iterdir()
    assert f"kept in {kept}" in result.stdout
    assert "recovered to restore point before the rest" in result.stdout
    spoilt.server.run(
        [bindir() / "pg_ctl", "-D", kept / "data", "-o", f"-c config_file={kept}/postgresql.conf", "-l", kept / "log", "-w", "start"], libpq=False
    )
    stopping = [bindir() / "pg_ctl", "-D", kept / "data", "-m", "immediate", "-w", "stop"]
    spoilt.server.run(stopping, libpq=False)


def test_an_assertion_that_is_false_fails_the_drill_and_is_named(spoilt):
    asserted = written(spoilt, "select 1; select count(*) = 7 from t where n > 0; select true")
    result = drill(spoilt, "--sql", asserted, "--json")
    refusal(result, 2, "an assertion is not true", "select count(*) = 7 from t where n > 0", "false", spoilt.names[0], stdout=result.stdout)
    assert {**json.loads(result.stdout), "format": 1} == {**record(spoilt), "backup": spoilt.names[0], "kept": None}
    assert record(spoilt)["outcome"] == "failed"
    assert "count(*) = 7" in record(spoilt)["reason"]
    assert record(spoilt)["recovery_s"] > 0


def test_an_index_that_lacks_rows_of_its_table_is_found(make_server):
    server = make_server(wal_segsize_mb=1)
    store = archive_into_store(server)
    server.psql("create function f(int) returns int language sql immutable as 'select $1'; create table t as select generate_series(1, 100) as n")
    server.psql("create index liar on t (f(n)); create or replace function f(int) returns int language sql immutable as 'select -$1'")
    server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    [row] = server.wal_e("backup-list").stdout.splitlines()[1:]
    pushed = Pushed(server, store, [row.split("\t")[0]])
    refusal(drill(pushed), 2, "damaged inside", "liar", f"{checker()} says")
    assert "liar" in record(pushed)["reason"]


@pytest.mark.slow
def test_a_server_without_pg_amcheck_is_asked_by_sql(spoilt):
    bare = spoilt.server.make_directory("bare")
    for program in bindir().iterdir():
        if program.name not in ("postgres", "pg_amcheck"):
            (bare / program.name).symlink_to(program)
    shutil.copy(bindir() / "postgres", bare)  # it looks for its libraries beside where it really is
    result = Watched(spoilt.server, spoilt.store)("drill", "--bindir", str(bare), "--json", "--setting", f"dynamic_library_path={library_directory()}")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["checked_with"] == "amcheck"


def library_directory() -> str:
    return subprocess.check_output(["pg_config", "--pkglibdir"], text=True).strip()


def test_a_gap_in_the_wal_is_named_before_anything_is_fetched(spoilt):
    for path in (spoilt.store / "wal_005").iterdir():
        os.utime(path, (path.stat().st_mtime - 3600,) * 2)  # in an archive that has just grown, what is missing may be on its way
    gone = stored_wal(spoilt.store)[-2]
    (spoilt.store / "wal_005" / f"{gone}.lzo").unlink()
    parent = spoilt.server.make_directory("parent")
    parent.chmod(0o500)
    result = drill(spoilt, "--directory", str(parent))
    refusal(result, 2, gone, spoilt.names[0])
    assert gone in record(spoilt)["reason"]
    assert record(spoilt)["fetch_s"] is None


def test_a_damaged_partition_fails_the_drill_and_leaves_nothing(spoilt):
    victim = max((spoilt.store / "basebackups_005" / spoilt.names[0] / "tar_partitions").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    refusal(drill(spoilt), 2, victim.name)
    assert victim.name in record(spoilt)["reason"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_in_the_middle_of_the_checks_leaves_neither_process_nor_directory(spoilt, number):
    asserted = written(spoilt, "select pg_sleep(60)")
    parent = spoilt.server.make_directory("parent")
    with Watched(spoilt.server, spoilt.store).started("drill", "--bindir", str(bindir()), "--sql", asserted, "--directory", str(parent)) as process:
        wait_until(lambda: any("SELECT" in line for line in server_processes(parent)), "the assertion")
        process.send_signal(number)
        assert process.wait(60) == -number
    assert server_processes(parent) == []
    assert list(parent.iterdir()) == []
    assert not (spoilt.store / "basebackups_005" / spoilt.names[0] / "drill.json").exists()


@pytest.mark.slow
def test_a_drill_that_is_killed_takes_its_server_along(spoilt):
    asserted = written(spoilt, "select pg_sleep(60)")
    parent = spoilt.server.make_directory("parent")
    with Watched(spoilt.server, spoilt.store).started("drill", "--bindir", str(bindir()), "--sql", asserted, "--directory", str(parent)) as process:
        wait_until(lambda: any("SELECT" in line for line in server_processes(parent)), "the assertion")
        process.kill()
        wait_until(lambda: server_processes(parent) == [], "the end of the server")


def server_processes(parent: Path) -> list[str]:
    """Titles of the processes of servers below a directory; a title is written over the environment, so that tells nothing of them."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(place.joinpath("cwd").readlink()).startswith(str(parent)):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_a_server_that_is_not_there_is_said_before_anything_is_fetched(spoilt):
    empty = spoilt.server.make_directory("empty")
    result = Watched(spoilt.server, spoilt.store)("drill", "--bindir", str(empty))
    refusal(result, 2, "there is no server of PostgreSQL", "apt-get install postgresql-", str(empty))
    assert not (spoilt.store / "basebackups_005" / spoilt.names[0] / "drill.json").exists()


@pytest.mark.slow
def test_a_store_that_may_not_be_written_to_is_no_reason_to_fail(spoilt):
    (spoilt.store / "basebackups_005" / spoilt.names[0]).chmod(0o500)
    result = drill(spoilt, "--target-immediate")
    (spoilt.store / "basebackups_005" / spoilt.names[0]).chmod(0o700)
    assert result.returncode == 0, result.stderr
    assert any("could not be stored" in warning.message for warning in warnings(result))
    assert "recovered to the end of the backup" in result.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a server as somebody else")
def test_root_drills_as_the_owner_of_the_files(spoilt, tmp_path):
    environ = {**spoilt.server.environ, "WALE_FILE_PREFIX": f"file://localhost{spoilt.store}", "WALE_LOG_DESTINATION": "stderr"}
    scratch = spoilt.server.make_directory("scratch")
    argv = [script(), "drill", "--bindir", str(bindir()), "--directory", scratch]
    result = subprocess.run(argv, env=environ, cwd="/", capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert list(scratch.iterdir()) == []
    assert "is proven to restore" in result.stdout
