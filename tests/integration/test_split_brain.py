"""Two servers that are copies of one another archive into one prefix: the second's different segments are refused, the first's work is not disturbed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
from fix_archive import settled
from fix_load import Resident, file_shelf, s3_shelf
from fix_postgres import Server, wait_until


class Twins(NamedTuple):
    """Two running servers on copies of one data directory, with one prefix, not yet archiving; and all that is stored there, by key."""

    first: Server
    second: Server
    stored: Callable[[], dict[str, bytes]]


@pytest.fixture(params=[file_shelf, s3_shelf])
def twins(request, make_server, make_place) -> Twins:
    first = make_server(wal_segsize_mb=1)
    shelf = request.param(first)
    first.environ |= shelf.environ
    first.start(archive_mode="on", archive_command="wal-e wal-push %p")
    first.psql("create table t as select 1 as n; select pg_switch_wal()")
    settled(first)
    first.stop()
    place = make_place()
    place.run(["cp", "-a", first.data, place.data])
    second = make_server(data=place.data)
    second.environ |= shelf.environ
    for server in (first, second):
        server.start(archive_command="false")
    return Twins(first, second, shelf.contents)


def writes(server: Server, segments: int) -> list[str]:
    """Let a server write so many segments of its own; return their names."""
    names = []
    for _ in range(segments):
        sql = f"select pg_logical_emit_message(false, '', 'of the server at port {server.port}')"
        names.append(server.psql(f"{sql}; select pg_walfile_name(pg_current_wal_insert_lsn())"))
        server.psql("select pg_switch_wal()")
    return names


def archives(server: Server) -> None:
    server.psql("alter system set archive_command = 'wal-e wal-push %p'")
    server.reload()


def is_refused(server: Server) -> None:
    wait_until(lambda: "split brain" in server.log_text(), f"the refusal\n{server.log_text()}")
    server.wait_for("select failed_count > 0 from pg_stat_archiver")


def ready(server: Server) -> set[str]:
    return {path.name.removesuffix(".ready") for path in (server.data / "pg_wal/archive_status").glob("*.ready")}


def test_the_second_different_segment_is_refused_and_nothing_is_overwritten(twins):
    first, second, stored = twins
    names = writes(first, 3)
    archives(first)
    settled(first)
    before = stored()
    assert {f"wal_005/{name}.lzo" for name in names} <= set(before)

    assert writes(second, 3) == names
    archives(second)
    is_refused(second)
    assert f"the store holds another {names[0]}" in second.log_text()
    assert "Nothing was overwritten." in second.log_text()
    assert stored() == before
    assert set(names) <= ready(second)

    more = writes(first, 2)
    settled(first)
    after = stored()
    assert set(after) == {*before, *(f"wal_005/{name}.lzo" for name in more)}
    assert {key: after[key] for key in before} == before
    assert "split brain" not in first.log_text()


@pytest.mark.parametrize("resident", [False, True], ids=["alone", "resident"])
def test_a_copy_that_is_ahead_does_not_take_the_names_of_segments_that_the_first_server_has_yet_to_write(twins, resident):
    """After the refusal of a segment, those that follow it on the timeline are the copy's own, too."""
    first, second, stored = twins
    names = writes(first, 1)
    archives(first)
    settled(first)
    before = stored()

    ahead = writes(second, 4)
    assert ahead[0] == names[0]
    with Resident(second, second.directory / "resident.log") if resident else contextlib.nullcontext():
        archives(second)
        is_refused(second)
        wait_until(lambda: second.log_text().count("split brain") >= 2, f"another attempt\n{second.log_text()}")
        assert stored() == before
        assert set(ahead) <= ready(second)
        assert writes(first, 3) == ahead[1:]
        settled(first)
    assert "split brain" not in first.log_text()
