"""Every verb with a real server of every major version, 10 to 18, but for the ways to push and to recover, which test_versions.py goes.

The normal run has the versions between which something differs for a verb; ``--slow`` has all of them for each.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tarfile
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from fix_archive import Gate, Watched, archive_into_store, fake_lzop, records, refusal, settled, stored_wal, unchanged, warnings
from fix_postgres import Server, client_programs, give_to_server_user, wait_until

from wal_e.postgres.page_checksum import checksums

MAJORS = range(10, 19)
PAGE = 8192
SEGMENT_BLOCKS = (1 << 30) // PAGE  # of a relation's file
NEVER = 2


def majors(*normal: int):
    """Run a test with every major version, in the normal run with these only."""
    return pytest.mark.parametrize("major", [pytest.param(major, marks=() if major in normal else pytest.mark.slow) for major in MAJORS])


class Life(NamedTuple):
    """A server that has ended, and its store: one backup, and after it more WAL, whose last record of a transaction ends a prepared one.

    ``sums`` has what each database holds in the end, ``numbers`` the transactions by what they did, in order; ``spaces`` the OID of each
    tablespace by its name. What --start starts listens as ``server`` did.
    """

    major: int
    server: Server
    store: Path
    name: str
    sums: dict[str, str]
    numbers: dict[str, int]
    spaces: dict[str, str]


DATABASES = ("shop", "other", "roomy")
CONTENT = """
    create table t (n int, x text);
    insert into t select n, repeat('x', n % 100) from generate_series(1, 3000) as n;
    create index on t (n);
    create table beside (n int) tablespace aside;
    insert into beside select generate_series(1, 500)
