"""A delta restore of a real data directory out of a memory store: what stays, what comes, what goes."""

import contextlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import build_wal
import google_crc32c
import pytest
from build_wal import IN_PRODUCTION, SHUT_DOWN
from fix_archive import listing, unchanged
from fix_memory import open_memory
from fix_postgres import give_to_server_user, wait_until

from wal_e.archive import layout
from wal_e.archive.catalog import Catalog
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import DamageError, DiskFull, LockHeld, StoreUnavailable, TargetRefused, UsageError
from wal_e.operators import backup_push, restore_delta, restore_target
from wal_e.operators.backup_fetch import Hooks, fetch_backup
from wal_e.operators.restore_delta import carry_out, planned_delta, planned_selection
from wal_e.operators.restore_target import TablespaceChoice
from wal_e.postgres.cluster import Cluster, locked
from wal_e.postgres.wal import segment_name, segment_start, wal_kind
from wal_e.tar.comparison import Paths
from wal_e.tar.destination import CONTROL, HELD_CONTROL

LINKED = TablespaceChoice(False, None)
RECORDED = TablespaceChoice(False, {})
BLIND = TablespaceChoice(True, None)
SPACE = "pg_tblspc/16500"
VICTIM = "base/1/1259"


class Store(MemoryStore):
    """A memory store that counts what is fetched of a backup, and can fail."""

    def __init__(self):
        super().__init__()
        self.fetched = []
        self.is_away = False

    def get(self, key, *, start=0, length=None):
        if "tar_partitions" in key:
            if self.is_away:
                raise StoreUnavailable("the store is away")
            self.fetched.append(key)
        return super().get(key, start=start, length=length)


@pytest.fixture(scope="module")
def origin(_template, tmp_path_factory):
    """A cluster as initdb makes it, with two databases and a tablespace put in by hand."""
    place = tmp_path_factory.mktemp("origin")
    shutil.copytree(_template(1), place / "data")
    data, space = place / "data", place / "space"
    shutil.rmtree(data / "base" / "4")
    for database in (data / "base" / "16400", data / "base" / "16401", space / version_directory(data) / "16401"):
        database.mkdir(parents=True)
        for name in ("1249", "1259", "1259_fsm", "PG_VERSION", "pg_filenode.map"):
            shutil.copy2(data / "base" / "1" / name, database)
    (data / SPACE).symlink_to(space)
    give_to_server_user(place)
    return data


def version_directory(data):
    control = Cluster.open(str(data))
    return f"PG_{control.major}_{control.control.catalog_version}"


@pytest.fixture(scope="module")
def stored(origin):
    """A memory store with one backup of it."""
    store = Store()
    backup_push.push_offline(open_memory(store), Cluster.open(str(origin)), backup_push.PushOptions(2, 0, "fast", 10), lambda _: None)
    return store


@pytest.fixture
def store(stored):
    stored.fetched.clear()
    stored.is_away = False
    return stored


@pytest.fixture
def archive(store):
    return open_memory(store)


@pytest.fixture
def target(archive, tmp_path):
    """The backup, restored in a directory with a tablespace of its own."""
    (tmp_path / "space").mkdir()
    fetch_backup(archive, str(tmp_path / "target"), "LATEST", 2, TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "space")}}))
    archive.store._store.fetched.clear()
    return tmp_path / "target"


def restore(archive, target, choice=LINKED, included=(), hooks=restore_delta.NO_HOOKS, wal="ask"):
    with planned_delta(archive, str(target), "LATEST", 2, choice, included, wal) as plan:
        carry_out(archive, plan, hooks)
    return plan.counts


def whole(target):
    """All that is in a directory and its tablespace, but for what differs from one restore to another."""
    found = {**listing(target), **{f"space/{name}": entry for name, entry in listing(target.parent / "space").items()}}
    assert HELD_CONTROL not in found
    del found["tablespace_map" if "tablespace_map" in found else "backup_manifest"]
    found.pop("backup_manifest", None)
    return found


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    times = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_of_an_unchanged_copy_only_pg_control_is_fetched(archive, store, target):
    before = whole(target)
    counts = restore(archive, target)
    assert (counts.fetched_files, counts.removed, counts.content_bytes) == (1, 0, 8192)
    assert len(store.fetched) == 1
    assert whole(target) == before


