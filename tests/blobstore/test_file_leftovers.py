"""What killed writers leave in a directory is found, and can be removed."""

import os
from datetime import UTC, datetime, timedelta

import pytest

from wal_e.blobstore.file import FileStore
from wal_e.blobstore.registry import call_directly


@pytest.fixture
def root(tmp_path):
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return FileStore(str(root), call_directly)


def test_a_temporary_file_is_found_while_it_is_written(store):
    seen = []

    def chunks():
        yield b"1234"
        seen.extend(store.leftovers())

    store.put("dir/key", chunks())
    (leftover,) = seen
    assert leftover.size == 4
    assert "/dir/.key." in leftover.description
    assert abs(leftover.started - datetime.now(UTC)) < timedelta(minutes=1)
    assert list(store.leftovers()) == []


def test_leftovers_are_removed_with_the_directories_they_were_in(store, root):
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/sub/.key.123.0123456789abcdef.tmp").write_bytes(b"half")
    (root / "dir/.other.claim").touch()
    found = list(store.leftovers())
    assert sorted(os.path.relpath(leftover.address, root) for leftover in found) == ["dir/.other.claim", "dir/sub/.key.123.0123456789abcdef.tmp"]
    for leftover in found:
        store.discard(leftover)
        store.discard(leftover)
    assert list(root.iterdir()) == []


def test_what_is_not_ours_is_no_leftover(store, root):
    for name in (".hidden", ".key.tmp", ".nfs0001", "key", ".key.123.0123.tmp", "key.123.0123456789abcdef.tmp"):
        (root / name).touch()
    assert list(store.leftovers()) == []