"""


def segment_mb(major: int) -> int:
    return 16 if major == 10 else 1


def made(make, major: int, **options) -> Server:
    return make(major=major, wal_segsize_mb=segment_mb(major), **options)


def content(server: Server, database: str) -> str:
    return server.psql(
        "select (select md5(string_agg(t::text, ',' order by t)) from t), (select md5(string_agg(n::text, ',' order by n)) from beside)", database
    )


def transaction(server: Server, sql: str, *ends: str) -> int:
    """Run a transaction in the database shop; return its number."""
    with server.connect("shop") as session:
        session.execute("begin")
        [number] = session.execute("select txid_current()").fetchone()
        session.execute(sql)
        for end in ends or ("commit",):
            session.execute(end)
    return number


def archived(server: Server) -> None:
    server.psql("select pg_switch_wal()")
    settled(server)


def only_backup(server: Server) -> str:
    [row] = server.wal_e("backup-list").stdout.splitlines()[1:]
    return row.split("\t")[0]


def live(server: Server, major: int) -> Life:
    """Fill the archive of a server; pg_wal is elsewhere, and so is a tablespace."""
    server.run(["mv", server.data / "pg_wal", server.directory / "wal"], libpq=False)
    (server.data / "pg_wal").symlink_to(server.directory / "wal")
    give_to_server_user(server.data / "pg_wal")
    server.configure(port=str(server.port), unix_socket_directories=str(server.directory), listen_addresses="", wal_compression="on")
    store = archive_into_store(server, max_prepared_transactions="5", autovacuum="off")
    space = server.make_directory("space")
    server.psql(f"create tablespace aside location '{space}'")
    for name in DATABASES:
        server.psql(f"create database {name}{' tablespace aside' if name == 'roomy' else ''}")
        server.psql(CONTENT, name)
    server.psql("create database model is_template true")
    transaction(server, "insert into t values (-1, 'before the backup')")
    server.wal_e("backup-push", str(server.data), "--fast")
    numbers = {}
    for name in DATABASES:
        server.psql("insert into t select n, 'later' from generate_series(5000, 6000) as n", name)
        server.psql("vacuum t", name)
        server.psql("update t set x = x || 'y' where n % 7 = 0", name)
    server.psql("vacuum full pg_attribute", "other")
    numbers["insert"] = transaction(server, "insert into t values (0, 'one')")
    server.psql("select pg_create_restore_point('noon')")
    numbers["after noon"] = transaction(server, "insert into t values (0, 'after noon')")
    numbers["rolled back"] = transaction(server, "savepoint a; insert into t values (0, 'never'); savepoint b; create table never (n int)", "rollback")
    many = "; ".join(f"savepoint s{n}; insert into t values (0, 'sub {n}')" for n in range(70))
    numbers["many"] = transaction(server, many)
    server.psql("checkpoint")
    archived(server)
    prepared = "savepoint a; insert into t values (0, 'prepared'); savepoint b; drop table gone; create table come (n int primary key); analyze t"
    server.psql("create table gone (n serial primary key, x text)", "shop")
    numbers["not to be"] = transaction(server, prepared, "prepare transaction 'q'", "rollback prepared 'q'")
    numbers["prepared"] = transaction(server, prepared, "prepare transaction 'p'", "commit prepared 'p'")
    sums = {name: content(server, name) for name in DATABASES}
    spaces = dict(line.split("|") for line in server.psql("select spcname, oid from pg_tablespace where oid > 16383").split("\n"))
    archived(server)
    name = only_backup(server)
    server.stop()
    return Life(major, server, store, name, sums, numbers, spaces)


@pytest.fixture(scope="module")
def lived(make_shared_server):
    """The life of a server of a major version; before 13, with page checksums, without which ``--include-database`` is not safe."""
    lives: dict[int, Life] = {}

    def get(major: int) -> Life:
        if major not in lives:
            server = made(make_shared_server, major, checksums=major < 13 or major == 18)
            lives[major] = live(server, major)
        return lives[major]

    return get


class Copy:
    """A place to restore a life to, with a copy of its store, where its server may archive."""

    def __init__(self, life: Life, make_place) -> None:
        self.life = life
        self.server = make_place(life.major)
        self.data = self.server.data
        self.store = self.server.directory / "store"
        self.server.run(["cp", "-a", life.store, self.store])
        self.server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{self.store}", "WALE_LOG_DESTINATION": "stderr"}
        self.server.port, self.server.socket_dir = life.server.port, life.server.directory
        self.space = self.server.directory / "not/yet/there"
        self.spaces = ("--tablespace", f"{life.spaces['aside']}={self.space}")
        self.wal_e = Watched(self.server, self.store)

    def restore(self, *options: str, spaces: tuple[str, ...] | None = None, status: int = 0, **given):
        result = self.wal_e("restore", str(self.data), *(self.spaces if spaces is None else spaces), *options, **given)
        assert result.returncode == status, result.stderr
        return result

    def started(self, *options: str, spaces: tuple[str, ...] | None = None) -> str:
        """Restore and have the server started, which stays; return what was said about that."""
        said = self.server.wal_e("restore", str(self.data), *(self.spaces if spaces is None else spaces), *options, "--start").stdout
        return said[said.index("\nstate ") + 1 :]

    def is_whole(self, *names: str) -> None:
        """These databases hold what they held, as does every index of theirs."""
        for name in names or DATABASES:
            assert content(self.server, name) == self.life.sums[name], name
            self.server.psql("create extension if not exists amcheck", name)
            how = ", true" if self.life.major >= 11 else ""
            self.server.psql(
                f"select bt_index_check(c.oid{how}) from pg_class c join pg_am a on a.oid = relam where amname = 'btree' and relpersistence <> 't'", name
            )
            if self.life.major >= 14:
                assert self.server.psql("select count(*) from pg_class c, verify_heapam(c.oid) where relkind in ('r', 't') and relam = 2", name) == "0"
            self.server.psql("drop extension amcheck", name)


@pytest.fixture
def copy(lived, make_place, major):
    return Copy(lived(major), make_place)


# restore --start


@majors(10)
def test_a_started_server_pauses_at_a_time_and_says_the_last_commit_to_the_microsecond(copy, major):
    """The last moment that can be asked for, and the commit before it, which is that of the transaction with many others inside."""
    [window] = json.loads(copy.wal_e("window", "--json").stdout)["windows"]
    last = window["last_commit"]["time"]
    before = re.sub(r"\d{6}(?=\+)", lambda digits: f"{int(digits[0]) - 1:06}" if int(digits[0]) else "000000", last)
    refusal(copy.restore("--target-time", last, status=NEVER), NEVER, "lies beyond the end")
    said = copy.started("--target-time", before)
    assert re.search(r"^state +recovery is paused at the target", said, re.M)
    assert re.search(r"^timeline +1$", said, re.M)
    shown = re.search(r"last commit of (\S+ \S+)$", said, re.M)[1]
    replayed = copy.server.psql("select to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')")
    assert datetime.fromisoformat(shown) == datetime.fromisoformat(f"{replayed}+00")
    assert copy.server.psql("select count(*) from t where x like 'sub %'", "shop") == "70"
    assert copy.server.psql("select count(*) from t where x = 'prepared'", "shop") == "0"
    copy.server.psql("select pg_wal_replay_resume()")
    copy.server.wait_for("select not pg_is_in_recovery()")


@majors(10)
def test_a_started_server_shuts_down_at_a_restore_point_and_goes_on_as_it_is_told(copy, major):
    said = copy.started("--target-name", "noon", "--target-action", "shutdown")
    assert re.search(r"^state +the server was shut down at the target;", said, re.M)
    role = "recovery.conf" if major < 12 else "recovery.signal"
    assert role in said
    assert not copy.server.is_running()
    with (copy.data / ("recovery.conf" if major < 12 else "postgresql.auto.conf")).open("a") as stream:
        stream.write("recovery_target_action = 'promote'\n")
    copy.server.start(archive_mode="off")
    copy.server.wait_for("select not pg_is_in_recovery()")
    assert copy.server.psql("select count(*) from t where x = 'one'", "shop") == "1"
    assert copy.server.psql("select count(*) from t where x = 'after noon'", "shop") == "0"


@majors()
def test_a_started_server_is_promoted_behind_a_prepared_transaction_and_archives(copy, major):
    said = copy.started("--target-xid", str(copy.life.numbers["prepared"]), "--target-action", "promote")
    assert re.search(r"^state +recovery has ended, the server is in service$", said, re.M)
    assert re.search(r"^timeline +2$", said, re.M)
    copy.is_whole()
    archived(copy.server)
    assert (copy.store / "wal_005/00000002.history.lzo").exists()


@majors(18)
def test_a_started_standby_follows_can_be_backed_up_and_when_promoted_meanwhile_says_so(copy, major):
    last = stored_wal(copy.store)[-1]
    held = copy.server.directory / last
    os.rename(copy.store / f"wal_005/{last}.lzo", held)
    said = copy.started("--standby")
    assert re.search(r"^state +the data are consistent, recovery goes on$", said, re.M)
    os.rename(held, copy.store / f"wal_005/{last}.lzo")
    copy.server.wait_for("select count(*) = 70 from pg_database, generate_series(1, 70) where datname = 'shop' and pg_is_in_recovery()")
    wait_until(lambda: content(copy.server, "shop") == copy.life.sums["shop"], "the standby follows")

    check = copy.wal_e("check", "--json", str(copy.data))
    states = {one["name"]: one["state"] for one in json.loads(check.stdout)}
    assert (check.returncode, states["server"], states["archive_mode"], states["switch"]) == (0, "ok", "ok", "skip"), check.stdout
    status = json.loads(copy.wal_e("wal-status", "--json", str(copy.data)).stdout)
    assert (status["server_error"], status["server"]["role"], status["server"]["timeline"]) == (None, "standby", 1)

    pushed = copy.wal_e("backup-push", str(copy.data), "--fast")
    assert pushed.returncode == 0, pushed.stderr
    assert warnings(pushed) == []
    again = copy.wal_e("backup-push", str(copy.data), "--fast")
    assert [record.message.partition(" base_")[0] for record in warnings(again)] == ["nothing new since"]
    assert copy.wal_e("backup-verify", "LATEST").returncode == 0

    gate = Gate(copy.server, 1)
    shutil.rmtree(copy.store / "basebackups_005")
    with copy.wal_e.started("backup-push", str(copy.data), "--fast", env=gate.env) as process:
        gate.wait(process)
        copy.server.promote()
        gate.open()
        stdout, stderr = process.communicate(timeout=60)
    result = type(pushed)([], process.returncode, stdout, stderr)
    error = refusal(result, 1, "promoted")
    assert error.error == "BackupInterrupted"
    copy.is_whole()


# restore --include-database, --delta, tablespaces


@majors(10, 18)
def test_databases_that_are_not_included_are_zeros_and_can_be_dropped(copy, major):
    result = copy.restore("--include-database", "shop", "--include-database", "roomy")
    told = [record.message for record in warnings(result)]
    assert any("ignore_invalid_pages" in message if major >= 13 else "recovery may stop" in message for message in told), told
    oids = json.loads((copy.store / f"basebackups_005/{copy.life.name}_backup_stop_sentinel.json").read_text())["wal_e"]["databases"]
    zeroed = [*copy.data.rglob(f"{oids['other']}/[1-9]*"), *copy.space.rglob(f"{oids['other']}/[1-9]*")]
    assert len(zeroed) > 200
    assert all(path.read_bytes().strip(b"\0") == b"" and path.stat().st_blocks == 0 for path in zeroed if path.stat().st_size)
    copy.server.start(archive_mode="off")
    copy.server.wait_for("select not pg_is_in_recovery()")
    copy.is_whole("shop", "roomy")
    for name in ("other", "model"):
        with pytest.raises(psycopg.OperationalError, match="is not a valid data directory"):
            copy.server.psql("select 1", name)
    for sql in ("alter database model is_template false", "drop database model", "drop database other", "create database other"):
        copy.server.psql(sql)
    copy.server.psql("create table t (n int)", "other")
    for name in ("postgres", "template1", "shop", "roomy"):
        copy.server.psql("vacuum freeze", name)
    copy.server.psql("alter system reset all")
    copy.server.stop()
    copy.server.start()
    copy.is_whole("shop", "roomy")


@pytest.mark.slow
@pytest.mark.parametrize("hints", ["off", "on"])
@pytest.mark.parametrize("major", [10, 11, 12])
def test_before_13_other_databases_can_only_be_left_out_where_wal_has_their_pages(make_server, make_place, major, hints):
    server = made(make_server, major, checksums=False)
    archive_into_store(server, wal_log_hints=hints, autovacuum="off")
    for name in ("shop", "other"):
        server.psql(f"create database {name}")
        server.psql("create table t (n int); insert into t select generate_series(1, 3000)", name)
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("vacuum t", "other")
    archived(server)
    server.stop()
    place = make_place(major)
    place.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")}
    place.wal_e("restore", str(place.data), "--include-database", "shop")
    place.start(check=False, archive_mode="off")
    if hints == "on":
        place.wait_for("select not pg_is_in_recovery()")
        assert place.psql("select count(*) from t", "shop") == "3000"
    else:
        wait_until(lambda: "WAL contains references to invalid pages" in place.log_text(), f"the server ends\n{place.log_text()}")


@majors(18)
def test_a_diverged_copy_becomes_whole_again_and_its_links_stay(copy, major):
    copy.restore()
    copy.server.start(archive_mode="off")
    copy.server.wait_for("select not pg_is_in_recovery()")
    copy.server.psql("drop table t; create table later as select generate_series(1, 5000) as n; checkpoint", "shop")
    copy.server.psql("create database third tablespace aside")
    oid = copy.server.psql("select oid from pg_database where datname = 'third'")
    [third] = copy.space.glob(f"*/{oid}")
    later = copy.data / copy.server.psql("select pg_relation_filepath('later')", "shop")
    copy.server.psql("drop database other")
    copy.server.stop()
    wal = copy.server.directory / "wal"
    copy.server.run(["mv", copy.data / "pg_wal", wal])
    (copy.data / "pg_wal").symlink_to(wal)
    give_to_server_user(copy.data / "pg_wal")
    over = ("--delta", "--unarchived-wal", "remove")
    with unchanged(copy.data, copy.space, wal):
        assert "fetch " in copy.restore(*over, "--dry-run", spaces=()).stdout
    assert later.exists()
    assert third.is_dir()
    copy.restore(*over, spaces=())
    assert not later.exists()
    assert not third.exists()
    assert (copy.data / "pg_wal").readlink() == wal
    assert (copy.data / "pg_tblspc" / copy.life.spaces["aside"]).readlink() == copy.space
    copy.server.start(archive_mode="off")
    copy.server.wait_for("select not pg_is_in_recovery()")
    copy.is_whole()
    assert copy.server.psql("select count(*) from pg_database where datname = 'third'") == "0"


@majors(10)
def test_tablespaces_come_back_as_directories(copy, major):
    refusal(copy.restore(spaces=(), status=NEVER), NEVER, "is not empty", str(copy.life.server.directory / "space"))
    said = copy.started("--blind", spaces=())
    assert re.search(r"^state +recovery has ended", said, re.M)
    place = copy.data / "pg_tblspc" / copy.life.spaces["aside"]
    assert not place.is_symlink()
    [version] = place.iterdir()
    assert version.name.startswith(f"PG_{major}_")
    copy.is_whole()


@pytest.mark.parametrize(("major", "minor", "known"), [(10, 21, False), pytest.param(10, 22, True, marks=pytest.mark.slow)])
def test_a_server_older_than_the_setting_for_such_directories_is_not_given_it(copy, minor, known):
    programs = copy.server.make_directory("programs")
    (programs / "postgres").write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {copy.life.major}.{minor}'\n")
    (programs / "postgres").chmod(0o755)
    copy.restore("--blind", "--bindir", str(programs), spaces=())
    assert ("allow_in_place_tablespaces" in (copy.data / "postgresql.auto.conf").read_text()) == known


@majors()
def test_a_tablespace_inside_of_the_data_directory_comes_along_and_back(make_server, make_place, major):
    server = made(make_server, major)
    archive_into_store(server, allow_in_place_tablespaces="on")
    server.psql("create tablespace inside location ''")
    server.psql("create table t (n int) tablespace inside; insert into t select generate_series(1, 5000)")
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("insert into t values (0)")
    archived(server)
    server.stop()
    place = make_place(major)
    place.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")}
    for options in ([], ["--delta", "--unarchived-wal", "remove"]):
        place.wal_e("restore", str(place.data), *options)
        place.start(archive_mode="off")
        place.wait_for("select not pg_is_in_recovery()")
        assert place.psql("select count(*) from t") == "5001"
        place.psql("create table more tablespace inside as select 1 as n; checkpoint")
        place.stop()


# drill


@pytest.fixture
def toolbox(major, make_place):
    """A server's programs beside pg_amcheck of 18, which speaks to older ones."""
    place = make_place(major)
    bin_ = place.make_directory("bin")
    for program in place.programs.iterdir():
        (bin_ / program.name).symlink_to(program)
    if not (bin_ / "pg_amcheck").exists():
        (bin_ / "pg_amcheck").symlink_to(client_programs() / "pg_amcheck")
    return bin_


