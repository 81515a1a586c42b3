"""delete against a memory store: what goes, in which order, and what a bad end leaves."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from fix_memory import open_memory

from wal_e.archive import layout
from wal_e.archive.catalog import Catalog
from wal_e.archive.layout import BackupName
from wal_e.archive.retention import Before, BeforeSegment, Retain
from wal_e.archive.sentinel import Facts, Sentinel, render_sentinel
from wal_e.blobstore.base import Leftover
from wal_e.blobstore.memory import MemoryStore
from wal_e.blobstore.wrappers import ReadOnly
from wal_e.errors import BackupNotFound, DamageError, LockHeld, StoreError, StoreForbidden, StoreUnavailable, Terminated, UsageError
from wal_e.operators import delete as deleting
from wal_e.operators.backup_claim import Claim, is_marked_deleted, mark_deleted
from wal_e.operators.erasing import MAX_FAILURES_IN_A_ROW, Deletion, Rehearsal
from wal_e.postgres.wal import Lsn, segment_name

SIZE = 16 << 20
NOW = datetime(2026, 3, 9, tzinfo=UTC)
DAY = timedelta(days=1)


class Store(MemoryStore):
    """A memory store whose clock is set, which counts its changes, and which can fail or be killed at one of them."""

    def __init__(self):
        super().__init__()
        self.now = NOW
        self.changes = []
        self.refused = ()
        self.killed_at = None
        self.hidden = []

    def put(self, key, chunks):
        self._change(key)
        size = super().put(key, chunks)
        self._contents[key] = (self._contents[key][0], self.now)
        return size

    def delete(self, keys):
        refused = []
        for key in keys:
            if key.startswith(self.refused or ("?",)):
                refused.append(key)
            else:
                self._change(key)
                super().delete([key])
        if refused:
            raise StoreForbidden(f"no permission for {refused[0]}", f"{len(refused)} left.", "Ask for it.")

    def _change(self, key):
        if self.killed_at == len(self.changes):
            raise Terminated(15)
        self.changes.append(key)

    def leftovers(self):
        return iter(self.hidden)

    def discard(self, leftover):
        self.hidden = [one for one in self.hidden if one != leftover]


def backup_name(timeline, number):
    return str(BackupName(segment_name(timeline, number * SIZE, SIZE), 40))


def put_objects(store, name, stored, partitions=2):
    store.now = stored
    store.put(layout.version_key(name), [b"PostgreSQL 15"])
    for number in range(partitions):
        store.put(layout.partition_key(name, number, ".lzo"), [b"x" * 100])
    store.put(layout.manifest_key(name, ".lzo"), [b"m" * 10])


def put_backup(store, timeline, number, stored, *, facts=True):
    name = backup_name(timeline, number)
    put_objects(store, name, stored)
    start = Lsn(number * SIZE + 40)
    known = Facts(stored, stored, start, start, timeline, 7, 15, SIZE, 2, 1, "k", "h", True, "2")
    store.put(layout.sentinel_key(name), [render_sentinel(Sentinel("S", 0, 1, "/x", (), known if facts else None))])
    return name


def put_wal(store, archive, timeline, numbers, stored):
    store.now = stored
    for number in numbers:
        store.put(layout.wal_key(segment_name(timeline, number * SIZE, SIZE), ".lzo"), [b"w" * 10])


def put_history(store, archive, timeline, text):
    store.put(layout.wal_key(f"{timeline:08X}.history", ".lzo"), list(archive.pipeline.encode(lambda stream: stream.write(text.encode()))))


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def archive(store):
    return open_memory(store)


@pytest.fixture
def full(store, archive):
    """Five backups a day apart, the last after a recovery back in time to timeline 2, with all their WAL; return the names."""
    names = [put_backup(store, 1, 10 * (day + 1), NOW + day * DAY) for day in range(4)]
    put_wal(store, archive, 1, range(5, 50), NOW)
    put_history(store, archive, 2, "1\t0/19000010\tbefore the accident\n")  # in segment 25
    names.append(put_backup(store, 2, 27, NOW + 4 * DAY))
    put_wal(store, archive, 2, range(25, 30), NOW + 4 * DAY)
    store.now = NOW + 10 * DAY
    return names


def keys(store, prefix=""):
    return [blob.key for blob in store.list(prefix)]


def backups(store):
    return [backup.name for backup in Catalog(store).backups()]


def wal(store, timeline):
    return [int(key[24:32], 16) for key in keys(store, f"wal_005/{timeline:08X}0")]


def run(archive, policy, hand=None, now=NOW + 10 * DAY):
    hand = hand or Deletion(archive.store, [].append)
    report = deleting.delete_backups(archive, policy, hand, now, DAY)
    hand.finish()
    return report


def whole(store):
    """Every listed backup has all its objects and its WAL to the end of its timeline's."""
    for name in backups(store):
        assert len(keys(store, layout.backup_prefix(name))) == 4, name
        parsed = layout.parse_backup_name(name)
        timeline, number = int(parsed.segment[:8], 16), int(parsed.segment[16:], 16)
        assert set(range(number, {1: 50, 2: 30}[timeline])) <= set(wal(store, timeline)), name


