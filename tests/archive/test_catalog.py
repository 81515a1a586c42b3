"""Which backups there are."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from wal_e.archive import layout
from wal_e.archive.catalog import Catalog
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel, sealed
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import BackupNotFound, DamageError
from wal_e.postgres.wal import Lsn

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def name(number):
    return str(layout.BackupName(f"0000000100000000000000{number:02X}", 40))


def put(store, number, finished=None):
    facts = Facts(NOW, finished, Lsn(0), Lsn(0), 1, 7, 15, 16 << 20, 1, 1, "k", "h", True, "2") if finished else None
    store.put(layout.sentinel_key(name(number)), [render_sentinel(Sentinel("S", 0, 1, "/x", (), facts))])


def test_a_backup_exists_when_its_sentinel_does():
    store = MemoryStore()
    put(store, 1)
    store.put(layout.version_key(name(2)), [b"unfinished"])
    store.put(layout.partition_key(name(2), 0, ".lzo"), [b"unfinished"])
    assert [backup.name for backup in Catalog(store).backups()] == [name(1)]


def test_latest_is_the_newest_by_the_finish_time_even_when_copying_reset_the_stores_times():
    store = MemoryStore()
    put(store, 3, NOW + timedelta(hours=3))
    put(store, 1, NOW + timedelta(hours=9))
    put(store, 2, NOW + timedelta(hours=1))
    assert [backup.name for backup in Catalog(store).backups()] == [name(2), name(3), name(1)]
    assert Catalog(store).find("LATEST").name == name(1)


def test_backups_of_the_original_count_by_modification():
    store = MemoryStore()
    put(store, 5)
    put(store, 4)
    assert Catalog(store).find("LATEST").name == name(4)


def test_a_damaged_sentinel_does_not_hide_the_others_and_is_never_passed_over_as_latest():
    store = MemoryStore()
    put(store, 1, NOW)
    store.put(layout.sentinel_key(name(2)), [b"not json"])
    backups = Catalog(store).backups()
    assert [(backup.name, backup.damage is None) for backup in backups] == [(name(1), True), (name(2), False)]
    with pytest.raises(DamageError):
        Catalog(store).find("LATEST").readable()


@pytest.mark.parametrize("query", ["LATEST", name(9), "latest", "base_", ""])
def test_what_is_not_there_is_said_so(query):
    with pytest.raises(BackupNotFound):
        Catalog(MemoryStore()).find(query)


def test_the_json_of_a_sentinel_may_have_keys_of_the_future():
    store = MemoryStore()
    put(store, 1, NOW)
    document = json.loads(b"".join(store.get(layout.sentinel_key(name(1)))))
    document["later"] = document["wal_e"]["later"] = 1
    del document["sha256"]
    store.put(layout.sentinel_key(name(1)), [sealed(document)])
    assert Catalog(store).find(name(1)).readable().facts.finished == NOW