def assertions(server: Server, text: str) -> str:
    path = server.directory / "assertions.sql"
    path.write_text(text)
    give_to_server_user(path)
    return str(path)


@majors(10)
def test_a_drill_proves_a_backup_and_remembers_how_long_it_took_and_what_it_reached(copy, major, toolbox):
    sql = assertions(copy.server, "select count(*) = 1 from t where x = 'prepared'; select count(*) = 500 from beside;")
    result = copy.wal_e("drill", "--bindir", str(toolbox), "--json", "--sql", sql, "--dbname", "shop")
    assert result.returncode == 0, result.stderr
    shown = json.loads(result.stdout)
    assert (shown["outcome"], shown["statements"], shown["checked_with"]) == ("proven", 2, "pg_amcheck" if major >= 14 else "amcheck")
    assert shown["server_version"].split(".")[0] == str(major)
    [window] = json.loads(copy.wal_e("window", "--json").stdout)["windows"]
    assert shown["last_commit"] == re.sub(r"\d{3}\+00:00$", "Z", window["last_commit"]["time"])
    assert window["last_commit"]["xid"] == copy.life.numbers["prepared"]
    [listed] = json.loads(copy.wal_e("backup-list", "--json").stdout)
    assert {name: listed["last_drill"][name] for name in ("fetch_s", "recovery_s", "check_s", "lsn")} == {
        name: shown[name] for name in ("fetch_s", "recovery_s", "check_s", "lsn")
    }
    assert all(shown[name] > 0 for name in ("fetch_s", "recovery_s", "check_s", "restored_bytes"))


