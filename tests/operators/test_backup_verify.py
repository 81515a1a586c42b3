"""backup-verify over a store in memory: everything that may be wrong with a backup, found and named."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import build_wal
import pytest
from build_pages import build_pages
from fix_memory import open_memory

from wal_e.archive import layout
from wal_e.archive.backup_checks import read_checks
from wal_e.archive.catalog import Catalog
from wal_e.archive.identity import claim_identity
from wal_e.archive.layout import BackupName
from wal_e.archive.manifest import ManifestWriter, StoredPartition
from wal_e.archive.sentinel import Facts, PageChecks, Sentinel, render_sentinel
from wal_e.blobstore.memory import MemoryStore
from wal_e.cli.backup_verify import _document, _lines
from wal_e.errors import BackupNotFound, BlobFrozen, BlobNotFound, DamageError, StoreForbidden, StoreUnavailable, WalGap
from wal_e.operators.backup_list import listed
from wal_e.operators.backup_pages import PushedPages
from wal_e.operators.backup_verify import Look, selected, verify
from wal_e.operators.measure import Measured
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.files import FileEntry
from wal_e.postgres.page import DamagedPages, Suspect
from wal_e.postgres.page_checksum import checksums
from wal_e.postgres.wal import Lsn, segment_name
from wal_e.tar.writer import PartitionWriter, Throttle, write_contents

SIZE = build_wal.SEGMENT_SIZE
PAGE = 8192
FAST, FULL = Look("fast", 2), Look("full", 2)
NOW = datetime(2026, 3, 9, tzinfo=UTC)
FIRST, LAST = 4, 5  # segments


def page(block: int, fill: bytes = b"x") -> bytes:
    data = bytearray(fill * PAGE)
    data[:8] = bytes(8)
    data[8:10] = int(checksums(bytes(data), PAGE, block)[0]).to_bytes(2, "little")
    return bytes(data)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Store(MemoryStore):
    """A memory store in which some keys fail."""

    def __init__(self):
        super().__init__()
        self.failing = {}
        self.reads = []

    def get(self, key, *, start=0, length=None):
        self.reads.append(key)
        if key in self.failing:
            raise self.failing[key]
        return super().get(key, start=start, length=length)

    def put(self, key, chunks):
        if ("put", key) in self.failing:
            raise self.failing["put", key]
        return super().put(key, chunks)

    def flip(self, key, at=None):
        data = b"".join(super().get(key))
        super().put(key, [flipped(data, len(data) // 2 if at is None else at)])


class Made:
    """Backups of a small cluster whose relation has these pages, with all that belongs to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store()
        self.archive = open_memory(self.store)
        claim_identity(self.store, build_wal.SYSTEM_IDENTIFIER, ".lzo")
        for number in (FIRST, LAST):
            name = segment_name(1, number * SIZE, SIZE)
            self.store.put(layout.wal_key(name, ".lzo"), self.archive.pipeline.encode(lambda stream, name=name: stream.write(build_pages(name))))
        self.files = {"PG_VERSION": b"15\n", "base/5/16404": b"".join(map(page, range(5))), "base/5/16405": page(0, b"y")}

    def push(self, offset: int = 40, checksums: int = 1, online: bool = True, **facts) -> str:
        """Store a backup of two partitions and the last one; return its name."""
        name = str(BackupName(segment_name(1, FIRST * SIZE, SIZE), offset))
        manifest = ManifestWriter(name, 15)
        groups = [["PG_VERSION", "base/5/16404"], ["base/5/16405"]]
        stored = [self._partition(name, manifest, number, paths) for number, paths in enumerate(groups)]
        control = build_wal.build_control(checksums=checksums)
        stored.append(self._store(name, manifest, 2, lambda stream: write_contents(stream, [(self._entry("global/pg_control", control), control)])))
        digest = manifest.finish()
        key = layout.manifest_key(name, ".lzo")
        self.store.put(key, self.archive.pipeline.encode(manifest.write))
        known = Facts(
            started=NOW, finished=NOW.replace(second=offset), start_lsn=Lsn(FIRST * SIZE + offset), stop_lsn=Lsn(LAST * SIZE + 400), timeline=1,
            system_identifier=build_wal.SYSTEM_IDENTIFIER, major=15, segment_size=SIZE, partitions=3, stored_bytes=sum(one.size for one in stored),
            manifest_key=key, manifest_sha256=digest, online=online, wal_e_version="2.0",
        )._replace(**facts)  # fmt: skip
        self.store.put(layout.sentinel_key(name), [render_sentinel(Sentinel(segment_name(1, LAST * SIZE, SIZE), 400, manifest.content_bytes, "/x", (), known))])
        manifest.close()
        return name

    def _entry(self, path: str, content: bytes) -> FileEntry:
        return FileEntry(path, "file", len(content), 0o600, 1_700_000_000, os.getuid(), os.getgid())

    def _partition(self, name, manifest, number, paths):
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_bytes(self.files[path])
        writer = PartitionWriter(
            str(self.root), [self._entry(path, self.files[path]) for path in paths], Throttle(0, lambda _: None, lambda: 0.0), lambda _: None
        )

        def write(stream):
            writer.write(stream)
            return writer.members

        return self._store(name, manifest, number, write)

    def _store(self, name, manifest, number, write):
        members = []
        key = layout.partition_key(name, number, ".lzo")
        measured = Measured(self.archive.pipeline.encode(lambda stream: members.extend(write(stream))))
        self.store.put(key, measured)
        partition = StoredPartition(number, key, measured.size, measured.sha256, len(members))
        manifest.add(partition, members)
        return partition

    def verify(self, look=FULL, query="LATEST"):
        (backup,) = selected(self.archive, query)
        return verify(self.archive, backup, look)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def part(name, number):
    return layout.partition_key(name, number, ".lzo")


