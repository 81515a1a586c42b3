"""Commits, aborts, restore points and checkpoints out of WAL: of real servers, compared with what they say, and built byte by byte."""

import gzip
import io
import json
import os
import re
import struct
import subprocess
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from build_records import COMMIT_PREPARED, HEAP, MOMENT, PAGE, SIZE, SWITCH, XACT, XLOG, Builder, stamp
from fix_postgres import bindir
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import WalRefused
from wal_e.postgres.wal import Lsn
from wal_e.postgres.wal_reader import WalReader

GOLDEN = Path(__file__).parent / "golden"
SAID = json.loads((GOLDEN / "records.json").read_text())
START = 7 * SIZE


def read(*segments, reader=None):
    reader = reader or WalReader()
    return [record for segment in segments for record in reader.read(io.BytesIO(segment))], reader


@pytest.mark.parametrize("major", list(SAID))
def test_every_version_writes_what_is_read_here_prepared_and_with_an_origin_too(major):
    """What the servers said of these transactions: txid_current(), pg_xact_commit_timestamp(), pg_create_restore_point()."""
    name = SAID[major]["segment"]
    records, reader = read(gzip.decompress((GOLDEN / f"records-{major}-{name}.gz").read_bytes()))
    assert reader.stopped is None
    found = {(record.kind, record.xid, record.name): record for record in records}
    for kind, xid, time, end, text in SAID[major]["records"]:
        record = found.pop((kind, xid, text))
        assert time is None or record.time == datetime.fromisoformat(time)
        assert end is None or str(record.end) == end
        assert abs(record.time - records[0].time) < timedelta(seconds=5)
    assert [kind for kind, _, _ in found] == ["commit"], "that of pg_replication_origin_create()"


_LOAD = """
create table t (n int, f text);
insert into t select n, repeat(md5(n::text), 60) from generate_series(1, 1500) as n;
select pg_create_restore_point('one');
begin; insert into t values (1); rollback;
begin; insert into t values (1); savepoint a; insert into t values (2); release a; savepoint b; insert into t values (3); rollback to b; commit;
begin; insert into t values (4); savepoint a; insert into t values (4); create table p (n int); prepare transaction 'it''s: 1'; commit prepared 'it''s: 1';
begin; create table q (n int); drop table p; prepare transaction 'two'; rollback prepared 'two';
begin; drop table p; prepare transaction 'three'; commit prepared 'three';
select pg_switch_wal();
select pg_logical_emit_message(true, 'big', repeat('abcdefgh', 400000));
select pg_logical_emit_message(false, 'big', repeat('abcdefgh', 200000));
do $$ begin for i in 1 .. 2000 loop insert into t values (i, 's'); commit; end loop; end $$;
do $$ begin for i in 1 .. 3000 loop begin insert into t values (i, 's'); exception when others then null; end; end loop; end $$;
checkpoint;
select pg_create_restore_point('two');
select pg_switch_wal();
"""


@pytest.fixture(scope="module")
def busy(make_shared_server):
    """The finished segments of a real server, in their order, and all that pg_waldump says of them."""
    server = make_shared_server()
    server.start(max_prepared_transactions="5", wal_level="logical", wal_keep_size="1GB")
    server.run([bindir() / "psql", "-X", "-q", "-o", os.devnull, "-v", "ON_ERROR_STOP=1"], input=_LOAD)
    last = server.psql("select pg_walfile_name(pg_switch_wal())")
    server.stop("immediate")
    wal = server.data / "pg_wal"
    names = sorted(name for name in os.listdir(wal) if re.fullmatch("[0-9A-F]{24}", name) and name <= last)
    argv = [bindir() / "pg_waldump", "-p", wal, names[0], names[-1]]
    said = subprocess.run(argv, capture_output=True, text=True, env={"TZ": "UTC"}, check=True).stdout
    return [(wal / name).read_bytes() for name in names], [_said(line) for line in said.splitlines()]


def _said(line):
    """Resource manager, transaction, LSN, kind and the rest."""
    return re.match(r"rmgr: (\S+) .*?tx: +(\d+), lsn: (\S+), prev .*?, desc: (\S+) (.*)", line).groups()