@majors()
def test_a_drill_stops_where_it_is_told_and_checks_by_sql_where_there_is_no_program(copy, major):
    sql = assertions(copy.server, "select count(*) = 1 from t where x = 'one'; select count(*) = 0 from t where x = 'after noon'")
    xid = str(copy.life.numbers["after noon"])
    for target in (("--target-name", "noon"), ("--target-xid", xid, "--exclusive")):
        result = copy.wal_e("drill", "--json", "--sql", sql, "--dbname", "shop", *target)
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["checked_with"] in ("amcheck", "pg_amcheck")
    immediate = copy.wal_e("drill", "--json", "--target-immediate", "--sql", assertions(copy.server, "select 1/0"), "--dbname", "shop")
    refusal(immediate, NEVER, "select 1/0", "division by zero")


@majors(10)
def test_an_index_in_a_wrong_order_is_found(make_server, major):
    server = made(make_server, major)
    store = archive_into_store(server)
    server.psql(_COMPARING.format(less=-1, greater=1))
    operators = "operator 1 <, operator 2 <=, operator 3 =, operator 4 >=, operator 5 >"
    server.psql(f"create operator class liar for type int4 using btree as {operators}, function 1 cmp(int, int)")
    server.psql("create table t as select generate_series(1, 100) as n; create index wrong on t (n liar)")
    server.psql(_COMPARING.format(less=1, greater=-1))
    server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    refusal(Watched(server, store)("drill"), NEVER, "damaged inside", "wrong", "amcheck says")


