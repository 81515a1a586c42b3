"""restore --delta and --include-database with real servers: the copy that comes out starts and is whole."""

import contextlib
import re
import shutil

import psycopg
import pytest
from fix_archive import Watched, archive_into_store, fake_lzop, refusal, settled, unchanged, warnings
from fix_postgres import bindir, give_to_server_user, wait_until

NEVER = 2
WAITING = """
if os.path.exists({held!r}):
    parent = os.getppid()
    deadline = time.monotonic() + 5  # for one whose parent was killed before it looked
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(0.02)
    sys.exit(1)
"""


def dump(server, db):
    lines = server.run([bindir() / "pg_dump", db]).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # followed by random words


class Origin:
    """A server that is gone, with its archive: two databases, one of them in a tablespace too."""

    def __init__(self, server):
        self.server = server
        self.wal_e = Watched(server)
        archive_into_store(server)
        space = server.make_directory("space")
        server.psql(f"create tablespace aside location '{space}'")
        for name in ("shop", "other"):
            server.psql(f"create database {name}")
            server.psql("create table t as select n, repeat('x', n % 100) as x from generate_series(1, 3000) as n; create index on t (n)", name)
            server.psql("create table aside (n int) tablespace aside; insert into aside select generate_series(1, 1000)", name)
        server.wal_e("backup-push", str(server.data), "--fast")
        for name in ("shop", "other"):
            server.psql("insert into t select 0, 'later'", name)
            server.psql("vacuum t", name)
            server.psql("update t set n = n + 1 where n % 7 = 0", name)
        server.psql("select pg_switch_wal()")
        settled(server)
        self.dumps = {name: dump(server, name) for name in ("postgres", "shop", "other")}
        self.space_oid = server.psql("select oid from pg_tablespace where spcname = 'aside'")
        server.stop()


@pytest.fixture(scope="module")
def origin(make_shared_server):
    return Origin(make_shared_server())


class Target:
    """A place for restored copies of it."""

    def __init__(self, origin, make_server, directory):
        self.origin = origin
        self.make_server = make_server
        self.data = directory / "restored"
        self.space = directory / "space"
        self.spaces = ("--tablespace", f"{origin.space_oid}={self.space}")

    def restore(self, *options, **given):
        return self.origin.wal_e("restore", str(self.data), *self.spaces, *options, **given)

    @contextlib.contextmanager
    def started(self):
        server = self.make_server(data=self.data)
        server.environ |= {name: value for name, value in self.origin.server.environ.items() if name.startswith("WALE_")}
        server.start(archive_mode="off")
        server.wait_for("select not pg_is_in_recovery()")
        yield server
        server.stop()

    def is_whole(self, *names):
        with self.started() as server:
            for name in names or self.origin.dumps:
                assert dump(server, name) == self.origin.dumps[name]
                checked = server.run([bindir() / "pg_amcheck", "--install-missing", "--heapallindexed", "-d", name])
                assert checked.stdout + checked.stderr == ""
                server.psql("drop extension amcheck", name)


@pytest.fixture
def target(origin, make_server, make_place):
    return Target(origin, make_server, make_place().directory)


def succeeded(result):
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_a_copy_that_was_used_and_damaged_becomes_whole_again(target):
    succeeded(target.restore())
    with target.started() as server:  # on a timeline of its own from now on
        server.psql("drop table t; create table later as select generate_series(1, 5000) as n; checkpoint", "shop")
        server.psql("create database third")
    relations = sorted(path for path in (target.data / "base").glob("[1-9]*/*") if path.name.isdigit() and path.stat().st_size > 8192)
    relations[0].write_bytes(relations[0].read_bytes()[:-1])
    relations[1].unlink()
    with relations[2].open("r+b") as stream:
        stream.write(b"garbage")
    shutil.rmtree(target.data / "pg_xact")
    (target.data / "base" / "stray").write_text("x")
    give_to_server_user(target.data)
    refusal(target.restore(), NEVER, "is not empty")
    refusal(target.restore("--delta"), NEVER, "holds WAL that is not in the archive", "--unarchived-wal remove")
    anyway = ("--delta", "--unarchived-wal", "remove")
    with unchanged(target.data):
        planned = succeeded(target.restore(*anyway, "--dry-run")).stdout
    assert f"fetch {relations[1].relative_to(target.data)}\n" in planned
    assert "remove base/stray\n" in planned
    succeeded(target.restore(*anyway))
    assert not (target.data / "base" / "stray").exists()
    verified = target.origin.server.run([bindir() / "pg_verifybackup", "-n", "-i", "postgresql.auto.conf", "-i", "recovery.signal", target.data])
    assert "successfully verified" in verified.stdout
    target.is_whole()