def test_retain_keeps_the_newest_by_time_and_the_wal_they_need(store, archive, full):
    report = run(archive, Retain(2))
    assert backups(store) == full[3:] == report.kept
    assert [gone.name for gone in report.backups] == full[:3]
    assert {gone.erased.objects for gone in report.backups} == {5}
    assert wal(store, 1) == list(range(40, 50)), "25 is needed by no backup that is kept: that of timeline 2 starts after it"
    assert wal(store, 2) == [27, 28, 29]
    assert (report.wal[1].first, report.wal[1].last) == (segment_name(1, 5 * SIZE, SIZE), segment_name(1, 39 * SIZE, SIZE))
    assert report.wal[1].erased.objects == 35
    assert "wal_005/00000002.history.lzo" in keys(store)
    assert report.kept_histories == 1
    whole(store)


def test_after_a_recovery_back_in_time_the_line_that_was_left_goes(store, archive, full):
    run(archive, Retain(1))
    assert backups(store) == full[4:]
    assert wal(store, 1) == []
    whole(store)


def test_before_keeps_the_named_backup_and_what_was_finished_after_it(store, archive, full):
    run(archive, Before(full[2]))
    assert backups(store) == full[2:]
    assert wal(store, 1) == list(range(30, 50))
    whole(store)


def test_before_a_segment_takes_what_starts_before_it(store, archive, full):
    run(archive, BeforeSegment(segment_name(1, 25 * SIZE, SIZE)))
    assert backups(store) == full[2:]
    assert wal(store, 1) == list(range(25, 50))
    whole(store)


def test_a_rehearsal_tells_the_same_and_changes_nothing(store, full):
    before = dict(store._contents)
    seen = []
    told = run(open_memory(ReadOnly(store)), Retain(2), Rehearsal(seen.append))
    assert store._contents == before
    done = []
    real = run(open_memory(store), Retain(2), Deletion(store, done.append))
    assert sorted(seen) == sorted(done)
    assert (told.total.objects, told.wal, [gone.name for gone in told.backups]) == (real.total.objects, real.wal, [gone.name for gone in real.backups])
    assert sorted(before.keys() - store._contents.keys()) == sorted(done)


def test_the_sentinel_goes_before_the_objects_and_the_claim_after_them(store, archive, full):
    store.changes.clear()
    run(archive, Retain(4))
    first = full[0]
    mine = [key for key in store.changes if first in key]
    assert mine[0] == layout.version_key(first), "the mark"
    assert mine[1] == layout.sentinel_key(first)
    assert mine[-1] == layout.version_key(first)
    assert store.changes.index(mine[-1]) < min(number for number, key in enumerate(store.changes) if key.startswith("wal_005/"))