@pytest.mark.parametrize("look", [FAST, FULL])
def test_a_whole_backup_is_good_and_that_is_remembered(made, look):
    name = made.push()
    verdict = made.verify(look)
    assert (verdict.sentences, list(verdict.problems()), verdict.backup) == ([], [], name)
    assert verdict.pages == (6 if look == FULL else None)
    check = read_checks(made.store, name)[look.way]
    assert (check.ok, check.problems, check.named, check.pages, check.checked_bytes) == (True, 0, (), verdict.pages or 0, verdict.checked_bytes)
    assert f"{name}: good, " in _lines(verdict)


def test_the_fast_way_reads_no_partition_and_no_wal_and_the_full_way_all(made):
    name = made.push()
    partitions = {part(name, number) for number in range(3)}
    wal = {layout.wal_key(segment_name(1, number * SIZE, SIZE), ".lzo") for number in (FIRST, LAST)}
    made.verify(FAST)
    assert not set(made.store.reads) & (partitions | wal)
    made.verify(FULL)
    assert partitions | wal <= set(made.store.reads)
    assert made.store.reads.count(part(name, 2)) == 1


def test_a_flipped_byte_anywhere_in_any_object_of_a_backup_is_found_and_its_key_named(made):
    name = made.push()
    keys = [part(name, 0), part(name, 1), part(name, 2), layout.manifest_key(name, ".lzo"), layout.sentinel_key(name)]
    keys += [layout.wal_key(segment_name(1, FIRST * SIZE, SIZE), ".lzo")]
    for key in keys:
        whole = b"".join(MemoryStore.get(made.store, key))
        for at in (0, len(whole) // 3, len(whole) - 1):
            made.store.put(key, [flipped(whole, at)])
            verdict = made.verify()
            assert key in {finding.key for finding in verdict.damaged}, (key, at)
            assert key in next(verdict.problems()).detail
        made.store.put(key, [whole])
    assert made.verify().sentences == []


def test_all_damage_is_told_not_only_the_first(made):
    name = made.push()
    made.store.flip(part(name, 0))
    made.store.flip(part(name, 1))
    made.store.delete([part(name, 2)])
    verdict = made.verify()
    assert sorted(finding.key for finding in verdict.damaged) == [part(name, number) for number in range(3)]
    (problem,) = verdict.problems()
    assert isinstance(problem, DamageError)
    assert all(part(name, number) in problem.detail for number in range(3))
    check = read_checks(made.store, name)["full"]
    assert (check.ok, check.problems, len(check.named)) == (False, 3, 3)
    assert _lines(verdict).startswith(f"{name}: DAMAGED\n    {part(name, 2)} is missing")


def test_the_fast_way_finds_what_is_absent_or_has_another_size(made):
    name = made.push()
    made.store.delete([part(name, 1)])
    made.store.put(part(name, 0), [b"short"])
    made.store.flip(part(name, 2))
    found = {finding.key: finding.reason for finding in made.verify(FAST).damaged}
    assert set(found) == {part(name, 0), part(name, 1)}
    assert "It has 5 bytes in the store" in found[part(name, 0)]
    assert "is missing" in found[part(name, 1)]


def test_the_fast_result_does_not_hide_the_full_one(made):
    name = made.push()
    made.store.flip(part(name, 1))
    made.verify(FULL)
    made.verify(FAST)
    checks = read_checks(made.store, name)
    assert (checks["full"].ok, checks["fast"].ok) == (False, True)


def test_without_its_manifest_what_the_store_lists_is_still_read(made):
    name = made.push()
    made.store.delete([layout.manifest_key(name, ".lzo")])
    made.store.flip(part(name, 1))
    found = [finding.key for finding in made.verify().damaged]
    assert found == [layout.manifest_key(name, ".lzo"), part(name, 1)]


def test_a_damaged_page_is_named_by_relation_and_block(made):
    pages = [page(block) for block in range(5)]
    made.files["base/5/16404"] = b"".join([pages[0], flipped(pages[1], 5000), flipped(pages[2], 0), pages[3], flipped(pages[4], 8191)])
    made.push(online=False)
    verdict = made.verify()
    assert verdict.damaged_pages == (DamagedPages("base/5/16404", ((1, 2), (4, 4))),)
    assert verdict.damaged == []
    (problem,) = verdict.problems()
    assert "base/5/16404, blocks 1 to 2, 4: wrong checksum" in problem.detail
    assert _document(verdict)["damaged_pages"] == [{"relation": "base/5/16404", "blocks": ((1, 2), (4, 4))}]


def test_a_cluster_without_checksums_has_no_pages_to_look_at(made):
    made.files["base/5/16404"] = b"\xee" * PAGE
    made.push(checksums=0, online=False)
    assert (made.verify().sentences, made.verify().pages) == ([], None)


def test_pages_that_were_damaged_when_they_were_pushed_are_told_by_the_fast_way_too(made):
    damaged = DamagedPages("base/5/16404", ((3, 3),))
    made.push(page_checksums=PageChecks(5, (damaged,)))
    assert made.verify(FAST).damaged_pages == (damaged,)


def test_wal_that_the_backup_needs_is_missed(made):
    name = made.push()
    lost = segment_name(1, LAST * SIZE, SIZE)
    made.store.delete([layout.wal_key(lost, ".lzo")])
    for look in (FAST, FULL):
        verdict = made.verify(look)
        assert (verdict.missing_wal, verdict.damaged) == (lost, [])
        (problem,) = verdict.problems()
        assert isinstance(problem, WalGap)
        assert name in problem.detail
        assert lost in problem.message


def test_wal_that_goes_away_while_it_is_verified_is_missed_too(made):
    made.push()
    key = layout.wal_key(segment_name(1, LAST * SIZE, SIZE), ".lzo")
    made.store.failing[key] = BlobNotFound(f"{key} is not there")
    assert [(finding.key, finding.reason) for finding in made.verify().damaged] == [(key, f"{key} is missing.")]


def test_a_backup_of_a_stopped_cluster_needs_no_wal(made):
    made.push(online=False)
    made.store.delete([blob.key for blob in made.store.list(layout.WAL)])
    assert made.verify().sentences == []


def test_a_damaged_sentinel_is_damage_and_does_not_stand_in_the_way_of_others(made):
    first, second = made.push(), made.push(offset=48)
    made.store.flip(layout.sentinel_key(second))
    verdicts = [verify(made.archive, backup, FAST) for backup in selected(made.archive, None)]
    assert {verdict.backup: bool(verdict.sentences) for verdict in verdicts} == {first: False, second: True}
    assert [finding.key for verdict in verdicts for finding in verdict.damaged] == [layout.sentinel_key(second)]


def test_a_backup_of_the_original_is_read_as_far_as_that_goes(made, capsys):
    name = made.push()
    made.store.put(layout.sentinel_key(name), [json.dumps(
        {"wal_segment_backup_stop": segment_name(1, LAST * SIZE, SIZE), "wal_segment_offset_backup_stop": "00000400", "expanded_size_bytes": 5}
    ).encode()])  # fmt: skip
    made.store.delete([layout.manifest_key(name, ".lzo")])
    verdict = made.verify()
    assert (verdict.sentences, verdict.is_original) == ([], True)
    assert "not verifiable" in _lines(verdict)
    assert "is not verifiable" in capsys.readouterr().err
    made.store.flip(part(name, 1))
    assert [finding.key for finding in made.verify().damaged] == [part(name, 1)]
    made.store.delete([part(name, 1)])
    for look in (FAST, FULL):
        assert "lacks partitions" in made.verify(look).damaged[0].reason


def test_what_is_frozen_is_no_damage_and_may_succeed_later(made):
    name = made.push()
    made.store.failing[part(name, 1)] = BlobFrozen("it is in an archive tier")
    verdict = made.verify()
    assert verdict.damaged == []
    (problem,) = verdict.problems()
    assert (type(problem), problem.status) == (BlobFrozen, 1)
    assert part(name, 1) in problem.detail
    assert not read_checks(made.store, name)["full"].ok


def test_a_store_that_is_away_gives_no_verdict_and_none_is_remembered(made):
    name = made.push()
    made.store.failing[part(name, 1)] = StoreUnavailable("it is away")
    with pytest.raises(StoreUnavailable):
        made.verify()
    assert read_checks(made.store, name) == {}


def test_a_store_that_may_only_be_read_is_no_failure(made, capsys):
    name = made.push()
    made.store.failing["put", layout.verified_key(name)] = StoreForbidden("no")
    assert made.verify(FAST).sentences == []
    assert "cannot be remembered" in capsys.readouterr().err


def test_a_backup_that_is_deleted_meanwhile_leaves_no_result_behind(made):
    name = made.push()
    (backup,) = selected(made.archive, name)
    made.store.delete([layout.sentinel_key(name)])
    with pytest.raises(BackupNotFound, match="any more"):
        verify(made.archive, backup, FAST)
    assert layout.verified_key(name) not in {blob.key for blob in made.store.list()}


def test_an_empty_prefix_has_nothing_to_verify(made):
    for query in (None, "LATEST", "base_00000001000000000000000F_00000040"):
        with pytest.raises(BackupNotFound):
            selected(made.archive, query)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"\xff", b'{"format": 2}', b'{"format": 1, "fast": 3}', b'{"format": 1, "full": {"time": "never"}}'])