def test_every_transaction_of_a_real_server_is_as_pg_waldump_says(busy):
    segments, said = busy
    expected = []
    for manager, xid, lsn, kind, rest in said:
        if manager == "Transaction" and kind.split("_")[0] in ("COMMIT", "ABORT"):
            moment = re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", rest)[0]
            prepared = re.match(r"\d+", rest)[0] if "PREPARED" in kind else xid
            expected.append((Lsn.parse(lsn), kind.split("_")[0].lower(), int(prepared), datetime.fromisoformat(f"{moment}+00:00")))
    records, _ = read(*segments)
    assert [(record.lsn, record.kind, record.xid, record.time) for record in records if record.kind in ("commit", "abort")] == expected
    assert len(expected) > 2000
    assert {kind for *_, kind, _ in said} >= {"COMMIT_PREPARED", "ABORT_PREPARED"}
    assert [record.name for record in records if record.kind == "restore point"] == ["one", "two"]
    points = [Lsn.parse(lsn) for _, _, lsn, kind, _ in said if kind.startswith(("CHECKPOINT_", "RESTORE_POINT"))]
    assert [record.lsn for record in records if record.kind in ("checkpoint", "restore point")] == points


def test_no_record_of_a_real_server_is_missed_and_each_ends_where_the_next_one_begins(busy):
    segments, said = busy
    reader = WalReader(255)
    taken = [one for segment in segments for one in reader.take(io.BytesIO(segment))]
    assert [one.lsn for one in taken] == [Lsn.parse(lsn) for _, _, lsn, _, _ in said]
    for one, after in pairwise(taken):
        gap = after.lsn - one.end
        assert gap == 0 or (one.end % PAGE == 0 and gap in (24, 40)), (one.lsn, one.end, after.lsn)
    assert (reader.begin, reader.end) == (taken[-1].lsn, taken[-1].end)


def test_each_segment_alone_gives_the_records_that_lie_within_it(busy):
    segments, _ = busy
    together = {record.lsn for record in read(*segments)[0]}
    alone = [record.lsn for segment in segments for record in read(segment)[0]]
    assert set(alone) <= together
    assert len(together) - len(alone) <= len(segments), "at most one goes on in the next segment"


@pytest.mark.parametrize("left", [8, 16, 24, 32])
def test_a_commit_that_goes_on_in_the_next_segment_is_whole_with_both_and_told_by_neither_alone(left):
    built = Builder(START)
    built.commit(1)
    built.fill(left)
    lsn = built.commit(2)
    built.commit(3)
    one, two = built.segments()
    records, reader = read(one)
    assert [record.xid for record in records] == [1]
    assert reader.open_at == lsn
    records, reader = read(two, reader=reader)
    assert [(record.xid, record.time) for record in records] == [(2, MOMENT + timedelta(microseconds=2)), (3, MOMENT + timedelta(microseconds=3))]
    assert records[0].lsn == lsn
    assert [record.xid for record in read(two)[0]] == [3]


def test_a_record_over_several_segments_is_stepped_over():
    built = Builder(START)
    built.commit(1)
    built.add(HEAP, 0, bytes(3 * SIZE))
    built.commit(2)
    segments = built.segments()
    assert len(segments) == 4
    assert [record.xid for record in read(*segments)[0]] == [1, 2]
    assert [record.xid for record in read(segments[3])[0]] == [2]
    middle, reader = read(segments[1])
    assert (middle, reader.begin, reader.stopped) == ([], None, None)
    assert [record.xid for record in read(segments[2], segments[3], reader=reader)[0]] == [2]


def test_an_origin_and_a_top_level_transaction_before_the_main_data_are_passed_over():
    built = Builder(START)
    built.commit(5, between=b"\xfd\x01\x00" + b"\xfc\x04\x00\x00\x00")
    assert [(record.xid, record.time) for record in read(*built.segments())[0]] == [(5, MOMENT + timedelta(microseconds=5))]


@pytest.mark.parametrize("switch", ["zeros", "headers"])
def test_behind_a_switch_wal_goes_on_in_the_next_segment_in_every_version(switch):
    built = Builder(START)
    built.commit(1)
    built.add(XLOG, SWITCH, b"")
    while len(built.data) % SIZE:
        if len(built.data) % PAGE == 0 and switch == "headers":
            built.data += struct.pack("<HHIQIxxxx", built.magic, 0, 1, START + len(built.data), 0)
        built.data += bytes(-len(built.data) % PAGE or PAGE)
    one = read(*built.segments())[1]
    assert (one.stopped, one.end) == (None, START + SIZE)
    built.commit(2)
    assert [record.xid for record in read(*built.segments())[0]] == [1, 2]


def test_the_rest_of_a_record_that_was_never_finished_is_overwritten_and_wal_goes_on():
    built = Builder(START)
    built.commit(1)
    built.fill(PAGE + 16)
    kept, previous = len(built.data) + 16, built.previous
    built.commit(2)
    del built.data[kept:]
    built.previous = previous
    lsn = built.commit(3, flags=8)
    built.commit(4)
    records, reader = read(*built.segments())
    assert [record.xid for record in records] == [1, 3, 4]
    assert records[1].lsn == lsn
    unmarked = bytearray(built.segments()[0])
    unmarked[kept + 2] &= ~8
    records, reader = read(bytes(unmarked))
    assert [record.xid for record in records] == [1]
    assert "does not go on" in reader.stopped


