"""An archive in memory, and a data directory with WAL in it."""

from __future__ import annotations

import os

import build_wal
import pytest

from wal_e.archive.archive import Archive
from wal_e.archive.identity import claim_identity
from wal_e.blobstore.memory import MemoryStore
from wal_e.operators import wal_search
from wal_e.pipeline.lanes import Cooperative
from wal_e.pipeline.pipeline import Pipeline
from wal_e.pipeline.process import Blocking
from wal_e.retry import Policy


@pytest.fixture
def archive():
    return open_memory(MemoryStore())


def open_memory(store, waits=None):
    waits = waits or Blocking()
    once = Policy(1, 1)
    return Archive(store, Pipeline(waits), waits, once, once)


def open_searched():
    """An empty archive of ``build_wal``'s cluster, with lanes for what is searched."""
    store = MemoryStore()
    claim_identity(store, build_wal.SYSTEM_IDENTIFIER, ".lzo")
    return open_memory(store, Cooperative(wal_search.LANES))


def content_of(archive, key):
    """What is stored under a key, decoded."""
    fd = os.memfd_create("stored")
    try:
        archive.decode(key, fd)
        return os.pread(fd, 1 << 24, 0)
    finally:
        os.close(fd)


@pytest.fixture
def data_directory(tmp_path):
    """A data directory with pg_control and an empty pg_wal."""
    (tmp_path / "data" / "global").mkdir(parents=True)
    (tmp_path / "data" / "pg_wal" / "archive_status").mkdir(parents=True)
    (tmp_path / "data" / "global" / "pg_control").write_bytes(build_wal.build_control(segment_size=build_wal.SEGMENT_SIZE))
    return tmp_path / "data"


@pytest.fixture
def segment(data_directory):
    """Write a segment (or any WAL file) into pg_wal; return its path."""

    def write(name, content=None, **options):
        path = data_directory / "pg_wal" / name
        path.write_bytes(build_wal.build_segment(name, **options) if content is None else content)
        return str(path)

    return write
