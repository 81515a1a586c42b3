"""Stores for tests: ``store`` is each kind in turn; a new kind is one line in ``FACTORIES``."""

import errno
import os

import pytest
from fake_service import FakeService
from fix_azure import azure_store
from fix_gcs import gcs_store
from fix_s3 import s3_moto_store, s3_store
from fix_swift import swift_store

from wal_e.blobstore.file import FileStore
from wal_e.blobstore.memory import MemoryStore
from wal_e.blobstore.objects import ObjectStore
from wal_e.blobstore.registry import call_directly
from wal_e.retry import Effort, Policy


def unsupported(*_):
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def memory_store(tmp_path, monkeypatch):
    return MemoryStore()


def file_store(tmp_path, monkeypatch):
    root = tmp_path / "store"
    root.mkdir()
    return FileStore(str(root), call_directly)


def file_store_without_links(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", unsupported)
    return file_store(tmp_path, monkeypatch)


def file_store_with_claims_only(tmp_path, monkeypatch):
    monkeypatch.setattr("os.link", unsupported)
    monkeypatch.setattr("wal_e.blobstore.publish.rename_noreplace", unsupported)
    return file_store(tmp_path, monkeypatch)


def object_store(tmp_path, monkeypatch):
    policy = Policy(5, 60)
    return ObjectStore(FakeService(), Effort(policy, policy), 4)


FACTORIES = {
    "memory": memory_store,
    "objects": object_store,
    "file": file_store,
    "file-renameat2": file_store_without_links,
    "file-claim": file_store_with_claims_only,
    "gcs": gcs_store,
    "azure": azure_store,
    "s3": s3_store,
    "s3-moto": s3_moto_store,
    "swift": swift_store,
}


# What a service, or the server that stands for it in the tests, cannot do: a word in the test's id, and why.
UNABLE = {
    ("azure", "back\\\\slash"): "Azure reads a backslash in a name as a slash",
    ("s3-moto", "new\\nline"): "moto has no route for a key with a newline",
}


@pytest.fixture(params=FACTORIES)
def store(request, tmp_path, monkeypatch):
    for (kind, word), why in UNABLE.items():
        if request.param == kind and word in request.node.name:
            pytest.skip(why)
    return FACTORIES[request.param](tmp_path, monkeypatch)
