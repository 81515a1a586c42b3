"""wal-push --missing against a memory store and a built pg_wal."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime

import build_wal
import pytest
from fix_memory import open_memory

from wal_e.archive import layout
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import StoreUnavailable, WalConflict, WalGap, WrongCluster
from wal_e.operators import wal_missing
from wal_e.operators.wal_missing import Gap, push_missing
from wal_e.operators.wal_push import push
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.monitor import ArchiverStats, Position
from wal_e.postgres.wal import Lsn, segment_name

SIZE = build_wal.SEGMENT_SIZE
HISTORY = b"1\t0/700000\tno recovery target specified\n"


def seg(number: int, timeline: int = 1) -> str:
    return segment_name(timeline, number * SIZE, SIZE)


class Server:
    """A server that is at a position and archived a file last."""

    def __init__(self, at: int, timeline: int = 1, last_archived: str | None = None) -> None:
        self._position = Position(Lsn(at), timeline, "primary")
        self._stats = ArchiverStats(last_archived, datetime(2030, 1, 1, tzinfo=UTC) if last_archived else None, None, None, 0, 0, None)

    def position(self) -> Position:
        return self._position

    def archiver(self) -> ArchiverStats:
        return self._stats


@pytest.fixture
def cluster(data_directory):
    (data_directory / "PG_VERSION").write_text("15\n")
    return Cluster.open(str(data_directory))


@pytest.fixture
def put(data_directory, segment):
    """Write WAL files into pg_wal with a status, "" for none."""

    def write(state, *names, content=None):
        for name in names:
            segment(name, content)
            if state:
                (data_directory / "pg_wal" / "archive_status" / f"{name}.{state}").touch()

    return write


@pytest.fixture
def stored(archive, segment, data_directory):
    """Store segments as a push would, without leaving them in pg_wal."""

    def store(*names):
        for name in names:
            push(archive, segment(name))
            os.unlink(data_directory / "pg_wal" / name)

    return store


def held(archive):
    return {layout.parse_wal_key(blob.key, (".lzo",)) for blob in archive.store.list(layout.WAL)}


def content(archive, name):
    fd = os.memfd_create("stored")
    with contextlib.closing(os.fdopen(fd, "rb")):
        archive.pipeline.decode_file(archive.store.get(layout.wal_key(name, ".lzo")), layout.wal_key(name, ".lzo"), fd)
        return os.pread(fd, SIZE + 1, 0)


def test_what_is_done_and_not_stored_is_pushed_oldest_first_and_the_rest_is_left_alone(archive, cluster, put, stored):
    stored(seg(1), seg(3))
    put("done", *map(seg, (1, 2, 3, 4)))
    healed = push_missing(archive, cluster, None)
    assert (healed.pushed, healed.failed, healed.gaps) == ([seg(2), seg(4)], [], [])
    assert held(archive) == {seg(number) for number in (1, 2, 3, 4)}
    assert content(archive, seg(2)) == build_wal.build_segment(seg(2))
    healed.raise_what_is_left()


def test_a_second_run_has_nothing_to_do(archive, cluster, put):
    put("done", seg(1), seg(2))
    push_missing(archive, cluster, None)
    assert push_missing(archive, cluster, None).pushed == []


def test_what_waits_for_its_turn_is_not_pushed_and_is_no_gap(archive, cluster, put, stored):
    stored(seg(1))
    put("ready", seg(2), seg(3))
    healed = push_missing(archive, cluster, Server(4 * SIZE, last_archived=seg(1)))
    assert (healed.pushed, healed.waiting, healed.gaps) == ([], 2, [])
    assert held(archive) == {seg(1)}


def test_a_file_with_both_statuses_waits(archive, cluster, put):
    put("done", seg(2))
    put("ready", seg(2))
    assert push_missing(archive, cluster, None).waiting == 1
    assert held(archive) == set()


def test_without_a_status_only_what_ends_before_the_position_is_pushed(archive, cluster, put):
    put("", *map(seg, (4, 5, 6, 7)))
    assert push_missing(archive, cluster, Server(6 * SIZE + 40)).pushed == [seg(4), seg(5)]


def test_without_a_server_the_last_checkpoint_says_what_is_complete(archive, data_directory, put):
    (data_directory / "PG_VERSION").write_text("15\n")
    (data_directory / "global" / "pg_control").write_bytes(build_wal.build_control(segment_size=SIZE, redo=5 * SIZE + 40))
    put("", *map(seg, (4, 5, 6)))
    assert push_missing(archive, Cluster.open(str(data_directory)), None).pushed == [seg(4)]


def test_of_an_ancestor_timeline_only_what_ends_before_it_was_left_is_pushed(archive, cluster, put):
    put("", *map(seg, (5, 6, 7, 8)), seg(7, 2), seg(8, 2), seg(9, 2))
    put("", "00000002.history", content=HISTORY)
    put("", "00000003.history", content=HISTORY)
    healed = push_missing(archive, cluster, Server(9 * SIZE + 1, timeline=2))
    assert healed.pushed == [seg(5), seg(6), "00000002.history", seg(7, 2), seg(8, 2)]


def test_history_backup_and_partial_files_that_are_done_are_pushed_too(archive, cluster, put):
    put("done", "00000002.history", content=HISTORY)
    put("done", f"{seg(1)}.00000028.backup", content=b"START WAL LOCATION: 0/100028\n")
    put("done", f"{seg(7)}.partial")
    put("", f"{seg(8)}.partial", f"{seg(2)}.00000028.backup")
    assert set(push_missing(archive, cluster, Server(9 * SIZE)).pushed) == {"00000002.history", f"{seg(1)}.00000028.backup", f"{seg(7)}.partial"}
    assert content(archive, "00000002.history") == HISTORY


def test_history_files_are_in_the_store_before_segments(data_directory, put):
    class Remembering(MemoryStore):
        def create(self, key, chunks):
            order.append(key)
            return super().create(key, chunks)

    order: list[str] = []
    (data_directory / "PG_VERSION").write_text("15\n")
    put("done", seg(1), seg(7, 2))
    put("done", "00000002.history", content=HISTORY)
    push_missing(open_memory(Remembering()), Cluster.open(str(data_directory)), None)
    assert next(key for key in order if key.startswith(layout.WAL)) == layout.wal_key("00000002.history", ".lzo")


@pytest.mark.parametrize("theirs", [3, 5])
def test_of_a_timeline_that_another_server_writes_nothing_is_pushed(archive, cluster, put, stored, segment, data_directory, theirs):
    stored(seg(1), seg(2))
    push(archive, segment(seg(theirs), fill="zero"))
    put("done", *map(seg, (1, 2, 3, 4, 5, 6)), seg(8, 2))
    healed = push_missing(archive, cluster, None)
    assert healed.pushed == [seg(8, 2)]
    assert [name for name, _ in healed.failed] == sorted({seg(number) for number in (3, 4, 5, 6)} - {seg(theirs)})
    with pytest.raises(WalConflict, match=seg(theirs)):
        healed.raise_what_is_left()
    assert held(archive) == {seg(1), seg(2), seg(theirs), seg(8, 2)}


def test_a_damaged_neighbour_in_the_store_does_not_keep_the_rest_from_being_healed(archive, cluster, put, stored):
    stored(seg(3))
    archive.store.put(layout.wal_key(seg(1), ".lzo"), [b"rubbish"])
    put("done", seg(1), seg(2), seg(3))
    assert push_missing(archive, cluster, None).pushed == [seg(2)]


def test_a_recycled_file_is_passed_over(archive, cluster, put):
    put("", seg(9), content=build_wal.build_segment(seg(2)))
    put("done", seg(3), content=build_wal.build_segment(seg(1)))
    healed = push_missing(archive, cluster, Server(20 * SIZE))
    assert (healed.pushed, healed.failed) == ([], [])
    assert held(archive) == set()
    healed.raise_what_is_left()


def test_a_segment_that_is_recycled_while_it_is_read_is_not_stored(archive, cluster, data_directory, put, monkeypatch):
    put("done", seg(1))
    original = wal_missing.shutil.copyfileobj

    def recycled_meanwhile(source, target, length):
        original(source, target, length)
        os.rename(data_directory / "pg_wal" / seg(1), data_directory / "pg_wal" / seg(30))

    monkeypatch.setattr(wal_missing.shutil, "copyfileobj", recycled_meanwhile)
    assert push_missing(archive, cluster, None).pushed == []
    assert held(archive) == set()


def test_a_gap_that_pg_wal_cannot_fill_is_named(archive, cluster, put, stored):
    stored(seg(1), seg(2), seg(4), seg(8))
    put("done", seg(9), seg(10))
    put("ready", seg(12))
    healed = push_missing(archive, cluster, Server(13 * SIZE, last_archived=seg(10)))
    assert healed.pushed == [seg(9), seg(10)]
    assert healed.gaps == [Gap(seg(3), seg(3)), Gap(seg(5), seg(7)), Gap(seg(11), seg(11))]
    with pytest.raises(WalGap) as caught:
        healed.raise_what_is_left()
    assert f"{seg(3)}, {seg(5)} to {seg(7)}" in caught.value.detail
    assert caught.value.status == 2


def test_what_was_archived_last_and_is_nowhere_is_a_gap(archive, cluster, put, stored):
    stored(seg(1))
    assert push_missing(archive, cluster, Server(9 * SIZE, last_archived=seg(3))).gaps == [Gap(seg(2), seg(3))]
    assert push_missing(archive, cluster, Server(9 * SIZE, timeline=2, last_archived=seg(8, 2))).gaps == [Gap(seg(8, 2), seg(8, 2))]
    assert push_missing(archive, cluster, Server(9 * SIZE, last_archived=seg(1))).gaps == []
    assert push_missing(archive, cluster, Server(9 * SIZE, last_archived="00000002.history")).gaps == []


def test_a_gap_across_two_listings_is_found(archive, cluster, put, stored):
    stored(seg(4094))
    put("done", seg(4097))
    assert push_missing(archive, cluster, None).gaps == [Gap(seg(4095), seg(4096))]


def test_the_store_is_listed_once_for_each_timeline_and_log_and_never_asked_for_single_files(data_directory, put):
    class Counting(MemoryStore):
        def list(self, prefix=""):
            listed.append(prefix)
            return super().list(prefix)

    listed: list[str] = []
    (data_directory / "PG_VERSION").write_text("15\n")
    put("done", *map(seg, (4090, 4091, 4092, 4097, 4098)))
    push_missing(open_memory(Counting()), Cluster.open(str(data_directory)), None)
    assert listed == [layout.WAL + name for name in ("0000000100000000", "0000000100000001")]


def test_another_suffix_counts_as_stored(archive, cluster, put):
    archive.store.put(layout.IDENTITY, [b'{"format": 1, "system_identifiers": ["%d"], "wal_suffixes": [".lzo", ".zst"]}' % build_wal.SYSTEM_IDENTIFIER])
    archive.store.put(layout.wal_key(seg(1), ".zst"), [build_wal.build_segment(seg(1))])
    put("done", seg(1), seg(2))
    assert push_missing(archive, cluster, None).pushed == [seg(2)]


def test_a_stored_name_of_another_segment_size_is_passed_over(archive, data_directory, put):
    (data_directory / "PG_VERSION").write_text("15\n")
    (data_directory / "global" / "pg_control").write_bytes(build_wal.build_control(segment_size=16 * SIZE))
    archive.store.put(layout.wal_key(seg(1000), ".lzo"), [b"x"])
    archive.store.put(layout.wal_key(segment_name(1, 16 * SIZE, 16 * SIZE), ".lzo"), [b"x"])
    server = Server(99 * 16 * SIZE, last_archived=segment_name(1, 16 * SIZE, 16 * SIZE))
    assert push_missing(archive, Cluster.open(str(data_directory)), server).gaps == []


def test_no_place_for_a_copy_is_an_error_of_that_file(archive, cluster, put, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    put("done", seg(1))
    [(name, error)] = push_missing(archive, cluster, None).failed
    assert name == seg(1)
    assert "temporary directory" in error.message


def test_a_prefix_of_another_cluster_is_refused(archive, cluster, put):
    archive.store.put(layout.IDENTITY, [b'{"format": 1, "system_identifiers": ["5"], "wal_suffixes": [".lzo"]}'])
    put("done", seg(1))
    with pytest.raises(WrongCluster):
        push_missing(archive, cluster, None)
    assert held(archive) == set()


def test_a_failure_is_told_and_does_not_keep_others_back(data_directory, put):
    class Choosy(MemoryStore):
        def create(self, key, chunks):
            if seg(2) in key:
                raise StoreUnavailable("away")
            return super().create(key, chunks)

    archive = open_memory(Choosy())
    (data_directory / "PG_VERSION").write_text("15\n")
    put("done", seg(1), seg(2), seg(3))
    healed = push_missing(archive, Cluster.open(str(data_directory)), None)
    assert (healed.pushed, [name for name, _ in healed.failed], healed.gaps) == ([seg(1), seg(3)], [seg(2)], [])
    with pytest.raises(StoreUnavailable):
        healed.raise_what_is_left()


def test_nothing_in_pg_wal_changes(archive, cluster, data_directory, put):
    put("done", seg(1))
    put("ready", seg(3))
    put("", seg(2))
    before = sorted(path.relative_to(data_directory) for path in data_directory.rglob("*"))
    push_missing(archive, cluster, Server(9 * SIZE))
    assert sorted(path.relative_to(data_directory) for path in data_directory.rglob("*")) == before
