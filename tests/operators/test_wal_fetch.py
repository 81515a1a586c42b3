"""wal-fetch against a memory store, with real lzop."""

import os
import subprocess

import build_wal
import pytest

from wal_e.archive import layout
from wal_e.errors import BlobNotFound, DamageError, DiskFull, StoreForbidden, StoreUnavailable, ToolMissing, UsageError, WalRefused, WrongCluster
from wal_e.operators.wal_fetch import exit_status, fetch
from wal_e.operators.wal_push import push
from wal_e.settings import Settings

SEG = "000000010000000000000003"
NAMES = [f"00000001000000000000000{number}" for number in range(3, 10)]


@pytest.fixture
def filled(archive, segment):
    """An archive that holds the segments; pg_wal is empty again."""
    for name in NAMES:
        path = segment(name)
        push(archive, path)
        os.unlink(path)
    return archive


@pytest.fixture
def destination(data_directory):
    return data_directory / "pg_wal" / "RECOVERYXLOG"


def left_behind(destination):
    return sorted(path.name for path in destination.parent.iterdir() if path.name not in ("archive_status", ".wal-e", "RECOVERYXLOG"))


def test_a_segment_comes_back_as_it_was(filled, destination):
    fetch(filled, SEG, str(destination))
    assert destination.read_bytes() == build_wal.build_segment(SEG)
    assert left_behind(destination) == []


def test_what_a_killed_call_left_is_removed_and_what_a_living_one_writes_is_not(filled, destination, monkeypatch):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f"RECOVERYXLOG.wal-e-{dead.pid}.tmp", f"RECOVERYXLOG.wal-e-{os.getppid()}.tmp", f"other.wal-e-{dead.pid}.tmp", "RECOVERYXLOG.wal-e-x.tmp"):
        (destination.parent / name).write_bytes(b"half")
    monkeypatch.chdir(destination.parent)
    fetch(filled, SEG, destination.name)
    assert left_behind(destination) == sorted(["RECOVERYXLOG.wal-e-x.tmp", f"RECOVERYXLOG.wal-e-{os.getppid()}.tmp", f"other.wal-e-{dead.pid}.tmp"])


def test_a_relative_destination_works(filled, destination, monkeypatch):
    monkeypatch.chdir(destination.parent.parent)
    fetch(filled, SEG, "pg_wal/RECOVERYXLOG")
    assert destination.read_bytes() == build_wal.build_segment(SEG)


@pytest.mark.parametrize("name", ["0000000100000000000000FF", "00000002.history", f"{SEG}.00000028.backup", f"{SEG}.partial"])
def test_what_the_store_does_not_have_is_absent_and_leaves_nothing(filled, destination, name):
    with pytest.raises(BlobNotFound, match=name):
        fetch(filled, name, str(destination))
    assert not destination.exists()
    assert left_behind(destination) == []


def test_an_empty_prefix_may_be_one_that_is_not_mounted_so_nothing_is_said_to_be_absent(archive, destination):
    with pytest.raises(StoreUnavailable, match="no WAL at all"):
        fetch(archive, SEG, str(destination))


def test_what_another_clusters_prefix_does_not_have_is_not_absent(filled, data_directory, destination):
    (data_directory / "global" / "pg_control").write_bytes(build_wal.build_control(system_identifier=5))
    with pytest.raises(WrongCluster, match="another cluster"):
        fetch(filled, "0000000100000000000000FF", str(destination))


def test_a_prefix_of_the_original_has_no_identity_and_still_knows_absence(archive, destination):
    put_as(archive, NAMES[1], build_wal.build_segment(NAMES[1]))
    with pytest.raises(BlobNotFound):
        fetch(archive, SEG, str(destination))


def put_as(archive, name, content):
    archive.store.put(layout.wal_key(name, ".lzo"), archive.pipeline.encode(lambda stream: stream.write(content)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        build_wal.build_segment(SEG)[:-8192],
        build_wal.build_segment(NAMES[1]),
        build_wal.build_segment(SEG, system_identifier=5),
        bytes(build_wal.SEGMENT_SIZE),
    ],
)
def test_a_whole_object_that_is_not_the_segment_is_damage_and_never_placed(filled, destination, content):
    put_as(filled, SEG, content)
    with pytest.raises(DamageError, match=SEG):
        fetch(filled, SEG, str(destination))
    assert not destination.exists()
    assert left_behind(destination) == []


def test_what_was_there_before_is_kept_when_the_fetch_fails(filled, destination):
    destination.write_bytes(b"before")
    filled.store.put(layout.wal_key(SEG, ".lzo"), [b"rubbish"])
    with pytest.raises(DamageError):
        fetch(filled, SEG, str(destination))
    assert destination.read_bytes() == b"before"


def test_a_name_that_is_none_is_refused(filled, destination):
    with pytest.raises(WalRefused):
        fetch(filled, "../../etc/passwd", str(destination))


@pytest.mark.parametrize(
    "error, recovering, standby",
    [
        (BlobNotFound("x"), 1, 1),
        (StoreUnavailable("x"), 200, 75),
        (DiskFull("x"), 200, 75),
        (StoreForbidden("x"), 200, 200),
        (DamageError("x"), 200, 200),
        (ToolMissing("x"), 200, 200),
        (UsageError("x"), 200, 200),
        (RuntimeError("a mistake of ours"), 200, 200),
        (MemoryError(), 200, 200),
    ],
)
def test_only_confirmed_absence_is_1_and_a_standby_may_ask_again(data_directory, destination, error, recovering, standby):
    settings = Settings({})
    assert exit_status(error, str(destination), settings) == recovering
    (data_directory / "recovery.signal").touch()
    assert exit_status(error, str(destination), settings) == recovering
    (data_directory / "standby.signal").touch()
    assert exit_status(error, str(destination), settings) == standby


def test_the_role_is_also_found_in_the_working_directory(data_directory, monkeypatch, tmp_path):
    monkeypatch.chdir(data_directory)
    (data_directory / "standby.signal").touch()
    assert exit_status(StoreUnavailable("x"), str(tmp_path / "elsewhere" / "pg_wal" / "x"), None) == 75


def test_both_statuses_are_settings_and_broken_settings_do_not_matter(destination, data_directory):
    (data_directory / "standby.signal").touch()
    chosen = Settings({"WALE_FETCH_STATUS_TEMPORARY": "3", "WALE_FETCH_STATUS_FAILURE": "126"})
    assert exit_status(StoreUnavailable("x"), str(destination), chosen) == 3
    assert exit_status(DamageError("x"), str(destination), chosen) == 126
    assert exit_status(DamageError("x"), str(destination), Settings({"WALE_FETCH_STATUS_FAILURE": "none"})) == 200


def test_one_request_brings_a_segment(filled, destination):
    store = Counting(filled.store)
    filled.store, filled._identity = store, None
    fetch(filled, SEG, str(destination))
    assert store.asked == [layout.wal_key(SEG, ".lzo")]


class Counting:
    """Notes the keys that are read."""

    def __init__(self, store):
        self._store = store
        self.asked = []

    def __getattr__(self, name):
        return getattr(self._store, name)

    def get(self, key, **options):
        self.asked.append(key)
        return self._store.get(key, **options)


def test_what_the_server_flushes_itself_is_not_flushed_twice(filled, destination, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.append(os.readlink(f"/proc/self/fd/{fd}")))
    fetch(filled, SEG, str(destination))
    assert flushed == []
    fetch(filled, SEG, str(tmp_path / SEG))
    assert [os.path.dirname(flushed[0]), flushed[1:]] == [str(tmp_path), [str(tmp_path)]]
