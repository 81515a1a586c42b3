"""What a prefix is asked for, and how often."""

import pytest
from fix_memory import open_memory

from wal_e.archive import layout
from wal_e.archive.identity import claim_identity
from wal_e.blobstore.memory import MemoryStore
from wal_e.postgres.wal import segment_name

MIB = 1 << 20
NAMES = [segment_name(1, number * MIB, MIB) for number in range(3000, 6000)]  # of two logs


class Lagging(MemoryStore):
    """Its listings do not show what was stored last, as those of Swift may."""

    unseen: frozenset[str] = frozenset()

    def list(self, prefix=""):
        return (blob for blob in super().list(prefix) if blob.key not in self.unseen)


@pytest.fixture
def store():
    return Lagging()


def opened(store, names, suffix=".lzo"):
    for name in names:
        store.put(layout.wal_key(name, suffix), [b"x"])
    return open_memory(store)


@pytest.mark.parametrize("claimed", [True, False], ids=["claimed", "of the original"])
def test_thousands_of_segments_are_looked_up_with_a_listing_for_each_log(store, claimed):
    if claimed:
        claim_identity(store, 1, ".lzo")
    archive = opened(store, NAMES)
    assert archive.wal_keys_of(NAMES) == {name: layout.wal_key(name, ".lzo") for name in NAMES}
    assert archive.store.calls == 3  # the identity is one more


def test_what_a_listing_does_not_show_yet_is_there_all_the_same(store):
    archive = opened(store, NAMES)
    store.unseen = frozenset(layout.wal_key(name, ".lzo") for name in NAMES[-3:])
    assert list(archive.wal_keys_of(NAMES)) == NAMES


def test_where_most_are_missing_they_are_not_asked_for_one_by_one(store):
    archive = opened(store, NAMES[::100])
    assert list(archive.wal_keys_of(NAMES)) == NAMES[::100]
    assert archive.store.calls < 10


def test_of_segments_that_are_not_there_nothing_is_found(store):
    assert opened(store, []).wal_keys_of(NAMES) == {}


def test_a_beginning_that_others_share_does_not_count(store):
    archive = opened(store, [f"{NAMES[0]}.partial", f"{NAMES[1]}.00000028.backup"])
    assert archive.wal_keys_of(NAMES[:2]) == {}
