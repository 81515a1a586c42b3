"""What came of a drill, beside the backup."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from wal_e.archive import layout
from wal_e.archive.drill_record import FAILED, PROVEN, DrillRecord, drill_document, read_drill, write_drill
from wal_e.blobstore.memory import MemoryStore

NAME = "base_000000010000000000000007_00000040"
MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
GOOD = DrillRecord(MOMENT, PROVEN, "", "the end of the archived WAL", "15.20", 12345, "0/5000060", MOMENT, 2, "pg_amcheck", 3, 1.5, 2.25, 0.125)
BAD = DrillRecord(MOMENT, FAILED, "a gap", "the end of the archived WAL", "", 0)


@pytest.mark.parametrize("record", [GOOD, BAD])
def test_a_record_comes_back_as_it_was(record):
    store = MemoryStore()
    write_drill(store, NAME, record)
    assert read_drill(store, NAME) == record


def test_the_last_drill_replaces_the_one_before():
    store = MemoryStore()
    write_drill(store, NAME, BAD)
    write_drill(store, NAME, GOOD)
    assert read_drill(store, NAME) == GOOD
    assert [blob.key for blob in store.list("")] == [f"basebackups_005/{NAME}/drill.json"]


def test_the_record_goes_along_when_its_backup_is_deleted():
    assert layout.drill_key(NAME).startswith(layout.backup_prefix(NAME))
    assert layout.parse_object_key(layout.drill_key(NAME)) == NAME


def test_times_are_shown_in_utc_and_what_is_not_known_is_null():
    document = drill_document(BAD)
    assert document["finished"] == "2030-01-02T03:04:05.678Z"
    assert document["fetch_s"] is None
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format": 2}', b'{"format": 1}', b"\xff", b'{"format": 1, "finished": 5}'])
def test_a_record_that_cannot_be_understood_is_none(data, capfd):
    store = MemoryStore()
    store.put(layout.drill_key(NAME), [data])
    assert read_drill(store, NAME) is None
    assert "drill.json cannot be understood" in capfd.readouterr().err


def test_a_backup_without_a_drill_has_no_record():
    assert read_drill(MemoryStore(), NAME) is None