@pytest.mark.parametrize("name", ["global/pg_filenode.map", CONTROL])
def test_files_that_end_with_their_own_checksum_are_not_mistaken_for_each_other(archive, target, name):
    original = (target / name).read_bytes()
    end = 288 if name == CONTROL else 4 * 2 + 62 * 8  # where the checksum is
    changed = bytearray(original)
    changed[40] ^= 1
    changed[end : end + 4] = google_crc32c.value(bytes(changed[:end])).to_bytes(4, "little")
    assert google_crc32c.value(bytes(changed)) == google_crc32c.value(original)
    moment = (target / name).stat().st_mtime
    (target / name).write_bytes(changed)
    if name == CONTROL:  # which is not believed even then
        os.utime(target / name, (moment, moment))
    restore(archive, target)
    assert (target / name).read_bytes() == original


def test_damage_of_every_kind_is_repaired_and_only_its_partitions_are_fetched(archive, store, target):
    before = whole(target)
    flip(target / VICTIM)
    os.truncate(target / "base/1/1249", 100)
    (target / "base/5").rename(target / "base/77")
    (target / "global/1262").unlink()
    (target / "pg_xact/0000").unlink()
    (target / "pg_xact/0000").mkdir()
    (target / "pg_notify").rmdir()
    (target / "pg_notify").write_text("a file in the place of a directory")
    flip(next((target / SPACE).glob("PG_*/16401/1259")))
    (target / "postgresql.conf").chmod(0o644)
    for stray in ("recovery.signal", "standby.signal", "postmaster.pid", "base/1/99999", "pg_wal/000000010000000000000009", "log/server.log"):
        (target / stray).parent.mkdir(exist_ok=True)
        (target / stray).write_text("999999999\n" if stray == "postmaster.pid" else "x")
    (target / "postmaster.pid").write_text(f"999999999\n{target}\n1\n5432\n/tmp\n\n")
    counts = restore(archive, target)
    assert whole(target) == before
    assert counts.fetched_files > 4
    assert store.fetched


def test_one_damaged_file_costs_one_partition(archive, store, target, monkeypatch):
    flip(target / VICTIM)
    counts = restore(archive, target)
    assert (counts.fetched_files, counts.partitions) == (2, 2)
    assert sorted(key[-7:] for key in store.fetched) == ["tar.lzo", "tar.lzo"]


def test_a_plan_changes_nothing_and_lists_what_it_would_do(archive, store, target):
    flip(target / VICTIM)
    (target / "stray").mkdir()
    with unchanged(target), planned_delta(archive, str(target), "LATEST", 2, LINKED) as plan:
        assert list(plan.listing()) == [f"fetch {VICTIM}", f"fetch {CONTROL}", "remove stray"]
        assert plan.sentences()[1].startswith("2 files")
    assert store.fetched == []


def test_modes_and_times_come_back_without_a_fetch(archive, store, target):
    before = (target / VICTIM).stat()
    (target / VICTIM).chmod(0o666)
    os.utime(target / VICTIM, (1, 1))
    (target / "base").chmod(0o755)
    assert restore(archive, target).fetched_files == 1
    after = (target / VICTIM).stat()
    assert (after.st_mode, int(after.st_mtime)) == (before.st_mode, int(before.st_mtime))
    assert stat.S_IMODE((target / "base").stat().st_mode) == 0o700


def test_a_file_with_a_second_name_is_not_written_through(archive, target, tmp_path):
    flip(target / VICTIM)
    for number, name in enumerate((VICTIM, "base/1/1249")):
        os.link(target / name, tmp_path / f"elsewhere-{number}")
    contents = [(tmp_path / f"elsewhere-{number}").read_bytes() for number in range(2)]
    assert restore(archive, target).fetched_files == 3
    assert [(tmp_path / f"elsewhere-{number}").read_bytes() for number in range(2)] == contents
    assert (target / "base/1/1249").stat().st_nlink == 1