def test_a_remembered_result_that_cannot_be_understood_is_none(made, data, capsys):
    name = made.push()
    made.store.put(layout.verified_key(name), [data])
    assert read_checks(made.store, name) == {}
    assert "verified.json cannot be understood" in capsys.readouterr().err
    made.verify(FAST)
    assert set(read_checks(made.store, name)) == {"fast"}


def test_what_is_remembered_goes_with_the_backup_and_is_no_backup(made):
    name = made.push()
    made.verify(FAST)
    assert layout.parse_object_key(layout.verified_key(name)) == name
    assert [backup.name for backup in Catalog(made.store).backups()] == [backup.name for backup in listed(made.archive, None)] == [name]


class TestPushedPages:
    """What lanes found is judged at the end."""

    START, STOP = Lsn(1000), Lsn(2000)

    def settled(self, suspects, stop=STOP):
        pages = PushedPages(PAGE, self.START)
        live = pages.watch()
        live.suspects += suspects
        live.damaged.add("base/5/1", 3, 3)
        pages.take(live)
        return pages.settle(stop)

    def test_a_cluster_without_checksums_is_not_looked_at_and_that_is_said(self, data_directory, capsys):
        (data_directory / "PG_VERSION").write_text("15\n")
        control = data_directory / "global" / "pg_control"
        assert PushedPages.of(Cluster.open(str(data_directory)), self.START) is not None
        for state in (0, 2, 3):  # off, and on the way to on or off in later versions
            control.write_bytes(build_wal.build_control(checksums=state))
            assert PushedPages.of(Cluster.open(str(data_directory)), self.START) is None
            assert "this cluster has no page checksums" in capsys.readouterr().err

    def test_a_page_within_the_backup_is_replaced_by_wal(self, capsys):
        found = self.settled([Suspect("base/5/1", 4, self.STOP)])
        assert found == PageChecks(0, (DamagedPages("base/5/1", ((3, 3),)),))
        told = capsys.readouterr().err
        assert "base/5/1, block 3 of the cluster: wrong checksum" in told

    def test_a_page_from_after_the_end_cannot_be(self):
        assert self.settled([Suspect("base/5/1", 4, Lsn(self.STOP + 1))]).damaged == (DamagedPages("base/5/1", ((3, 4),)),)

    def test_in_a_stopped_cluster_nothing_is_replaced(self):
        assert self.settled([Suspect("base/5/1", 4, self.START)], None).damaged == (DamagedPages("base/5/1", ((3, 4),)),)

    def test_the_sentinel_does_not_grow_without_bound(self, capsys):
        pages = PushedPages(PAGE, self.START)
        live = pages.watch()
        for relation in range(150):
            for block in range(0, 300, 2):
                live.damaged.add(f"base/5/{relation:03}", block, block)
        pages.take(live)
        found = pages.settle(self.STOP)
        assert len(found.damaged) == 100
        assert {len(one.blocks) for one in found.damaged} == {100}
