"""Is what a server has on disk consistent? Asked through ``pg_amcheck`` (14 and later), else through the extension amcheck that it uses.

Every B-tree index is compared with its table (``heapallindexed``, from version 11 on), every table's pages are looked at (14 and later).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from wal_e.errors import ServerRefused
from wal_e.postgres.connection import said

PROGRAM = "pg_amcheck"
FIRST_WITH_PROGRAM = 14

_ANY_DATABASE = "template1"  # there is always one of this name

CONSISTENT, DAMAGED = 0, 2  # exit statuses of pg_amcheck; 1 is for trouble of its own

Connect = Callable[[str | None, str | None], "psycopg.Connection[tuple[Any, ...]]"]

_DATABASES = "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"
_SCHEMA = "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'amcheck'"
_INDEXES = """SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam
    WHERE c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND i.indisready AND c.relpersistence <> 't' ORDER BY c.oid"""
_TABLES = """SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam
    WHERE c.relkind IN ('r', 'm', 't') AND a.amname = 'heap' AND c.relpersistence <> 't' ORDER BY c.oid"""


class Ground(NamedTuple):
    """What there is to check with: a role that may do it, and why the extension cannot be had, "" where it can."""

    superuser: str
    refusal: str


def survey(connect: Connect) -> Ground:
    """Look for a superuser, and see whether the server has amcheck. Raises: ServerUnavailable, ServerRefused."""
    with _explained(), connect(None, None) as connection:
        users = connection.execute("SELECT rolname FROM pg_roles WHERE rolsuper AND rolcanlogin ORDER BY oid").fetchall()
    if not users:
        raise ServerRefused("no superuser can log in", "The restored cluster has no role with SUPERUSER and LOGIN.", "See pg_roles in it, with --keep.")
    superuser = users[0][0]
    try:
        with connect(None, superuser) as connection, connection.transaction(force_rollback=True):
            connection.execute("CREATE EXTENSION IF NOT EXISTS amcheck")
    except psycopg.Error as error:
        return Ground(superuser, said(error))
    return Ground(superuser, "")


def command(program: str, address: dict[str, Any], superuser: str, jobs: int) -> tuple[str, ...]:
    """The command line of pg_amcheck for all databases; a connection string wins over all of libpq's variables."""
    where = psycopg.conninfo.make_conninfo(**address, dbname=_ANY_DATABASE, user=superuser)
    options = ("--all", "--install-missing", "--heapallindexed", "--no-password", f"--jobs={jobs}")
    return (program, *options, f"--maintenance-db={where}")


def findings(connect: Connect, superuser: str) -> Iterator[str]:
    """Check all databases by SQL; yield a line for each thing that is wrong. Raises: ServerUnavailable, ServerRefused."""
    with _explained(), connect(None, superuser) as connection:
        databases = [name for (name,) in connection.execute(_DATABASES).fetchall()]
    for database in databases:
        with _explained(), connect(database, superuser) as connection:
            for line in _findings_in(connection):
                yield f"{database}: {line}"


def _findings_in(connection: psycopg.Connection[tuple[Any, ...]]) -> Iterator[str]:
    connection.execute("SET client_min_messages = warning; CREATE EXTENSION IF NOT EXISTS amcheck; ALTER EXTENSION amcheck UPDATE")
    [(schema,)] = connection.execute(_SCHEMA).fetchall()
    version = connection.info.server_version
    checked = sql.SQL("SELECT {}(%s::oid::regclass" + (", true)" if version >= 110000 else ")")).format(sql.Identifier(schema, "bt_index_check"))
    for oid, name in connection.execute(_INDEXES).fetchall():
        try:
            connection.execute(checked, (oid,))
        except psycopg.Error as error:
            if connection.closed:
                raise
            yield f"index {name}: {said(error)}"
    if version < 140000:
        return
    looked_at = sql.SQL("SELECT blkno, msg FROM {}(%s::oid::regclass) LIMIT 10").format(sql.Identifier(schema, "verify_heapam"))
    for oid, name in connection.execute(_TABLES).fetchall():
        try:
            rows = connection.execute(looked_at, (oid,)).fetchall()
        except psycopg.Error as error:
            if connection.closed:
                raise
            rows = [(None, said(error))]
        for block, message in rows:
            yield f"table {name}, block {block}: {message}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise ServerRefused("the restored server failed while it was checked", said(error), error.diag.message_hint or "") from error