def test_nothing_is_read_or_removed_through_a_link_that_is_not_known(archive, target, tmp_path):
    before = whole(target)
    (target / "base").rename(tmp_path / "moved")
    (target / "base").symlink_to(tmp_path / "moved")
    (tmp_path / "moved" / "1" / "own").write_text("x")
    with unchanged(tmp_path / "moved"):
        restore(archive, target)
    assert whole(target) == before


def test_a_linked_pg_wal_stays_linked_and_is_emptied(archive, target, tmp_path):
    shutil.move(target / "pg_wal", tmp_path / "wal")
    (target / "pg_wal").symlink_to(tmp_path / "wal")
    (tmp_path / "wal" / "000000010000000000000099").write_text("x")
    restore(archive, target)
    assert (target / "pg_wal").is_symlink()
    assert not (tmp_path / "wal" / "000000010000000000000099").exists()
    assert (tmp_path / "wal" / "archive_status").is_dir()


@pytest.mark.parametrize("name", [CONTROL, HELD_CONTROL])
def test_another_cluster_is_refused(archive, target, name):
    content = bytearray((target / CONTROL).read_bytes())
    content[0] ^= 1
    (target / CONTROL).unlink()
    (target / name).write_bytes(content)
    with unchanged(target), pytest.raises(TargetRefused, match="another cluster"):
        restore(archive, target)