_COMPARING = """
    create or replace function cmp(int, int) returns int language sql immutable as
    'select case when $1 < $2 then {less} when $1 > $2 then {greater} else 0 end'
"""


# window


@majors(18)
def test_the_window_ends_with_the_prepared_transaction_and_every_transaction_can_be_named(copy, major):
    with unchanged(copy.store):
        document = json.loads(copy.wal_e("window", "--json").stdout)
        text = copy.wal_e("window").stdout
    [window] = document["windows"]
    last = window["last_commit"]
    assert (last["kind"], last["xid"], document["gaps"]) == ("commit", copy.life.numbers["prepared"], [])
    assert text == (f"timeline 1: from {window['from_time']} ({window['from_lsn']}, {copy.life.name}) to {last['time']} ({last['lsn']}, the last commit)\n")
    assert (window["end_segment"], window["timeline"]) == (stored_wal(copy.store)[-1], 1)
    times = []
    for number in copy.life.numbers.values():
        said = copy.restore("--dry-run", "--target-xid", str(number)).stdout
        times.append(re.search(r"^reaches +after the end of the transaction at \S+ of (\S+ \S+),", said, re.M)[1])
    assert times == sorted(times, key=datetime.fromisoformat)
    assert datetime.fromisoformat(times[-1]) == datetime.fromisoformat(last["time"])
    said = copy.restore("--dry-run", "--target-name", "noon").stdout
    assert re.search(r"^reaches +the restore point at \S+ of ", said, re.M)


