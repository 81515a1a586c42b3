"""Whose WAL a prefix holds."""

import json
import threading

import pytest

from wal_e.archive.identity import claim_identity, read_identity
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import DamageError, WrongCluster


def test_the_first_cluster_claims_a_prefix_and_may_push_again():
    store = MemoryStore()
    assert read_identity(store) is None
    assert claim_identity(store, 7, ".lzo").system_identifiers == (7,)
    assert claim_identity(store, 7, ".lzo") == read_identity(store)


def test_another_cluster_is_refused_with_both_identifiers():
    store = MemoryStore()
    claim_identity(store, 7, ".lzo")
    with pytest.raises(WrongCluster) as caught:
        claim_identity(store, 8, ".lzo")
    assert "7" in caught.value.detail
    assert "8" in caught.value.detail
    assert read_identity(store).system_identifiers == (7,)


def test_of_many_clusters_at_once_exactly_one_wins():
    store, won = MemoryStore(), []

    def claim(number):
        try:
            claim_identity(store, number, ".lzo")
            won.append(number)
        except WrongCluster:
            pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(1, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_identity(store).system_identifiers == tuple(won)
    assert len(won) == 1


def test_old_archives_hold_lzo_so_every_identity_names_it():
    store = MemoryStore()
    assert claim_identity(store, 7, ".zst").wal_suffixes == (".lzo", ".zst")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"system_identifiers": ["x"], "wal_suffixes": []}', b"\xff"])
def test_a_damaged_identity_is_an_error_that_names_its_key(content):
    store = MemoryStore()
    store.put("identity_005.json", [content])
    with pytest.raises(DamageError, match=r"identity_005\.json"):
        read_identity(store)


def test_the_identifier_is_text_in_json_since_javascript_would_round_it():
    store = MemoryStore()
    claim_identity(store, 2**64 - 1, ".lzo")
    assert json.loads(b"".join(store.get("identity_005.json")))["system_identifiers"] == ["18446744073709551615"]