def test_a_directory_that_is_no_cluster_is_refused(archive, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters").write_text("x")
    with unchanged(tmp_path / "home"), pytest.raises(TargetRefused, match="is not empty"):
        restore(archive, tmp_path / "home", RECORDED)


def test_a_cluster_without_pg_control_is_refused(archive, target):
    (target / CONTROL).unlink()
    with unchanged(target), pytest.raises(TargetRefused, match="not known to be a copy"):
        restore(archive, target)


def test_a_directory_in_use_is_refused(archive, target):
    (target / "postmaster.pid").write_text(f"{os.getpid()}\n{target}\n1\n5432\n/tmp\n\n")
    with unchanged(target), pytest.raises(TargetRefused, match="a server runs on"):
        restore(archive, target)


def test_a_server_that_started_meanwhile_keeps_its_pg_control(archive, target):
    with planned_delta(archive, str(target), "LATEST", 2, LINKED) as plan:
        (target / "postmaster.pid").write_text(f"{os.getpid()}\n{target}\n1\n5432\n/tmp\n\n")
        with unchanged(target), pytest.raises(TargetRefused, match="a server runs on"):
            carry_out(archive, plan)


def test_two_restores_do_not_work_on_one_directory(archive, target):
    with unchanged(target), locked(str(target), "nobody"), pytest.raises(LockHeld, match="another command works on"):
        restore(archive, target)


@pytest.mark.parametrize("shared", ["pg_wal", SPACE])
def test_a_place_that_a_running_server_uses_is_refused(archive, target, tmp_path, shared):
    other = tmp_path / "other"
    (other / "pg_tblspc").mkdir(parents=True)
    place = (target / shared).resolve() if shared == SPACE else tmp_path / "wal"
    if shared == "pg_wal":
        shutil.move(target / shared, place)
        (target / shared).symlink_to(place)
    (other / shared).symlink_to(place)
    program = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(program, cwd=other, stdin=subprocess.PIPE) as server:
        wait_until(lambda: os.readlink(f"/proc/{server.pid}/cwd") == str(other), "the server works in its directory")
        try:
            (other / "postmaster.pid").write_text(f"{server.pid}\n")
            with unchanged(target, place), pytest.raises(TargetRefused, match="in use by another server"):
                restore(archive, target)
        finally:
            server.kill()


def test_wal_that_is_nowhere_else_is_not_thrown_away(archive, store, target):
    segment = "000000010000000000000042"
    (target / "pg_wal" / segment).write_text("x")
    ready = target / "pg_wal" / "archive_status" / f"{segment}.ready"
    ready.touch()
    with unchanged(target), pytest.raises(TargetRefused, match="not in the archive") as refused:
        restore(archive, target)
    assert segment in refused.value.detail
    store.put(layout.wal_key(segment, ".lzo"), [b"x"])
    restore(archive, target)
    store.delete([layout.wal_key(segment, ".lzo")])
    assert not ready.exists()


@pytest.fixture
def unfinished(archive, target):
    """A segment that the server of the copy was writing, as a function of how far it lies behind the one in which the backup begins."""

    def make(distance=2, called=None, identifier=None):
        facts = Catalog(archive.store).find("LATEST").readable().facts
        name = segment_name(1, facts.start_lsn + distance * facts.segment_size, facts.segment_size)
        path = target / "pg_wal" / (called or name)
        path.write_bytes(build_wal.build_segment(name, facts.segment_size, identifier or facts.system_identifier))
        return path

    return make


def test_what_a_server_wrote_last_is_kept_or_removed_as_somebody_says(archive, store, target, unfinished):
    path = unfinished()
    content = path.read_bytes()
    flip(target / VICTIM)
    with unchanged(target), pytest.raises(TargetRefused, match="not in the archive") as refused:
        restore(archive, target)
    assert path.name in refused.value.detail
    with planned_delta(archive, str(target), "LATEST", 2, LINKED, (), "keep") as plan:
        assert "stays, and recovery to the end goes on with it" in plan.sentences()[-1]
        assert f"remove pg_wal/{path.name}" not in plan.listing()
    assert restore(archive, target, wal="keep").fetched_files == 2
    assert path.read_bytes() == content
    restore(archive, target, wal="remove")
    assert not path.exists()


def test_wal_that_is_ready_stays_ready_when_it_is_kept(archive, target, unfinished):
    path = unfinished()
    ready = target / "pg_wal" / "archive_status" / f"{path.name}.ready"
    ready.touch()
    restore(archive, target, wal="keep")
    assert path.exists()
    assert ready.exists()


def test_wal_that_the_backup_has_in_another_state_is_kept_as_it_is(archive, target):
    [path] = [path for path in (target / "pg_wal").iterdir() if wal_kind(path.name) == "segment"]
    assert restore(archive, target).removed == 0
    flip(path)
    content = path.read_bytes()
    with pytest.raises(TargetRefused, match="not in the archive"):
        restore(archive, target)
    restore(archive, target, wal="keep")
    assert path.read_bytes() == content
    restore(archive, target, wal="remove")
    assert path.read_bytes() != content


def test_wal_that_is_elsewhere_too_or_none_of_this_or_before_the_backup_is_no_question(archive, store, target, unfinished):
    stored = unfinished()
    store.put(layout.wal_key(stored.name, ".lzo"), [b"x"])
    paths = [stored, unfinished(3, called="000000010000000000000077"), unfinished(4, identifier=7), unfinished(-1)]
    restore(archive, target)
    store.delete([layout.wal_key(stored.name, ".lzo")])
    assert [path for path in paths if path.exists()] == []


@pytest.mark.parametrize(("state", "offset", "asks"), [(SHUT_DOWN, 40, False), (IN_PRODUCTION, 40, True), (SHUT_DOWN, 88, True)])
def test_a_segment_that_only_tells_of_a_shutdown_is_no_question(archive, target, unfinished, state, offset, asks):
    facts = Catalog(archive.store).find("LATEST").readable().facts
    start = segment_start(unfinished().name, facts.segment_size)
    control = build_wal.build_control(facts.system_identifier, state=state, checkpoint=start + offset, segment_size=facts.segment_size)
    (target / CONTROL).write_bytes(control)
    with pytest.raises(TargetRefused) if asks else contextlib.nullcontext():
        restore(archive, target)


def test_a_restore_that_failed_cannot_be_started_and_goes_on(archive, store, target):
    before = whole(target)
    flip(target / VICTIM)
    flip(target / CONTROL)
    store.is_away = True
    with pytest.raises(StoreUnavailable):
        restore(archive, target)
    assert not (target / CONTROL).exists()
    store.is_away = False
    counts = restore(archive, target)
    assert counts.fetched_files == 2
    assert whole(target) == before


def test_a_full_restore_that_was_killed_goes_on(archive, store, tmp_path, monkeypatch):
    target = tmp_path / "target"
    (tmp_path / "space").mkdir()
    choice = TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "space")}})
    monkeypatch.setattr(restore_target.Target, "_empty", lambda *_, **__: None)  # as a kill does, which lets nobody tidy up

    def fail(_):
        raise StoreUnavailable("killed")

    with pytest.raises(StoreUnavailable):
        fetch_backup(archive, str(target), "LATEST", 2, choice, Hooks(before_control=fail))
    with pytest.raises(TargetRefused, match="is not empty") as refused:
        fetch_backup(archive, str(target), "LATEST", 2, choice)
    assert "--delta" in refused.value.hint
    store.fetched.clear()
    assert restore(archive, target, choice).fetched_files == 1
    assert len(store.fetched) == 1
    assert (target / CONTROL).exists()


