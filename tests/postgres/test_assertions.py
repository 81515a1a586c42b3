"""Statements that must hold."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import DrillFailed
from wal_e.postgres.assertions import require, statements_of


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("", []),
        ("  ;; ;\n", []),
        ("select 1", ["select 1"]),
        ("select 1; select 2;", ["select 1", "select 2"]),
        ("-- only; words\n", []),
        ("/* a; /* nested; */ b; */", []),
        ("select 1 /* a; */ + 1; -- b;\nselect 2", ["select 1 /* a; */ + 1", "-- b;\nselect 2"]),
        ("select ';', 'it''s;'; select 2", ["select ';', 'it''s;'", "select 2"]),
        (r"select E'\';', e'\\'; select 2", [r"select E'\';', e'\\'", "select 2"]),
        (r"select '\'; select 2", [r"select '\'", "select 2"]),
        ('select 1 as ";""--"; select 2', ['select 1 as ";""--"', "select 2"]),
        ("do $$ begin; $1; end $$; select 2", ["do $$ begin; $1; end $$", "select 2"]),
        ("select $a$ ; $b$ ; $$ ; $a$; select 2", ["select $a$ ; $b$ ; $$ ; $a$", "select 2"]),
        ("select $1 + $2; select 2", ["select $1 + $2", "select 2"]),
        ("select a$b$ from t; select c$b$", ["select a$b$ from t", "select c$b$"]),
        ("select 'never closed; select 2", ["select 'never closed", "select 2"]),
        ("select /* never closed; select 2", ["select /* never closed; select 2"]),
    ],
)
def test_a_semicolon_ends_a_statement_where_postgresql_thinks_so(text, statements):
    assert statements_of(text) == statements


@given(st.text(alphabet="ab;'\"$-/*\\\nE"))
def test_any_text_is_split_without_losing_more_than_semicolons_and_comments(text):
    joined = "".join(statements_of(text))
    assert all(joined.count(letter) <= text.count(letter) for letter in set(joined))


@pytest.fixture(scope="module")
def running(make_shared_server):
    server = make_shared_server()
    server.start()
    return server


@pytest.fixture
def session(running):
    with contextlib.closing(running.connect()) as connection:
        yield connection


@pytest.mark.parametrize(
    "statement",
    ["select true", "select n > 0 from generate_series(1, 3) n", "select 1", "select false, false", "create temp table t (n int)", "select '100%s'"],
)
def test_a_statement_holds_when_it_raises_nothing_and_is_not_false(session, statement):
    require(session, statement)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("select false", "It returned false"),
        ("select n > 1 from generate_series(1, 3) n", "It returned false"),
        ("select null::boolean", "It returned null"),
        ("select true where false", "It returned no row"),
        ("select 1 / 0", "division by zero"),
        ("selectt", "syntax error"),
        ("copy pg_class to stdout", "copy pg_class to stdout"),
    ],
)
def test_a_statement_that_does_not_hold_is_named_with_the_reason(session, statement, said):
    with pytest.raises(DrillFailed, match="an assertion") as failed:
        require(session, statement)
    assert statement in failed.value.detail
    assert said in failed.value.detail


def test_a_session_that_is_lost_fails_the_statement_that_lost_it(session):
    with pytest.raises(DrillFailed, match="raised an error"):
        require(session, "select pg_terminate_backend(pg_backend_pid())")
