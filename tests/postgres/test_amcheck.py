"""Damage inside of tables and indexes, looked for by SQL."""

from __future__ import annotations

import pytest
from fix_postgres import bindir

from wal_e.postgres import amcheck

_LIE = """create function f(int) returns int language sql immutable as 'select $1'; create table t as select generate_series(1, 100) as n;
    create index liar on t (f(n)); create or replace function f(int) returns int language sql immutable as 'select -$1'"""


@pytest.fixture(scope="module")
def damaged(make_shared_server):
    """A server with a good database, and another with an index that lacks the rows of its table, and a table with a torn page."""
    server = make_shared_server()
    server.start(autovacuum="off", full_page_writes="off")
    server.psql("create table good as select generate_series(1, 1000) as n; create unique index on good (n)")
    server.psql("create database bad")
    server.psql(_LIE, db="bad")
    server.psql("create table torn as select generate_series(1, 100) as n; checkpoint", db="bad")
    path = server.data / server.psql("select pg_relation_filepath('torn')", db="bad")
    server.stop()
    content = bytearray(path.read_bytes())
    content[32:36] = (8190 | 1 << 15 | 28 << 17).to_bytes(4, "little")  # the third line pointer leads to the end of the page
    path.write_bytes(content)
    server.start()
    return server


def connecting(server):
    return lambda database, user: server.connect(database or "template1", user=user or "postgres")


def test_to_see_whether_there_is_an_extension_installs_none(damaged):
    assert amcheck.survey(connecting(damaged)) == ("postgres", "")
    assert damaged.psql("select count(*) from pg_extension where extname = 'amcheck'", db="template1") == "0"


def test_all_databases_are_checked_and_what_is_wrong_is_named(damaged):
    found = list(amcheck.findings(connecting(damaged), "postgres"))
    assert [line for line in found if "good" in line] == []
    assert [line for line in found if line.startswith("bad: index liar: ") and "lacks matching index tuple" in line]
    assert [line for line in found if line.startswith("bad: table torn, block 0: ")]
    assert all(line.startswith("bad: ") for line in found)


def test_pg_amcheck_finds_the_same_by_the_command_line_that_it_gets(damaged):
    address = {"host": str(damaged.socket_dir), "port": damaged.port, "hostaddr": "", "options": ""}
    argv = amcheck.command(str(bindir() / "pg_amcheck"), address, "postgres", 1)
    said = damaged.run(argv, env={"PGHOST": "/nowhere", "PGHOSTADDR": "192.0.2.1", "PGOPTIONS": "-c nonsense=1"}, check=False)
    assert said.returncode == amcheck.DAMAGED, said.stderr
    assert "liar" in said.stdout
    assert "good" not in said.stdout