# what runs beside a server


@majors(12)
def test_what_runs_beside_a_server(make_server, major):
    """check, wal-status, wal-push --missing, wal-archive, wal-receive, wal-verify, wal-show; and a user who has only the rights that check names."""
    keep = {"wal_keep_size": "200MB"} if major >= 13 else {"wal_keep_segments": "200"}
    server = made(make_server, major)
    store = archive_into_store(server, archive_timeout="1h", autovacuum="off", **keep)
    wal_e = Watched(server, store)
    _idle_backups_end_at_once(server, wal_e)
    _is_well(server, wal_e, major)
    _rights_are_enough(server, wal_e)
    _lost_wal_is_pushed_again(server, wal_e, store)
    _resident_archives(server, wal_e)
    _receives(server, wal_e, store)


def _idle_backups_end_at_once(server: Server, wal_e: Watched) -> None:
    server.psql("create table t as select generate_series(1, 1000) as n")
    for _ in range(2):
        result = wal_e("backup-push", str(server.data), "--fast", timeout=60)
        assert (result.returncode, warnings(result)) == (0, []), result.stderr
    assert len(wal_e("backup-list").stdout.splitlines()) == 3
    settled(server)


def _is_well(server: Server, wal_e: Watched, major: int) -> None:
    result = wal_e("check", "--json", "--thorough", str(server.data))
    found = {one["name"]: one for one in json.loads(result.stdout)}
    assert result.returncode == 0, result
    assert {one["state"] for name, one in found.items() if name not in ("gpg", "free space")} == {"ok"}, found
    assert f"PostgreSQL {major}." in found["server"]["seen"]
    assert "arrived in the store" in found["switch"]["seen"]
    if major >= 15:
        _library_is_told(server, wal_e)
    status = json.loads(wal_e("wal-status", "--json", str(server.data)).stdout)
    assert (status["alarm"], status["server_error"], status["server"]["role"]) == (None, None, "primary")
    assert status["server"]["archiver"]["last_archived_wal"] is not None
    assert wal_e("wal-verify", "--content", str(server.data)).returncode == 0
    assert "timeline 1: " in wal_e("wal-show").stdout


def _library_is_told(server: Server, wal_e: Watched) -> None:
    server.configure(**{"basic_archive.archive_directory": str(server.make_directory("basic"))})
    server.psql("alter system set archive_library = 'basic_archive'")
    server.reload()
    server.wait_for("select current_setting('archive_library') = 'basic_archive'")
    result = wal_e("check", "--json", str(server.data))
    found = {one["name"]: one for one in json.loads(result.stdout)}
    assert (found["archive_command"]["state"], found["switch"]["state"]) == ("fail", "skip")
    assert found["archive_command"]["seen"].startswith("archive_library is basic_archive")
    refusal(result, NEVER, "archive_library", stdout=result.stdout)
    server.psql("alter system reset archive_library")
    server.reload()
    server.wait_for("select current_setting('archive_library') = ''")


def _rights_are_enough(server: Server, wal_e: Watched) -> None:
    """What the hints grant is enough to check and to push; before, each says what is lacking."""
    server.psql("create role humble login")
    as_humble = {"PGUSER": "humble"}
    result = wal_e("check", "--json", "--no-switch", str(server.data), env=as_humble)
    lacking = {one["name"]: one["hint"] for one in json.loads(result.stdout) if one["state"] == "fail"}
    assert "backup functions" in lacking, lacking
    hint = refusal(wal_e("backup-push", str(server.data), "--fast", env=as_humble), NEVER, "humble").hint
    for grant in re.findall(r"GRANT [^;]*;", hint):
        server.psql(grant)
    result = wal_e("backup-push", str(server.data), "--fast", env=as_humble)
    assert result.returncode == 0, result.stderr
    settled(server)
    result = wal_e("check", "--json", "--no-switch", str(server.data), env=as_humble)
    assert [one for one in json.loads(result.stdout) if one["state"] == "fail"] == []


def _lost_wal_is_pushed_again(server: Server, wal_e: Watched, store: Path) -> None:
    for _ in range(3):
        server.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()")
    settled(server)
    lost = stored_wal(store)[-2]
    (store / f"wal_005/{lost}.lzo").unlink()
    result = wal_e("wal-push", "--missing", str(server.data))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [f"pushed {lost}", "1 file pushed, 0 not pushed, 0 gaps left, 0 waiting for their turn"]
    assert lost in stored_wal(store)


