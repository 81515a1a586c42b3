"""A cluster with a past: two timelines, three base backups, and what every table held at each change. Tests restore from it.

``live`` makes one of any major version. With a ``burden`` the first backup is pushed while a second thread
changes tables of each kind that PostgreSQL treats in its own way: with values out of line, unlogged, in a tablespace, in a second database.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fix_archive import archive_into_store, backups, settled
from fix_postgres import Server, wait_until

RESTORE_POINT = "before three"

_TABLES = "select oid::regclass::text from pg_class where relkind = 'r' and relpersistence = 'p' and relnamespace = 'public'::regnamespace"
_DATABASES = "select datname from pg_database where datallowconn and not datistemplate"
_FIRST_ROUNDS = 30  # of a burden, before the backup begins


class Kind(NamedTuple):
    """What cluster to make; of the installed version unless a major is given."""

    major: int | None = None
    wal_segsize_mb: int = 1
    checksums: bool | None = None


class Change(NamedTuple):
    """One row that was committed, how its commit can be named, and what all tables held then; ``lsn`` is a position behind it."""

    n: int
    time: datetime
    xid: str
    lsn: str
    contents: dict[str, str]


class History(NamedTuple):
    """A store with two timelines: 1 with rows 1 to 6 of the table t, 2 with rows 1 to 4, 20 and 21.

    Backups: after row 1 and after row 4 on timeline 1, after row 20 on timeline 2. The restore point is before row 3.
    ``server`` was that of timeline 2, and ``origin`` that of timeline 1; neither runs. ``forked`` is what the former held when it was promoted,
    ``rounds`` how much of the burden was done before the first backup and how much at its end, ``tablespace`` the object id of one, or "".
    What --start starts listens on ``port`` in ``sockets``.
    """

    kind: Kind
    origin: Server
    server: Server
    port: int
    sockets: Path
    store: Path
    changes: dict[int, Change]
    names: list[str]
    forked: dict[str, str]
    rounds: tuple[int, int]
    tablespace: str


Burden = Callable[[Server], contextlib.AbstractContextManager[list[int]]]


def live(make_shared_server, kind: Kind, burden: Burden | None = None) -> History:
    """Make a cluster with that past; autovacuum is off, for each commit is to be known."""
    server = make_shared_server(**kind._asdict())
    server.configure(port=str(server.port), unix_socket_directories=str(server.directory), listen_addresses="")  # of what --start starts
    server.configure(fsync="off", autovacuum="off", track_commit_timestamp="on", min_wal_size=f"{2 * kind.wal_segsize_mb}MB", max_wal_senders="3")
    store = archive_into_store(server)
    server.psql("create table t (n int)")
    changes = {1: change(server, 1)}
    rounds = _push_under(server, burden or _no_burden, ["--verify-page-checksums"] if kind.checksums else [])
    changes[2] = change(server, 2)
    server.psql(f"select pg_create_restore_point('{RESTORE_POINT}')")
    changes[3] = change(server, 3)
    archived(server)
    changes[4] = change(server, 4)
    server.wal_e("backup-push", str(server.data), "--fast")
    changes |= {n: change(server, n) for n in (5, 6)}
    archived(server)
    tablespace = server.psql("select oid from pg_tablespace where spcname = 'space'")
    server.stop()

    other = make_shared_server(**kind._asdict())
    other.environ |= server.environ
    other.run(["rm", "-r", other.data])
    moved = ("--tablespace", f"{tablespace}={other.directory}/space") if tablespace else ()
    other.wal_e("restore", str(other.data), "--target-xid", changes[4].xid, "--target-action", "promote", "--start", *moved)
    other.port, other.socket_dir = server.port, server.directory
    forked = contents(other)
    changes[20] = change(other, 20)
    other.wal_e("backup-push", str(other.data), "--fast")
    changes[21] = change(other, 21)
    archived(other)
    other.stop()
    names = backups(other)
    return History(kind, server, other, server.port, server.directory, store, changes, names, forked, rounds, tablespace)


def forget(history: History) -> None:
    """Free the disk that a past takes."""
    for server in (history.origin, history.server):
        server.end()
        server.run(["rm", "-rf", *server.directory.iterdir()], libpq=False)


def change(server: Server, n: int) -> Change:
    """Commit one row."""
    with server.connect() as connection:
        with connection.transaction():
            connection.execute("insert into t values (%s)", (n,))
            [xid] = connection.execute("select txid_current()::text").fetchone()
        [at, lsn] = connection.execute("select pg_xact_commit_timestamp(%s::xid), pg_current_wal_flush_lsn()::text", (xid,)).fetchone()
    return Change(n, at.astimezone(UTC), xid, lsn, contents(server))


def contents(server: Server) -> dict[str, str]:
    """What is in all logged tables of all databases: for each the number of rows and a sum of them."""
    found = {}
    for database in sorted(server.psql(_DATABASES).split()):
        with server.connect(database) as connection:
            for (table,) in connection.execute(_TABLES).fetchall():
                query = f"select count(*), md5(string_agg(x::text, ',' order by x::text collate \"C\")) from {table} x"
                found[f"{database}.{table}"] = "{} rows, {}".format(*connection.execute(query).fetchone())
    return found


def archived(server: Server) -> None:
    """End the segment, and wait until it is archived."""
    server.psql("select pg_switch_wal()")
    settled(server)


def shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f+00")


def chosen(said: str) -> str:
    """The name of the backup, in what restore printed."""
    return re.search(r"^backup +(\S+),", said, re.M)[1]


def promoted(server: Server) -> None:
    server.wait_for("select not pg_is_in_recovery()")


def paused(server: Server) -> None:
    """Wait until recovery has come to its target and pauses."""
    version = int(server.psql("show server_version_num"))
    server.wait_for("select pg_get_wal_replay_pause_state() = 'paused'" if version >= 140000 else "select pg_is_wal_replay_paused()")


def _push_under(server: Server, burden: Burden, options: list[str]) -> tuple[int, int]:
    with burden(server) as rounds:
        before = len(rounds)
        server.wal_e("backup-push", str(server.data), "--fast", *options)
        after = len(rounds)
    return before, after


def _no_burden(_server: Server) -> contextlib.AbstractContextManager[list[int]]:
    return contextlib.nullcontext([])


_SCHEMA = """
    create sequence ids;
    create table loaded (id bigint primary key default nextval('ids'), amount int not null, filler text);
    alter table loaded alter filler set storage external;
    create index on loaded (amount);
    create table booked (id bigint primary key, amount int) tablespace space;
    create unlogged table scratch (id bigint primary key);