def test_killed_at_any_step_every_listed_backup_is_whole_and_the_next_run_finishes(store, full):
    contents = dict(store._contents)
    store.changes.clear()
    run(open_memory(store), Retain(2))
    steps, finished = len(store.changes), set(store._contents)
    assert steps > 40
    for step in range(steps):
        store._contents = dict(contents)
        store.changes, store.killed_at = [], step
        with pytest.raises(Terminated):
            run(open_memory(store), Retain(2))
        whole(store)
        assert set(full[3:]) <= set(backups(store))
        store.killed_at = None
        run(open_memory(store), Retain(2))
        assert set(store._contents) == finished, step


def test_killed_at_any_step_everything_is_finished_by_the_next_run(store, full):
    contents = dict(store._contents)
    store.put(layout.IDENTITY, [json.dumps({"system_identifiers": ["7"], "wal_suffixes": [".lzo"]}).encode()])
    contents = dict(store._contents)
    for step in range(0, 100, 3):
        store._contents = dict(contents)
        store.changes, store.killed_at = [], step
        try:
            deleting.delete_everything(open_memory(store), Deletion(store, [].append), NOW, DAY)
        except Terminated:
            whole(store)
            assert layout.IDENTITY in store._contents
        store.killed_at = None
        hand = Deletion(store, [].append)
        deleting.delete_everything(open_memory(store), hand, NOW, DAY)
        hand.finish()
        assert keys(store) == []


def test_a_backup_whose_sentinel_cannot_be_deleted_stays_whole_with_its_wal(store, archive, full):
    store.refused = (layout.sentinel_key(full[1]),)
    with pytest.raises(StoreForbidden, match=full[1]) as caught:
        run(archive, Retain(2))
    assert "run the same command again" in caught.value.hint
    assert backups(store) == [full[1], *full[3:]]
    assert wal(store, 1) == list(range(20, 50))
    whole(store)
    store.refused = ()
    run(archive, Retain(2))
    assert backups(store) == full[3:]
    assert wal(store, 1) == list(range(40, 50))


def test_what_cannot_be_deleted_does_not_keep_the_rest_from_being_tried(store, archive, full):
    stuck = layout.partition_key(full[0], 1, ".lzo")
    store.refused = (stuck,)
    with pytest.raises(StoreForbidden, match="not everything"):
        run(archive, Retain(2))
    assert keys(store, layout.backup_prefix(full[0])) == [layout.version_key(full[0]), stuck]
    assert wal(store, 1) == list(range(40, 50))
    whole(store)
    store.refused = ()
    report = run(archive, Retain(2))
    assert [gone.name for gone in report.remnants] == [full[0]]
    assert keys(store, layout.backup_prefix(full[0])) == []


def test_failures_with_successes_between_them_do_not_end_the_work(store, archive):
    names = [put_backup(store, 1, number, NOW + number * DAY) for number in range(1, 9)]
    store.refused = tuple(layout.partition_key(name, 1, ".lzo") for name in names)
    with pytest.raises(StoreForbidden, match="7 times the store refused"):
        run(archive, Retain(1))
    assert backups(store) == names[7:]


def test_a_store_that_is_away_is_given_up(store, archive, full, monkeypatch):
    calls = []
    for number in range(41, 50):
        put_backup(store, 1, number, NOW)

    def away(*arguments):
        calls.append(arguments)
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(store, "delete", away)
    monkeypatch.setattr(store, "put", away)
    with pytest.raises(StoreUnavailable):
        deleting.delete_everything(archive, Deletion(store, [].append), NOW, DAY)
    assert len(calls) == MAX_FAILURES_IN_A_ROW
    whole(store)


def test_errors_of_several_kinds_are_told_as_one(store):
    hand = Deletion(store, [].append)
    hand._failures = [StoreForbidden("one", "First."), StoreUnavailable("other", "Second.")]
    with pytest.raises(StoreError, match=r"First.*Second") as caught:
        hand.finish()
    assert type(caught.value) is StoreError