def _resident_archives(server: Server, wal_e: Watched) -> None:
    with wal_e.started("wal-archive", str(server.data)) as archiver:
        wait_until(lambda: json.loads(wal_e("wal-status", "--json", str(server.data)).stdout)["resident_archiver"], "the archiver is seen")
        server.psql("insert into t select generate_series(1, 1000)")
        archived(server)
        archiver.terminate()
        _, stderr = archiver.communicate(timeout=20)
    assert wal_e("wal-verify").returncode == 0, stderr


def _receives(server: Server, wal_e: Watched, store: Path) -> None:
    env = {"PATH": f"{client_programs()}{os.pathsep}{server.environ['PATH']}"}
    spool = server.directory / "spool"
    with wal_e.started("wal-receive", str(spool), "--partial-interval", "0.2", env={**server.env, **env}) as receiver:
        server.wait_for("select count(*) = 1 from pg_replication_slots where active and restart_lsn is not null")
        server.psql("insert into t select generate_series(1, 1000)")
        segment = server.psql("select pg_walfile_name(pg_switch_wal())")
        wait_until(lambda: (store / f"wal_005/{segment}.lzo").exists(), "the segment is stored")
        server.psql("insert into t select generate_series(1, 1000)")
        wait_until(lambda: list(store.glob("wal_005/*.streaming.lzo")), "the unfinished segment is stored")
        receiver.terminate()
        receiver.communicate(timeout=30)


# pages


def flip(path: Path, block: int, at: int = 5000) -> None:
    """Flip a bit in a page, in place."""
    with path.open("r+b") as stream:
        stream.seek(block * PAGE + at)
        [byte] = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def tear(path: Path, block: int, lsn: str) -> None:
    """Make a page what is read while it is written: it says that it was changed up to this position, and not all of it was."""
    flip(path, block)
    with path.open("r+b") as stream:
        stream.seek(block * PAGE)
        stream.write(b"".join(int(half, 16).to_bytes(4, "little") for half in lsn.split("/")))


def numbered(page: bytes, block: int) -> bytes:
    """A page with the checksum that it has as this block of its relation."""
    [checksum] = checksums(page, PAGE, block)
    return page[:8] + int(checksum).to_bytes(2, "little") + page[10:]


@majors(12)
def test_damaged_pages_are_told_by_relation_and_block_whatever_they_belong_to(make_server, major):
    server = made(make_server, major, checksums=True)
    archive_into_store(server, autovacuum="off", shared_buffers="4MB")
    space = server.make_directory("space")
    server.psql(f"create tablespace aside location '{space}'")
    server.psql(
        """create table big (n int, x text); alter table big alter x set storage external;
        insert into big select n, repeat('x', 200) from generate_series(1, 2000) as n;
        insert into big select n, repeat(md5(n::text), 200) from generate_series(1, 20) as n;
        create index big_n on big (n); create table beside (n int) tablespace aside; insert into beside select generate_series(1, 2000)"""
    )
    server.psql("vacuum big")
    server.psql("checkpoint")
    assert [record.message for record in warnings(_push(server))] == []
    [good] = json.loads(server.wal_e("backup-list", "LATEST", "--json").stdout)
    assert (good["page_checksums"]["damaged"], good["page_checksums"]["pages"] > 2000) == ([], True)

    [heap, index, toast, aside] = server.psql(
        """select pg_relation_filepath('big'), pg_relation_filepath('big_n'),
        pg_relation_filepath(reltoastrelid), pg_relation_filepath('beside') from pg_class where oid = 'big'::regclass"""
    ).split("|")
    server.stop()
    expected = {}
    for relation, block in ((heap, 3), (index, 2), (toast, 1), (f"{heap}_fsm", 0), (f"{heap}_vm", 0), (aside, 4), ("global/1260", 0)):
        flip(server.data / relation, block)
        expected[relation] = block
    page = (server.data / f"{index}").read_bytes()[:PAGE]
    behind = numbered(page, SEGMENT_BLOCKS) + numbered(page, SEGMENT_BLOCKS + 1) + numbered(page, 2)  # a file by hand, for 1 GiB is much
    (server.data / f"{toast}.1").write_bytes(behind)
    give_to_server_user(server.data / f"{toast}.1")
    result = Watched(server)("backup-push", str(server.data), "--while-offline", "--verify-page-checksums")
    assert result.returncode == 0, result.stderr
    told = sorted(record.message for record in warnings(result))
    lines = {relation: f"block {block}" for relation, block in expected.items()} | {toast: f"blocks 1, {SEGMENT_BLOCKS + 2}"}
    assert told == sorted(f"{relation}, {blocks} of the cluster: wrong checksum" for relation, blocks in lines.items())
    for words in ((), ("--fast",)):
        result = server.wal_e("backup-verify", "LATEST", "--json", *words, check=False)
        assert result.returncode == NEVER
        [verdict] = json.loads(result.stdout)
        assert {one["relation"]: one["blocks"][0][0] for one in verdict["damaged_pages"]} == expected


