"""What a restore finds in its target, and what it makes of that: the plan of a delta restore.

Every file is compared with the manifest, in all lanes. The fate of each member is one byte, in
the order of the manifest, which is read again wherever names are needed: the plan for a million
files takes a few dozen megabytes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup
from wal_e.archive.manifest import Manifest, StoredPartition
from wal_e.archive.sentinel import Sentinel
from wal_e.log import Logger
from wal_e.operators.restore_held import followed_links, is_held
from wal_e.operators.restore_local_wal import NO_WAL, LocalWal
from wal_e.operators.restore_selection import Selection
from wal_e.operators.restore_target import Target
from wal_e.pipeline import pool
from wal_e.postgres.backup_manifest import NAME as BACKUP_MANIFEST
from wal_e.progress import Progress, shown_bytes
from wal_e.tar.comparison import DESCRIBED, FETCHED, KEPT, ZEROED, Compared, Copy, Paths, beyond
from wal_e.tar.writer import Member

LOG = Logger(__name__)

LINE_CHECK_S = 5.0
BATCH_BYTES = 64 * 1024 * 1024


class Counts(NamedTuple):
    """What a plan comes to; ``stored_bytes`` of ``partitions`` are to be downloaded, with files of ``content_bytes`` in them."""

    unchanged_files: int
    unchanged_bytes: int
    fetched_files: int
    fetched_bytes: int
    zeroed_files: int
    zeroed_bytes: int
    partitions: int
    stored_bytes: int
    content_bytes: int
    removed: int


class Batch(NamedTuple):
    """A piece of a partition to compare: number of the partition, place of the piece in it, members."""

    partition: int
    place: int
    members: list[Member]


class DeltaPlan:
    """What a restore will do to a target; ``counts`` sums it up. ``links`` are the links in the target that are followed.

    ``wal`` is WAL in the target that is nowhere else.
    """

    def __init__(self, target: Target, backup: Backup, manifest: Manifest, selection: Selection, pool_size: int, wal: LocalWal = NO_WAL) -> None:
        self.target = target
        self.backup = backup
        self.manifest = manifest
        self.pool_size = pool_size
        self.is_held = is_held(target.path)
        self.is_partial = bool(selection.others)
        self.others = selection.others
        self.links = followed_links(target)
        self._progress = Progress(self.sentinel.expanded_bytes, time.monotonic)
        self._wal = wal
        self._copy = Copy(target.path, self.links, selection.is_zeroed, wal.stays, self._progress.add)
        self._known, self._kept = Paths(), Paths()
        for path in wal.stays:
            self._known.add(path)
            self._kept.add(path)
        self._known.add(BACKUP_MANIFEST)  # it is written anew
        self._fates: dict[int, bytes] = {}

    @property
    def sentinel(self) -> Sentinel:
        """The sentinel of the backup."""
        return self.backup.readable()

    def make(self, archive: Archive) -> None:
        """Compare everything, and sum up.

        Raises: LocalFileError; DiskFull when there is no space for what comes.
        """
        pieces: dict[int, list[bytes]] = {}
        work = pool.run(
            lambda batch: archive.waits.offload(lambda: self._copy.compare(batch.members)),
            _batches(self.manifest),
            self.pool_size,
            pool.Tick(LINE_CHECK_S, self._tick),
        )
        for outcome in work:
            self._take(outcome.item, outcome.value(), pieces)
        self._fates = {number: b"".join(found) for number, found in pieces.items()}
        self._find_owner()
        self.counts = self._counts()
        self.target.require_space(self._needs())

    def sentences(self) -> list[str]:
        """Say in a few lines what will be done."""
        counts = self.counts
        lines = [
            f"{counts.unchanged_files} files ({shown_bytes(counts.unchanged_bytes)}) are as in the backup and stay.",
            f"{counts.fetched_files} files ({shown_bytes(counts.fetched_bytes)}) are fetched, "
            f"out of {counts.partitions} partitions ({shown_bytes(counts.stored_bytes)} to download).",
        ]
        if counts.zeroed_files:
            lines.append(f"{counts.zeroed_files} files ({shown_bytes(counts.zeroed_bytes)}) of other databases become zeros: {', '.join(self.others)}.")
        if counts.removed:
            lines.append(f"{counts.removed} files and directories that the backup does not have are removed.")
        if self._wal.names:
            lines.append(self._wal.sentence())
        return lines

    def listing(self) -> Iterator[str]:
        """Yield a line for every file that changes."""
        for _, members, fates in self.partitions():
            for member, fate in zip(members, fates, strict=True):
                if fate in (FETCHED, ZEROED) and member.kind == "file":
                    yield f"{'fetch' if fate == FETCHED else 'zero'} {member.path}"
        for path in self.strays():
            yield f"remove {path}"

    def partitions(self) -> Iterator[tuple[StoredPartition, list[Member], bytes]]:
        """Yield each partition, the largest first, with its members and the fate of each."""
        for partition, members in self.manifest.largest_first():
            yield partition, members, self._fates.get(partition.number, b"")

    def strays(self) -> list[str]:
        """What the target has and the backup does not."""
        return beyond(self.target.path, self.links, self._known) if self.is_held else []

    def in_the_way(self) -> list[str]:
        """What has to go before anything is fetched: strays, and what is not as in the backup."""
        return beyond(self.target.path, self.links, self._kept) if self.is_held else []

    def _tick(self) -> None:
        if line := self._progress.line_due():
            LOG.info(f"comparing {self.target.path}: {line}", action="restore", state="progress")

    def _take(self, batch: Batch, compared: Compared, pieces: dict[int, list[bytes]]) -> None:
        found = pieces.setdefault(batch.partition, [])
        found += [b""] * (batch.place + 1 - len(found))
        found[batch.place] = compared.fates
        self._known.update(compared.known)
        self._kept.update(compared.kept)

    def _find_owner(self) -> None:
        """Fetch the data directory's own entry, where that tells whom the restore is for: no server runs as root."""
        path = self.target.path
        if os.geteuid() != 0 or (self.is_held and os.stat(path).st_uid != 0):
            return
        for partition, members, fates in self.partitions():
            for place, member in enumerate(members):
                if member.path == "":
                    self._fates[partition.number] = fates[:place] + bytes([FETCHED]) + fates[place + 1 :]
                    return

    def _counts(self) -> Counts:
        files, sizes = [0, 0, 0, 0], [0, 0, 0, 0]
        partitions = stored_bytes = content_bytes = 0
        for partition, members, fates in self.partitions():
            for member, fate in zip(members, fates, strict=True):
                if member.kind == "file":
                    files[fate] += 1
                    sizes[fate] += member.size
            if FETCHED in fates:
                partitions += 1
                stored_bytes += partition.size
                content_bytes += sum(member.size for member in members)
        return Counts(
            files[KEPT] + files[DESCRIBED], sizes[KEPT] + sizes[DESCRIBED], files[FETCHED], sizes[FETCHED], files[ZEROED], sizes[ZEROED],
            partitions, stored_bytes, content_bytes, len(self.strays()),
        )  # fmt: skip

    def _needs(self) -> Iterator[tuple[str, int]]:
        """Path and size of what comes, less what is in its place now."""
        for _, members, fates in self.partitions():
            for member, fate in zip(members, fates, strict=True):
                if fate in (FETCHED, ZEROED) and member.kind == "file":
                    yield member.path, (member.size if fate == FETCHED else 0) - self._copy.allocated(member.path)


def _batches(manifest: Manifest) -> Iterator[Batch]:
    for partition, members in manifest.largest_first():
        first = place = size = 0
        for end, member in enumerate(members, 1):
            size += member.size
            if size >= BATCH_BYTES or end == len(members):
                yield Batch(partition.number, place, members[first:end])
                first, place, size = end, place + 1, 0
