"""What was read and found good, remembered."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.archive import layout
from wal_e.archive.checked_wal import NEVER, CheckedWal, read_checked, write_checked
from wal_e.archive.wal_index import WalIndex
from wal_e.blobstore.base import Blob
from wal_e.blobstore.memory import MemoryStore
from wal_e.postgres.wal import segment_name

SIZE = 16 << 20
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
WAL = WalIndex(SIZE)


def segment(timeline, number):
    return segment_name(timeline, number * SIZE, SIZE)


def blob(name, modified=NOW):
    return Blob(layout.wal_key(name, ".lzo"), 10, modified)


def covers(checked, name, modified=NOW):
    return checked.covers(name, blob(name, modified), WAL)


@given(st.sets(st.tuples(st.integers(1, 3), st.integers(250, 270))), st.datetimes(timezones=st.just(UTC)))
def test_what_is_written_is_what_is_read(numbers, as_of):
    checked = CheckedWal(as_of)
    for timeline, number in numbers:
        checked.add(segment(timeline, number), WAL)
    checked.add("00000002.history", WAL)
    read = CheckedWal.parse(checked.render(WAL), WAL)
    assert read.as_of == as_of
    for timeline in range(1, 4):
        for number in range(248, 272):
            assert covers(read, segment(timeline, number), as_of) == ((timeline, number) in numbers)
    assert covers(read, "00000002.history", as_of)
    assert not covers(read, "00000003.history", as_of)
    assert read.render(WAL) == checked.render(WAL)


def test_the_document_has_names_in_ranges():
    checked = CheckedWal(NOW)
    for number in (255, 256, 254, 300):
        checked.add(segment(1, number), WAL)
    checked.add(f"{segment(1, 254)}.00000028.backup", WAL)
    assert checked.render(WAL) == (
        b'{\n "format": 1,\n "as_of": "2026-03-01T12:00:00+00:00",\n "segments": {\n  "00000001": [\n   [\n'
        b'    "0000000100000000000000FE",\n    "000000010000000100000000"\n   ],\n   [\n'
        b'    "00000001000000010000002C",\n    "00000001000000010000002C"\n   ]\n  ]\n },\n'
        b' "others": [\n  "0000000100000000000000FE.00000028.backup"\n ]\n}\n'
    )


def test_what_was_stored_after_the_check_is_not_covered_even_within_a_range():
    checked = CheckedWal(NOW)
    checked.add(segment(1, 5), WAL)
    assert covers(checked, segment(1, 5), NOW)
    assert not covers(checked, segment(1, 5), NOW + timedelta(microseconds=1))
    assert not covers(CheckedWal(), segment(1, 5), NOW)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"{}", b"\xff", b'{"format": 2, "as_of": "2026-03-01T12:00:00+00:00", "segments": {}, "others": []}',
        b'{"format": 1, "as_of": "yesterday", "segments": {}, "others": []}',
        b'{"format": 1, "as_of": "2026-03-01T12:00:00+00:00", "others": [],'
        b' "segments": {"00000001": [["000000010000000000000FFF", "000000010000000000000FFF"]]}}',
        b'{"format": 1, "as_of": "2026-03-01T12:00:00+00:00", "segments": {"00000001": ["x"]}, "others": []}',
    ],
)  # fmt: skip
def test_a_document_that_cannot_be_understood_covers_nothing_and_is_no_failure(data, capsys):
    store = MemoryStore()
    store.put(layout.CHECKED, [data])
    assert read_checked(store, WAL).as_of == NEVER
    assert layout.CHECKED in capsys.readouterr().err


def test_it_is_read_from_the_store_as_it_was_written_and_nothing_where_there_is_none(capsys):
    store = MemoryStore()
    assert read_checked(store, WAL).as_of == NEVER
    checked = CheckedWal(NOW)
    checked.add(segment(1, 5), WAL)
    write_checked(store, checked, WAL)
    assert covers(read_checked(store, WAL), segment(1, 5))
    assert capsys.readouterr().err == ""


def test_a_name_for_another_segment_size_is_never_covered():
    checked = CheckedWal(NOW)
    checked.add("000000010000000000000FFF", WAL)
    assert not covers(checked, "000000010000000000000FFF")