def test_a_page_that_goes_on_with_another_record_ends_the_wal():
    built = Builder(START)
    built.commit(1)
    built.add(HEAP, 0, bytes(PAGE))
    built.commit(2)
    data = bytearray(built.segments()[0])
    data[PAGE + 16] += 8
    records, reader = read(bytes(data))
    assert [record.xid for record in records] == [1]
    assert "does not go on" in reader.stopped


def two_commits():
    built = Builder(START)
    first, second = built.commit(1), built.commit(2)
    return bytearray(built.segments()[0]), first - START, second - START


@pytest.mark.parametrize(
    ("spoil", "words", "left"),
    [
        (lambda data, one, two: data.__setitem__(two + 30, data[two + 30] ^ 1), "wrong checksum", [1]),
        (lambda data, one, two: data.__setitem__(two + 20, data[two + 20] ^ 1), "wrong checksum", [1]),
        (lambda data, one, two: data.__setitem__(two + 8, data[two + 8] ^ 8), "no record", [1]),
        (lambda data, one, two: data.__setitem__(two, 5), "no record", [1]),
        (lambda data, one, two: data.__setitem__(slice(two, two + 50), bytes(50)), "no record", [1]),
        (lambda data, one, two: data.__setitem__(slice(two + 1, two + 4), b"\xff" * 3), "is not the one that belongs there", [1]),
        (lambda data, one, two: data.__setitem__(one + 30, 99), "wrong checksum", []),
    ],
)
def test_what_is_no_record_ends_the_wal_there_and_is_not_told(spoil, words, left):
    data, one, two = two_commits()
    spoil(data, one, two)
    records, reader = read(bytes(data))
    assert [record.xid for record in records] == left
    assert words in reader.stopped
    assert reader.begin == ((START + one) if left else None)


def test_what_was_in_a_file_before_it_was_recycled_is_not_taken_for_wal():
    old, new = Builder(START - SIZE), Builder(START)
    for xid in range(400):
        old.commit(xid)
    new.commit(1000)
    new.fill(SIZE - PAGE)
    records, reader = read(bytes(new.data) + old.segments()[0][PAGE:])
    assert [record.xid for record in records] == [1000]
    assert reader.stopped == f"The page at {Lsn(START + PAGE)} is not the one that belongs there."
    assert reader.end == START + PAGE


def test_a_segment_that_is_cut_off_or_of_another_place_ends_the_wal():
    built = Builder(START)
    built.commit(1)
    built.fill(SIZE // 2)
    built.fill(0)
    whole = built.segments()[0]
    assert read(whole)[1].stopped is None
    assert "ends at" in read(whole[: SIZE // 2])[1].stopped
    again = Builder(START + 2 * SIZE)
    again.commit(2)
    records, reader = read(whole, again.segments()[0])
    assert ([record.xid for record in records], "not the one" in reader.stopped) == ([1], True)
    with pytest.raises(WalRefused, match="not a WAL segment"):
        read(b"x" * SIZE)


def test_a_sound_record_of_an_unknown_form_is_refused_and_not_guessed():
    built = Builder(START)
    lsn = built.add(XACT, COMMIT_PREPARED, stamp(MOMENT))
    with pytest.raises(WalRefused, match=f"record at {re.escape(str(Lsn(lsn)))} cannot be understood"):
        read(*built.segments())


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data, sizes):
        self._data, self._sizes, self._at = data, sizes, 0

    def readinto(self, buffer):
        size = min(len(buffer), self._sizes[self._at % len(self._sizes)], len(self._data))
        buffer[:size], self._data, self._at = self._data[:size], self._data[size:], self._at + 1
        return size


@given(
    st.lists(st.one_of(st.integers(1, 9000), st.integers(1, 300), st.just(0)), min_size=1, max_size=60),
    st.lists(st.integers(5000, 100_000), min_size=1, max_size=5),
)
def test_records_are_found_whatever_lies_between_and_however_the_stream_is_cut(lengths, sizes):
    built = Builder(START)
    expected = []
    for number, length in enumerate(lengths, 1):
        if length:
            built.add(HEAP, 0, bytes(length))
        expected.append((built.commit(number), number, built.start + len(built.data)))
    reader = WalReader()
    found = [record for segment in built.segments() for record in reader.read(Dribble(segment, sizes))]
    assert [(record.lsn, record.xid, record.end) for record in found] == expected
