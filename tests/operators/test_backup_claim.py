"""Who may write below a backup's name, and remove what is there."""

from datetime import timedelta

import pytest

from wal_e.archive import layout
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import BackupInterrupted, LockHeld
from wal_e.operators import backup_claim
from wal_e.operators.backup_claim import Claim

NAME = "base_00000001000000000000007F_00000040"
PART = layout.partition_key(NAME, 0, ".lzo")


def keys(store):
    return [blob.key for blob in store.list()]


def test_a_claim_is_the_version_text_and_by_whom():
    store = MemoryStore()
    Claim.take(store, NAME, "PostgreSQL 15.18 on x86_64", "/data").require()
    first, second = b"".join(store.get(layout.version_key(NAME))).decode().splitlines()
    assert first == "PostgreSQL 15.18 on x86_64"
    assert "/data" in second


def test_a_complete_backup_is_never_claimed():
    store = MemoryStore()
    Claim.take(store, NAME, "v", "/data")
    store.put(layout.sentinel_key(NAME), [b"{}"])
    assert Claim.take(store, NAME, "v", "/data") is None


def test_leftovers_of_the_same_directory_are_removed_at_once():
    store = MemoryStore()
    Claim.take(store, NAME, "v", "/data")
    store.put(PART, [b"half"])
    assert Claim.take(store, NAME, "v", "/data")
    assert keys(store) == [layout.version_key(NAME)]


def test_what_another_machine_may_still_be_writing_is_left_alone():
    store = MemoryStore()
    Claim.take(store, NAME, "v", "/elsewhere")
    store.put(PART, [b"at work"])
    before = keys(store)
    with pytest.raises(LockHeld, match=NAME):
        Claim.take(store, NAME, "v", "/data")
    assert keys(store) == before


def test_what_another_machine_left_long_ago_is_removed(monkeypatch):
    store = MemoryStore()
    lost = Claim.take(store, NAME, "v", "/elsewhere")
    store.put(PART, [b"long ago"])
    monkeypatch.setattr(backup_claim, "LIVE_S", -timedelta(days=1).total_seconds())
    Claim.take(store, NAME, "v", "/data").require()
    assert keys(store) == [layout.version_key(NAME)]
    with pytest.raises(BackupInterrupted):
        lost.require()


def test_only_the_holder_discards(monkeypatch):
    store = MemoryStore()
    monkeypatch.setattr(backup_claim, "LIVE_S", 0)
    lost = Claim.take(store, NAME, "v", "/elsewhere")
    mine = Claim.take(store, NAME, "v", "/data")
    store.put(PART, [b"mine"])
    lost.discard()
    assert PART in keys(store)
    mine.discard()
    assert keys(store) == []


def test_a_complete_backup_is_never_discarded():
    store = MemoryStore()
    mine = Claim.take(store, NAME, "v", "/data")
    store.put(layout.sentinel_key(NAME), [b"{}"])
    mine.discard()
    assert len(keys(store)) == 2