def test_many_keys_go_in_batches(store, archive, monkeypatch):
    put_backup(store, 1, 90, NOW)
    for number in range(2500):
        store.put(layout.wal_key(f"{segment_name(1, 5 * SIZE, SIZE)}.{number:08X}.backup", ".lzo"), [b""])
    sizes = []
    delete = store.delete
    monkeypatch.setattr(store, "delete", lambda keys: (sizes.append(len(keys)), delete(keys)))
    run(archive, Retain(1))
    assert sizes == [1000, 1000, 500]


def test_progress_is_told_once_a_minute(store, archive, full, capsys):
    minutes = iter(range(0, 10**6, 61))
    run(archive, Retain(1), Deletion(store, [].append, clock=lambda: next(minutes)))
    assert "objects are deleted so far" in capsys.readouterr().err


def test_a_push_at_work_is_left_alone_and_keeps_its_wal(store, archive, full):
    pushed = backup_name(1, 12)
    put_objects(store, pushed, NOW + 10 * DAY - timedelta(hours=2))
    report = run(archive, Retain(1))
    assert len(keys(store, layout.backup_prefix(pushed))) == 4
    assert report.kept_remnants == [pushed]
    assert wal(store, 1) == list(range(12, 50))


def test_a_push_that_began_long_ago_is_at_work_while_it_stores(store, archive, full):
    pushed = backup_name(1, 12)
    put_objects(store, pushed, NOW)
    store.now = NOW + 10 * DAY - timedelta(hours=2)
    store.put(layout.partition_key(pushed, 7, ".lzo"), [b"x"])
    assert garbage(archive).kept_remnants == [pushed]
    assert run(archive, Retain(1)).kept_remnants == [pushed]
    assert wal(store, 1) == list(range(12, 50))


def test_a_dead_remnant_goes_with_the_backups_around_it(store, archive, full):
    old, recent = backup_name(1, 12), backup_name(1, 45)
    put_objects(store, old, NOW)
    put_objects(store, recent, NOW + 8 * DAY)
    store.now = NOW + 10 * DAY
    report = run(archive, Retain(1))
    assert [gone.name for gone in report.remnants] == [old]
    assert keys(store, layout.backup_prefix(old)) == []
    assert report.kept_remnants == [recent]
    assert wal(store, 1) == [], "a dead push needs no WAL"


def test_a_push_that_becomes_complete_meanwhile_is_not_taken_for_a_remnant(store, archive, full, monkeypatch):
    name = backup_name(1, 12)
    put_objects(store, name, NOW - DAY)
    real = deleting.plan

    def completing(holdings, policy):
        store.put(layout.sentinel_key(name), [b"{}"])
        return real(holdings, policy)

    monkeypatch.setattr(deleting, "plan", completing)
    report = run(archive, Retain(1))
    assert report.remnants == []
    assert len(keys(store, layout.backup_prefix(name))) == 4


def test_backups_of_the_original_go_by_the_time_they_were_stored(store, archive):
    names = [put_backup(store, 1, 10 * (day + 1), NOW + day * DAY, facts=False) for day in range(3)]
    put_wal(store, archive, 1, range(1, 40), NOW)
    run(archive, Retain(1))
    assert backups(store) == names[2:]
    assert wal(store, 1) == list(range(30, 40))


def test_a_damaged_sentinel_is_told_and_keeps_backup_and_wal(store, archive, full, capsys):
    store.put(layout.sentinel_key(full[1]), [b"not json"])
    run(archive, Retain(1))
    assert set(backups(store)) == {full[1], full[4]}
    assert wal(store, 1) == list(range(20, 50))
    assert "counts as kept" in capsys.readouterr().err


def test_a_history_that_cannot_be_read_is_told_and_keeps_more(store, archive, full, capsys):
    store.put("wal_005/00000002.history.lzo", [b"damaged"])
    run(archive, Retain(1))
    assert wal(store, 1) == list(range(27, 50)), "what lies behind the start is needed by nobody, and old"
    assert wal(store, 2) == [27, 28, 29]
    assert "00000002.history" in capsys.readouterr().err
    whole(store)