def test_a_killed_restore_is_known_by_its_first_write(archive, target):
    """Right after the mark, nothing else is there."""
    before = whole(target)
    identifier = (target / CONTROL).read_bytes()[:8]
    space = (target / SPACE).resolve()
    shutil.rmtree(target)
    (target / "global").mkdir(parents=True)
    (target / HELD_CONTROL).write_bytes(identifier)
    shutil.rmtree(space)
    space.mkdir()
    restore(archive, target, TablespaceChoice(False, {"16500": {"loc": str(space)}}))
    assert whole(target) == before


def test_an_absent_target_is_restored_as_a_whole(archive, target, tmp_path):
    before = listing(target)
    shutil.rmtree(target)
    shutil.rmtree(tmp_path / "space")
    counts = restore(archive, target, TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "space")}}))
    assert counts.unchanged_files == counts.removed == 0
    assert set(listing(target)) == set(before)


def test_a_tablespace_moves_when_that_is_said_and_its_old_place_is_left_alone(archive, target, tmp_path):
    with unchanged(tmp_path / "space"):
        restore(archive, target, TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "elsewhere")}}))
    assert (target / SPACE).resolve() == tmp_path / "elsewhere"
    assert str(tmp_path / "elsewhere") not in listing(tmp_path / "space")
    assert [path.name for path in (tmp_path / "elsewhere").glob("PG_*/*")] == ["16401"]


def test_a_tablespace_does_not_move_into_a_place_that_holds_something(archive, target, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "letters").write_text("x")
    with unchanged(target, tmp_path / "elsewhere"), pytest.raises(TargetRefused, match="is not empty"):
        restore(archive, target, TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "elsewhere")}}))


def test_tablespaces_become_directories_when_that_is_said(archive, target, tmp_path):
    with unchanged(tmp_path / "space"):
        restore(archive, target, BLIND)
    assert not (target / SPACE).is_symlink()
    assert [path.name for path in (target / SPACE).glob("PG_*/*")] == ["16401"]


def test_what_else_is_in_the_place_of_a_tablespace_stays(archive, target):
    other = target / SPACE / "PG_9.6_201608131"
    other.mkdir()
    (other / "own").write_text("x")
    (target / SPACE / "lost+found").mkdir()
    restore(archive, target)
    assert (other / "own").exists()
    assert (target / SPACE / "lost+found").exists()


def test_recovery_files_are_written_before_the_directory_can_be_started(archive, target):
    seen = []

    def write(restored):
        seen.append((Path(restored.path, CONTROL).exists(), Path(restored.path, VICTIM).exists()))
        Path(restored.path, "recovery.signal").touch()

    restore(archive, target, hooks=Hooks(before_control=write))
    assert seen == [(False, True)]
    assert (target / "recovery.signal").exists()


