"""A streaming standby with archive_mode=always: what it archives, compared byte by byte with what its primary archives.

What the documentation says of archive_mode=always is what these tests show.
"""

from __future__ import annotations

import re
import subprocess
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_archive import settled
from fix_postgres import Server, bindir

COMMAND = "wal-e wal-push %p"


class Pair(NamedTuple):
    """A primary and a standby that streams from it, both running; where each archives."""

    primary: Server
    standby: Server
    of_primary: Path
    of_standby: Path


@pytest.fixture
def make_pair(make_server, make_place):
    def make(*, prefixes: int = 2, mode: str = "always") -> Pair:
        primary = make_server(wal_segsize_mb=1)
        of_primary = primary.make_directory("store")
        primary.environ |= environ(of_primary)
        primary.start(archive_mode="on", archive_command=COMMAND, max_wal_size="32MB", min_wal_size="5MB", wal_level="replica")
        place = make_place()
        primary.run([bindir() / "pg_basebackup", "-D", place.data, "-R", "-c", "fast", "-X", "stream", "-C", "-S", "standby"])
        standby = make_server(data=place.data)
        of_standby = of_primary if prefixes == 1 else place.make_directory("store")
        standby.environ |= environ(of_standby)
        standby.start(archive_mode=mode, wal_retrieve_retry_interval="200ms")
        standby.psql("select 1")
        return Pair(primary, standby, of_primary, of_standby)

    return make


def environ(store: Path) -> dict[str, str]:
    return {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr", "WALE_LOG_LEVEL": "info"}


def work(pair: Pair) -> None:
    """A load that writes; switches of segments, checkpoints, and a crash of either server in the midst of it."""
    primary, standby = pair.primary, pair.standby
    primary.pgbench("-i", "-q", "-s", "1")
    for crash in (standby, primary, None):
        load = threading.Thread(target=lambda: primary.run([bindir() / "pgbench", "-n", "-c", "2", "-T", "2"], check=False))
        load.start()
        for _ in range(4):
            primary.psql("select pg_switch_wal()")
            primary.psql("checkpoint")
            load.join(0.4)
        if crash:
            crash.stop("immediate")
            crash.start()
        load.join()
    primary.psql("create table large as select n, repeat(n::text, 50) as words from generate_series(1, 20000) as n")
    primary.psql("vacuum full large")
    primary.psql("select pg_switch_wal()")


def caught_up(pair: Pair) -> None:
    """Wait until the standby has all that its primary wrote, and both have archived what they can."""
    at = pair.primary.psql("select pg_current_wal_lsn()")
    pair.standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{at}'")
    settled(pair.primary)
    settled(pair.standby)


def promoted(pair: Pair, stop: str) -> None:
    """Promote the standby in the midst of a segment, when its primary has gone."""
    at = pair.primary.psql("create table last as select 1; select pg_current_wal_flush_lsn()")
    pair.standby.wait_for(f"select pg_last_wal_receive_lsn() >= '{at}'")
    pair.primary.stop(stop)
    pair.standby.wait_for("select count(*) = 0 from pg_stat_wal_receiver")
    pair.standby.promote()
    pair.standby.psql("create table later as select 1; select pg_switch_wal()")
    settled(pair.standby)


def stored(store: Path) -> dict[str, bytes]:
    """All WAL in a store, decoded by lzop itself."""
    return {path.name.removesuffix(".lzo"): subprocess.check_output(["lzop", "-dc", path]) for path in sorted((store / "wal_005").iterdir())}


def names(wal: dict[str, bytes], timeline: int) -> list[str]:
    """Whole segments of a timeline."""
    return [name for name in wal if len(name) == 24 and name.startswith(f"{timeline:08X}")]


def complaints(server: Server) -> list[str]:
    return re.findall(r"^wal_e.*(?:WARNING|ERROR).*|.*archive command failed.*", server.log_text(), re.M)


def pushed(server: Server, words: str) -> list[str]:
    """Names that its wal-push logged with these words."""
    return re.findall(rf"MSG: {words}", server.log_text())


@pytest.mark.parametrize("stop", [pytest.param("fast", marks=pytest.mark.slow), "immediate"])
def test_a_standby_archives_what_its_primary_archives_byte_for_byte(make_pair, stop):
    pair = make_pair()
    work(pair)
    caught_up(pair)
    theirs, ours = stored(pair.of_primary), stored(pair.of_standby)
    assert len(names(ours, 1)) > 30
    assert [name for name in ours if ours[name] != theirs.get(name)] == []
    assert names(ours, 1) == [name for name in names(theirs, 1) if name >= min(ours)]
    assert [name[24:] for name in theirs if name not in names(theirs, 1)] == [".00000028.backup"]
    print(f"{len(names(theirs, 1))} segments by the primary, {len(names(ours, 1))} of them by the standby, all equal")

    promoted(pair, stop)
    theirs, ours = stored(pair.of_primary), stored(pair.of_standby)
    more = [name for name in ours if name not in theirs]
    assert [name for name in ours if name in theirs and ours[name] != theirs[name]] == []
    assert names(ours, 1) == [name for name in names(theirs, 1) if name >= min(ours)]
    branch = names(ours, 2)[0]
    assert more == [f"00000001{branch[8:]}.partial", "00000002.history", *names(ours, 2)]
    assert complaints(pair.primary) == complaints(pair.standby) == []


def test_primary_and_standby_share_a_prefix_without_a_false_conflict(make_pair):
    pair = make_pair(prefixes=1)
    work(pair)
    caught_up(pair)
    shared = stored(pair.of_primary)
    by = {server: pushed(server, "pushed (\\S+)") for server in (pair.primary, pair.standby)}
    met = {server: pushed(server, "(\\S+) was stored before, with the same content") for server in by}
    assert all(by.values()), by
    told = by[pair.primary] + by[pair.standby]
    assert len(told) == len(set(told))
    assert set(told) <= set(shared)
    assert set(names(shared, 1)) - {*by[pair.primary], *met[pair.primary]} == set()  # one that was killed by the crash was met later
    print([len(by[server]) for server in by], "pushed by primary and standby,", [len(met[server]) for server in by], "found stored and equal")

    promoted(pair, "immediate")
    pair.primary.start()  # as if nothing had happened; its last segment was not whole before
    pair.primary.psql("create table of_the_old_primary as select 1; select pg_switch_wal()")
    settled(pair.primary)
    after = stored(pair.of_primary)
    assert {name: after[name] for name in shared} == shared
    branch = names(after, 2)[0]
    assert f"00000001{branch[8:]}.partial" in after
    assert f"00000001{branch[8:]}" in after
    assert complaints(pair.primary) == complaints(pair.standby) == []


@pytest.mark.parametrize(("mode", "gap"), [("on", True), ("always", False)])
def test_what_a_primary_that_dies_had_not_archived_is_archived_by_a_standby_only_if_it_always_archives(make_pair, mode, gap):
    pair = make_pair(prefixes=1, mode=mode)
    settled(pair.primary)
    pair.primary.psql("alter system set archive_command = 'false'")
    pair.primary.reload()
    for number in range(4):
        pair.primary.psql(f"create table t{number} as select 1; select pg_switch_wal()")
    at = pair.primary.psql("select pg_current_wal_lsn()")
    pair.standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{at}'")
    promoted(pair, "immediate")
    after = stored(pair.of_primary)
    branch = int(names(after, 2)[0][8:], 16)
    missing = [number for number in range(branch - 3, branch) if f"00000001{number:016X}" not in after]
    assert bool(missing) == gap, sorted(after)