def test_what_is_not_ours_stays_and_is_counted(store, archive, full):
    others = [
        "basebackups_005/base_000000010000000000000063/tar_partitions/part_1.tar.lz4",
        "basebackups_005/base_000000010000000000000063_backup_stop_sentinel.json",
        "basebackups_005/notes.txt",
        "wal_005/000000010000000000000001.lz4",
        "wal_005/readme",
        "elsewhere/x",
    ]
    for key in others:
        store.put(key, [b"1"])
    report = run(archive, Retain(1))
    assert set(others) <= set(keys(store))
    assert report.kept_unknown == 5


def test_a_segment_that_was_being_received_goes_and_stays_as_its_segment_would(store, archive, full):
    old, needed = (layout.streaming_key(f"0000000100000000000000{number:02X}", ".lzo") for number in (5, 40))
    for key in (old, needed):
        store.put(key, [b"1"])
    run(archive, Retain(1))
    assert old not in keys(store)
    assert needed in keys(store)


def test_the_wal_of_another_program_s_backup_stays(store, archive, full):
    store.put("basebackups_005/base_00000001000000000000000F_backup_stop_sentinel.json", [b"{}"])
    run(archive, Retain(1))
    assert wal(store, 1) == list(range(15, 50))


def test_a_prefix_of_several_clusters_is_judged_by_time(store, archive, full):
    store.put(layout.IDENTITY, [json.dumps({"system_identifiers": ["7", "8"], "wal_suffixes": [".lzo"]}).encode()])
    run(archive, Retain(1))
    assert wal(store, 1) == list(range(27, 50))
    assert wal(store, 2) == list(range(25, 30)), "stored when the backup that stays was made"


def test_nothing_to_do_is_done(store, archive):
    assert run(archive, Retain(3)).total.objects == 0
    put_wal(store, archive, 1, range(3), NOW)
    assert run(archive, Retain(3)).total.objects == 0
    assert wal(store, 1) == [0, 1, 2]


def test_everything_takes_all_of_the_layout_and_nothing_else(store, archive, full):
    foreign = ("basebackups_005/notes.txt", "basebackups_005/base_X/y", "wal_005/readme", "wal_0050/x", "other/wal_005/x")
    for key in (*foreign, layout.CHECKED, layout.IDENTITY, layout.probe_key("x")):
        content = json.dumps({"system_identifiers": ["7"], "wal_suffixes": [".lzo"]}).encode()
        store.put(key, [content])
    store.changes.clear()
    hand = Deletion(store, [].append)
    report = deleting.delete_everything(archive, hand, NOW, DAY)
    hand.finish()
    assert keys(store) == ["other/wal_005/x", "wal_0050/x"]
    assert report.kept_unknown == 2
    assert store.changes[-1] == layout.IDENTITY
    assert report.total.objects == 5 * 5 + 45 + 5 + 1 + 6


def test_everything_keeps_the_wal_when_a_backup_stays(store, archive, full):
    store.refused = (layout.sentinel_key(full[1]),)
    with pytest.raises(StoreForbidden):
        deleting.delete_everything(archive, Deletion(store, [].append), NOW, DAY)
    assert backups(store) == [full[1]]
    whole(store)


def test_everything_keeps_the_identity_while_anything_is_left(store, archive, full):
    store.put(layout.IDENTITY, [json.dumps({"system_identifiers": ["7"], "wal_suffixes": [".lzo"]}).encode()])
    store.refused = ("wal_005/000000010000000000000021",)
    with pytest.raises(StoreForbidden):
        deleting.delete_everything(archive, Deletion(store, [].append), NOW, DAY)
    assert layout.IDENTITY in keys(store)


def garbage(archive, now=NOW + 10 * DAY, age=DAY):
    hand = Deletion(archive.store, [].append)
    report = deleting.delete_garbage(archive, hand, now, age)
    hand.finish()
    return report