def test_a_partition_that_is_not_what_was_stored_stops_a_delta_restore(archive, store, target):
    flip(target / VICTIM)
    restore(archive, target)
    key, other = store.fetched[0], layout.partition_key(Catalog(store).find("LATEST").name, 1, ".lzo")
    content = b"".join(store.get(key))
    flip(target / VICTIM)
    try:
        store.put(key, [b"".join(store.get(other))])
        with pytest.raises(DamageError, match=key):
            restore(archive, target)
    finally:
        store.put(key, [content])
    assert not (target / CONTROL).exists()


def test_space_that_is_not_there_is_told_before_anything_changes(archive, target, monkeypatch):
    (target / VICTIM).unlink()
    real = os.statvfs

    class Full:
        def __init__(self, path):
            self.f_bavail, self.f_frsize = 1, real(path).f_frsize

    monkeypatch.setattr(os, "statvfs", Full)
    with unchanged(target), pytest.raises(DiskFull):
        restore(archive, target)
    flip(target / "base/1/1249")
    (target / VICTIM).write_bytes(bytes(1 << 20))
    with planned_delta(archive, str(target), "LATEST", 2, LINKED) as plan:  # what is replaced makes room
        assert plan.counts.fetched_files == 3


def zeroed(path):
    status = path.stat()
    return status.st_blocks == 0 and status.st_size > 0


def test_other_databases_come_as_zeros_that_take_no_space(archive, store, origin, tmp_path):
    target = tmp_path / "target"
    (tmp_path / "space").mkdir()
    choice = TablespaceChoice(False, {"16500": {"loc": str(tmp_path / "space")}})
    with planned_selection(archive, str(target), "LATEST", 2, choice, ["16400"]) as plan:
        carry_out(archive, plan)
    assert plan.counts.zeroed_files == 10
    assert (target / "base/16400/1259").read_bytes() == (origin / "base/1/1259").read_bytes()
    for database in (target / "base/16401", *(tmp_path / "space").glob("PG_*/16401")):
        assert zeroed(database / "1259")
        assert (database / "1259").stat().st_size == (origin / "base/1/1259").stat().st_size
        assert stat.S_IMODE((database / "1259").stat().st_mode) == 0o600
        assert zeroed(database / "pg_filenode.map")
        assert zeroed(database / "PG_VERSION")
    assert not (target / "backup_manifest").exists()
    assert "ignore_invalid_pages = 'on'" in (target / "postgresql.auto.conf").read_text()
    again = restore(archive, target, included=["16400"])
    assert (again.fetched_files, again.zeroed_files) == (2, 0)  # postgresql.auto.conf is not as in the backup
    assert restore(archive, target, included=["16400", "16401"]).fetched_files == 12
    assert restore(archive, target, included=["16401"]).zeroed_files == 5
    assert zeroed(target / "base/16400/1259")


def test_a_database_that_the_backup_does_not_hold_is_refused(archive, tmp_path):
    for name in ("shop", "16402"):
        with pytest.raises(UsageError, match=name) as refused, planned_selection(archive, str(tmp_path / "target"), "LATEST", 2, BLIND, [name]):
            pass
        assert "16400, 16401" in refused.value.detail
    assert not (tmp_path / "target").exists()


def test_a_selection_wants_an_empty_directory(archive, target):
    with unchanged(target), pytest.raises(TargetRefused, match="not empty"), planned_selection(archive, str(target), "LATEST", 2, LINKED, ["16400"]):
        pass


def test_a_set_of_paths_knows_its_members_and_no_others():
    paths, more = Paths(), Paths()
    for number in range(1000):
        (paths if number % 2 else more).add(f"base/1/{number}")
    paths.update(more)
    assert all(f"base/1/{number}" in paths for number in range(1000))
    assert not any(f"base/1/{number}" in paths for number in range(1000, 3000))