def test_a_crashed_and_damaged_server_comes_back_with_its_last_transaction(make_server):
    server = make_server(wal_segsize_mb=1)
    archive_into_store(server)
    server.psql("create table t as select n, repeat('x', 100) as x from generate_series(1, 3000) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("insert into t values (0, 'archived'); select pg_switch_wal()")
    settled(server)
    server.psql("insert into t values (-1, 'the last')")
    relation = server.data / server.psql("select pg_relation_filepath('t')")
    server.end()
    relation.write_bytes(relation.read_bytes()[: 8192 * 3])
    wal_e = Watched(server)
    refused = refusal(wal_e("restore", str(server.data), "--delta"), NEVER, "not in the archive", "--unarchived-wal keep")
    said = succeeded(wal_e("restore", str(server.data), "--delta", "--unarchived-wal", "keep")).stdout
    assert re.search(r"WAL in pg_wal that is not in the archive stays, .*: ([0-9A-F]{24})\.", said)[1] in refused.text
    server.start()
    server.wait_for("select not pg_is_in_recovery()")
    assert server.psql("select count(*), min(n) from t") == "3002|-1"


@pytest.mark.parametrize("major", [pytest.param(major, marks=() if major in (10, 18) else pytest.mark.slow) for major in range(10, 19)])
def test_a_server_that_was_shut_down_and_archived_all_leaves_no_question(make_server, major):
    server = make_server(major=major, wal_segsize_mb=16 if major == 10 else 1)
    archive_into_store(server)
    server.psql("create table t as select 1 as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("insert into t values (2)")
    server.stop()
    wal_e = Watched(server)
    succeeded(wal_e("restore", str(server.data), "--delta"))
    server.start()
    server.wait_for("select not pg_is_in_recovery()")
    assert server.psql("select sum(n) from t") == "3"


def test_a_restore_that_was_killed_goes_on_where_it_was(target):
    held = target.data / "global" / "pg_control.wal-e-restore"
    env = fake_lzop(target.origin.server, WAITING.format(held=str(held)))
    with target.origin.wal_e.started("restore", str(target.data), *target.spaces, env=env) as process:
        wait_until(held.exists, "the first write of the restore")
        assert process.poll() is None
        process.kill()
        process.wait()
    assert not (target.data / "global" / "pg_control").exists()
    refusal(target.restore(), NEVER, "An earlier restore did not end here")
    succeeded(target.restore("--delta"))
    target.is_whole("shop")


@pytest.mark.slow
def test_a_running_server_is_left_alone(target):
    succeeded(target.restore())
    with target.started():
        refusal(target.restore("--delta"), NEVER, "a server runs on")


def test_databases_that_are_not_included_can_be_dropped(target):
    result = succeeded(target.restore("--include-database", "shop"))
    assert "of other databases become zeros: other." in result.stdout
    assert any("ignore_invalid_pages" in record.text and "left out (other)" in record.text for record in warnings(result))
    target.is_whole("postgres", "shop")
    with target.started() as server:
        with pytest.raises(psycopg.OperationalError, match="is not a valid data directory"):
            server.psql("select count(*) from t", "other")
        server.psql("drop database other")
        server.psql("create database other")
        server.psql("alter system reset ignore_invalid_pages")
        server.psql("vacuum", "shop")
    target.is_whole("shop")


def test_a_database_that_is_unknown_is_refused_before_anything_is_written(target):
    refusal(target.restore("--include-database", "shopp"), NEVER, "no database shopp", "other, postgres, shop")
    assert not target.data.exists()