def test_garbage_is_what_has_no_sentinel_and_is_old(store, archive, full):
    before = set(keys(store))
    old, new = backup_name(1, 12), backup_name(1, 44)
    put_objects(store, old, NOW)
    put_objects(store, new, NOW + 10 * DAY - timedelta(hours=1))
    orphan = backup_name(1, 2)
    store.now = NOW
    store.put(layout.manifest_key(orphan, ".lzo"), [b"left by the original's delete"])
    report = garbage(archive)
    assert sorted(gone.name for gone in report.remnants) == [orphan, old]
    assert report.kept_remnants == [new]
    assert set(keys(store)) == before | set(keys(store, layout.backup_prefix(new)))
    assert len(keys(store, layout.backup_prefix(new))) == 4


def test_garbage_finishes_a_deletion_at_once(store, archive):
    name = backup_name(1, 12)
    put_objects(store, name, NOW)
    mark_deleted(store, name)
    garbage(archive, now=NOW)
    assert keys(store) == []


def test_garbage_takes_old_probes(store, archive):
    store.now = NOW
    store.put(layout.probe_key("old"), [b"x"])
    store.now = NOW + 10 * DAY
    store.put(layout.probe_key("new"), [b"x"])
    assert garbage(archive).others.objects == 1
    assert keys(store) == [layout.probe_key("new")]


def test_garbage_takes_what_the_store_hides_when_it_is_old(store, archive):
    old = Leftover("1", "unfinished upload of x", 70, NOW)
    new = Leftover("2", "unfinished upload of y", None, NOW + 10 * DAY)
    store.hidden = [old, new]
    report = garbage(archive)
    assert store.hidden == [new]
    assert (report.leftovers.objects, report.leftovers.size_bytes) == (1, 70)


def test_a_push_that_waits_long_for_wal_is_not_dead():
    assert deleting.dead_after(3600) == timedelta(hours=24)
    assert deleting.dead_after(100 * 3600) > timedelta(hours=100)
    assert deleting.dead_after(1e9) > timedelta(days=3000)


@pytest.mark.parametrize("text", ["", "latest", "base_", "00000001", "000000010000000000000007.partial", "00000002.history", "7", "../x"])
def test_what_is_no_position_is_refused(archive, full, text):
    with pytest.raises(UsageError, match="neither"):
        deleting.position(archive, text)


def test_a_position_is_a_backup_s_name_its_sentinel_s_latest_or_a_segment(archive, full):
    sentinel = layout.sentinel_key(full[1])
    for text in (full[1], sentinel, sentinel.rpartition("/")[2]):
        assert deleting.position(archive, text) == Before(full[1])
    assert deleting.position(archive, "LATEST") == Before(full[4])
    assert deleting.position(archive, "00000001000000000000007F") == BeforeSegment("00000001000000000000007F")


def test_an_unknown_backup_is_refused_and_so_is_one_that_cannot_be_read(store, archive, full):
    with pytest.raises(BackupNotFound):
        deleting.position(archive, backup_name(1, 99))
    with pytest.raises(BackupNotFound, match="any more"):
        run(archive, Before(backup_name(1, 99)))
    store.put(layout.sentinel_key(full[1]), [b"?"])
    with pytest.raises(DamageError):
        deleting.position(archive, full[1])


def test_a_deletion_at_work_is_not_disturbed_by_a_push_of_the_same_name(store):
    name = backup_name(1, 12)
    put_objects(store, name, datetime.now(UTC))
    mark_deleted(store, name)
    assert is_marked_deleted(store, name)
    with pytest.raises(LockHeld):
        Claim.take(store, name, "v", "/data")


def test_a_mark_is_written_once_and_leaves_what_the_claim_said(store):
    name = backup_name(1, 12)
    store.put(layout.version_key(name), [b"PostgreSQL 15" + b" " * 5000])
    mark_deleted(store, name)
    once = b"".join(store.get(layout.version_key(name)))
    assert b"PostgreSQL 15" in once
    mark_deleted(store, name)
    assert b"".join(store.get(layout.version_key(name))) == once