"""


@contextlib.contextmanager
def burdened(server: Server) -> Iterator[list[int]]:
    """Change tables, round after round, as long as the block runs; give the list of ids of committed rounds, which grows."""
    server.psql(f"create tablespace space location '{server.make_directory('space')}'")
    server.psql("create database other")
    server.psql("create table elsewhere (n bigint primary key, filler text)", "other")
    server.psql(_SCHEMA)
    ended = threading.Event()
    rounds: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(_work, server, ended, rounds)
        try:
            wait_until(lambda: len(rounds) >= _FIRST_ROUNDS or work.done(), "the first rounds")
            yield rounds
        finally:
            ended.set()
        work.result()


def _work(server: Server, ended: threading.Event, rounds: list[int]) -> None:
    with server.connect() as here, server.connect("other") as there:
        while not ended.wait(0.01):
            filler = "(select string_agg(md5(random()::text), '') from generate_series(1, 100))"
            with here.transaction():
                [one] = here.execute(f"insert into loaded (amount, filler) values (7, {filler}) returning id").fetchone()
                here.execute("insert into booked values (%s, 7)", (one,))
                here.execute("insert into scratch values (%s)", (one,))
                for table in ("loaded", "booked"):
                    here.execute(f"update {table} set amount = amount + %s where id = %s", (one, one // 2))
                    here.execute(f"delete from {table} where id = %s", (one - 10 if one % 5 == 0 else None,))
            there.execute("insert into elsewhere values (%s, repeat('x', 100))", (one,))
            rounds.append(one)
            if one % 25 == 0:
                here.execute("vacuum loaded")