def _push(server: Server):
    return server.wal_e("backup-push", str(server.data), "--fast", "--verify-page-checksums")


@majors(14)
def test_a_torn_page_that_wal_replaces_is_no_damage(make_server, major):
    """The images in WAL are compressed, and 15 changed how that is told."""
    server = made(make_server, major, checksums=True)
    archive_into_store(server, autovacuum="off", wal_compression="on", bgwriter_lru_maxpages="0")
    server.psql("create table t (n int, x text); insert into t select n, repeat('x', 200) from generate_series(1, 1000) as n")
    server.psql("checkpoint")
    path = server.psql("select pg_relation_filepath('t')")
    gate = fake_lzop(server, _WAITS)
    place = Path(gate["PATH"].partition(os.pathsep)[0])
    os.mkfifo(place / "gate")
    give_to_server_user(place)
    with Watched(server).started("backup-push", str(server.data), "--fast", "--verify-page-checksums", env=gate) as process:
        wait_until(lambda: (place / "stopped").exists(), "the push has begun to read")
        for block in (2, 4):
            tear(server.data / path, block, server.psql("select pg_current_wal_lsn()"))
        flip(server.data / path, 6)
        server.psql("select n from t where ctid = '(2,1)'")  # the server has the pages in memory; this is a hint, with which comes an image only
        server.psql("update t set n = -n where ctid = '(4,1)'")
        with (place / "gate").open("w"):
            pass
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    assert [record.message for record in records(stderr) if record.level == "WARNING"] == [f"{path}, block 6 of the cluster: wrong checksum"]
    result = server.wal_e("backup-verify", "LATEST", "--json", check=False)
    assert result.returncode == NEVER, result.stderr
    assert json.loads(result.stdout)[0]["damaged_pages"] == [{"relation": path, "blocks": [[6, 6]]}]


_WAITS = """
if call == 1:
    open(f"{{place}}/stopped", "w").close()
    open(f"{{place}}/gate").read()
""".replace("{{", "{").replace("}}", "}")


@majors()
def test_a_good_backup_is_verified_whole_and_fast_and_without_checksums_no_page_is_judged(copy, major):
    for words in (("--fast",), ()):
        result = copy.wal_e("backup-verify", copy.life.name, "--json", *words)
        assert result.returncode == 0, result.stderr
        [verdict] = json.loads(result.stdout)
        assert (verdict["ok"], verdict["damaged_pages"]) == (True, [])
    summed = major < 13 or major == 18
    assert (verdict["pages"] is not None) == summed
    copy.started("--target-immediate", "--target-action", "promote")
    result = copy.wal_e("backup-push", str(copy.data), "--fast", "--verify-page-checksums")
    assert result.returncode == 0, result.stderr
    assert len(warnings(result)) == (0 if summed else 1)
    assert copy.wal_e("backup-verify", "LATEST").returncode == 0


# exclusive backups, which 15 took away


@majors()
def test_somebody_elses_exclusive_backup_neither_stops_ours_nor_comes_along(make_server, make_place, major):
    if major >= 15:
        pytest.skip("there are no exclusive backups")
    server = made(make_server, major)
    store = archive_into_store(server)
    server.psql("create table t as select generate_series(1, 100) as n")
    server.psql("select pg_start_backup('theirs', true, true)")
    result = Watched(server)("backup-push", str(server.data), "--fast")
    assert result.returncode == 0, result.stderr
    assert (server.data / "backup_label").exists()
    server.psql("select pg_stop_backup(true, false)")
    settled(server)
    partitions = [subprocess.check_output(["lzop", "-dc", path]) for path in sorted(store.glob("basebackups_005/*/tar_partitions/*"))]
    assert ["backup_label" in tarfile.open(fileobj=BytesIO(partition)).getnames() for partition in partitions] == [False, True]
    place = make_place(major)
    place.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")}
    place.wal_e("restore", str(place.data))
    assert "theirs" not in (place.data / "backup_label").read_text()
    place.start(archive_mode="off")
    place.wait_for("select not pg_is_in_recovery()")
    assert place.psql("select count(*) from t") == "100"
    shutil.rmtree(place.data)
