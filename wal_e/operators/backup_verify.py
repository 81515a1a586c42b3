"""``backup-verify``: would this backup restore? What is stored of it, compared with what was stored.

Fast: sentinel and manifest are whole, one listing has every partition in its size, the WAL from start to stop
is there. Full: that, and every byte is fetched, decoded and compared, pages with their checksums, and that WAL is read.
Nothing is written to disk. All damage is told, and the result is remembered beside the backup.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.backup_checks import MAX_PROBLEMS, BackupCheck, write_check
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.manifest import Manifest
from wal_e.archive.sentinel import Facts, Sentinel
from wal_e.errors import BackupNotFound, BlobFrozen, DamageError, StoreForbidden, WaleError, WalGap
from wal_e.log import Logger
from wal_e.operators.backup_claim import is_complete
from wal_e.operators.backup_fetch import listed_parts, read_manifest
from wal_e.operators.backup_reading import Findings, look_at_configuration, read_partitions
from wal_e.operators.backup_wal import WalOfBackup, check_segment_content, find_wal, without_those_in_wal
from wal_e.operators.wal_content import Finding
from wal_e.operators.wal_verify import MAX_NAMED
from wal_e.postgres.page import DamagedPages
from wal_e.progress import shown_bytes, shown_seconds

LOG = Logger(__name__)


class Look(NamedTuple):
    """How to look: "fast" or "full", and in so many lanes."""

    way: str
    lanes: int


class Verdict(NamedTuple):
    """What was found out about one backup.

    ``is_original``: made by the original WAL-E, which left nothing to compare with. ``checked_bytes`` came from the store; ``pages`` is
    how many were looked at, None where none were. ``damaged`` and ``unreadable`` are by key, ``damaged_pages`` by relation;
    ``missing_wal`` is the first segment that is not there.
    """

    backup: str
    way: str
    finished: datetime
    is_original: bool
    checked_bytes: int
    seconds: float
    pages: int | None
    damaged: list[Finding]
    unreadable: list[Finding]
    damaged_pages: tuple[DamagedPages, ...]
    missing_wal: str | None

    @property
    def sentences(self) -> list[str]:
        """All that is wrong, one sentence each."""
        pages = [f"{damaged}: wrong checksum" for damaged in self.damaged_pages]
        wal = [f"{self.missing_wal} is not in the store, and the backup cannot be used without it"] if self.missing_wal else []
        return [*map(_sentence, self.damaged), *pages, *wal, *map(_sentence, self.unreadable)]

    def problems(self) -> Iterator[WaleError]:
        """The same as errors, the worst first."""
        if self.damaged or self.damaged_pages:
            named = "; ".join(self.sentences[:MAX_NAMED]) + ("; ..." if len(self.sentences) > MAX_NAMED else "")
            hint = "Push a new backup, and keep older ones until that is verified; another copy of the store may have the object."
            if not self.damaged:
                hint = 'Every later backup has these pages, too. An older one and its WAL may bring them back: see "A damaged page" in docs/recovery.rst.'
            yield DamageError(f"{self.backup} is damaged", named, hint)
        elif self.missing_wal:
            hint = "If the server still has it, wal-e wal-push --missing PGDATA puts it in. Else push a new backup."
            yield WalGap(f"{self.missing_wal} is not in the store", f"The backup {self.backup} cannot be used without it.", hint)
        if self.unreadable:
            yield BlobFrozen(f"parts of {self.backup} could not be read", "; ".join(f"{key}: {reason}" for key, reason in self.unreadable[:MAX_NAMED]))


def selected(archive: Archive, query: str | None) -> list[Backup]:
    """The backup of that name, or the newest for ``LATEST``; all of them, oldest first, for None.

    Raises: BackupNotFound; what the store raises.
    """
    catalog = Catalog(archive.store)
    if query is not None:
        return [catalog.find(query)]
    return catalog.backups() or [catalog.find("LATEST")]


def verify(archive: Archive, backup: Backup, look: Look) -> Verdict:
    """Look at one backup and remember what came of it.

    Raises: ConfigurationError, CodecFailed; StoreUnavailable and its like, when there is no verdict.
    """
    LOG.info(f"verifying {backup.name}", f"{look.way}.", action="backup-verify", state="begin")
    started, received = time.monotonic(), archive.store.received_bytes
    found = Findings()
    missing_wal, pages = _look(archive, backup, look, found)
    if not is_complete(archive.store, backup.name):
        raise BackupNotFound(f"there is no backup {backup.name} any more", "It was deleted while it was verified.", "See wal-e backup-list.")
    is_original = backup.sentinel is not None and backup.sentinel.facts is None
    read_bytes, seconds = archive.store.received_bytes - received, time.monotonic() - started
    verdict = Verdict(
        backup.name, look.way, datetime.now(UTC), is_original, read_bytes, seconds, found.pages, found.damaged, found.unreadable, pages, missing_wal
    )
    _remember(archive, verdict)
    outcome = "is looked through, and not whole" if verdict.sentences else "is verified"
    LOG.info(f"{backup.name} {outcome}", f"{shown_bytes(read_bytes)} read in {shown_seconds(seconds)}.", action="backup-verify", state="complete")
    return verdict


def _sentence(finding: Finding) -> str:
    return finding.reason if finding.reason.startswith(finding.key) else f"{finding.key}: {finding.reason}"


def _look(archive: Archive, backup: Backup, look: Look, found: Findings) -> tuple[str | None, tuple[DamagedPages, ...]]:
    """Look at all parts of a backup; return the first missing segment, and the damaged pages."""
    sentinel = backup.sentinel
    if sentinel is None:
        found.note(layout.sentinel_key(backup.name), backup.damage)
        return None, ()
    facts = sentinel.facts
    if facts is None:
        _look_at_original(archive, backup, sentinel, look, found)
        return None, ()
    if facts.configuration:
        look_at_configuration(archive, facts.configuration, look.way, found)
    manifest = found.attempt(facts.manifest_key, lambda: read_manifest(archive, backup.name, sentinel))
    try:
        wal = find_wal(archive, backup, facts)
        if look.way == "fast":
            _compare_listing(archive, backup.name, manifest, found)
            return wal.missing, facts.page_checksums.damaged if facts.page_checksums else ()
        read_partitions(archive, backup.name, manifest, found, look.lanes, sentinel.expanded_bytes)
        return wal.missing, _look_at_wal(archive, wal, facts, found)
    finally:
        if manifest:
            manifest.close()


def _look_at_original(archive: Archive, backup: Backup, sentinel: Sentinel, look: Look, found: Findings) -> None:
    """Look at a backup of the original WAL-E: numbers of partitions, codec and tar."""
    LOG.warning(
        f"{backup.name} is not verifiable",
        "It was made by the original WAL-E, which stored no hashes; codec, tar and numbering are checked.",
        action="backup-verify",
    )
    if look.way == "fast":
        found.attempt(layout.partitions_prefix(backup.name), lambda: list(listed_parts(archive, backup.name)))
    else:
        read_partitions(archive, backup.name, None, found, look.lanes, sentinel.expanded_bytes)


def _compare_listing(archive: Archive, backup: str, manifest: Manifest | None, found: Findings) -> None:
    """Compare the partitions that the store lists with those of the manifest."""
    if manifest is None:
        return
    held = {blob.key: blob.size for blob in archive.store.list(layout.partitions_prefix(backup))}
    for partition, _ in manifest.partitions():
        size = held.get(partition.key)
        if size is None:
            found.damage(partition.key, f"{partition.key} is missing.")
        elif size != partition.size:
            found.damage(partition.key, f"It has {size} bytes in the store; the manifest says {partition.size}.")


def _look_at_wal(archive: Archive, wal: WalOfBackup, facts: Facts, found: Findings) -> tuple[DamagedPages, ...]:
    """Read the WAL of a backup; return the pages with a wrong checksum that it does not replace."""
    before = len(found.damaged) + len(found.unreadable)
    for name, key in wal.keys.items():
        found.attempt(key, partial(check_segment_content, archive, name, key, facts))
    is_whole = not wal.missing and len(found.damaged) + len(found.unreadable) == before
    pages = found.wrong.damaged()
    if not pages or not wal.keys or not is_whole:
        return pages
    left = found.attempt(layout.WAL, lambda: without_those_in_wal(archive, wal, facts, pages))
    return pages if left is None else left


def _remember(archive: Archive, verdict: Verdict) -> None:
    """Write the result beside the backup; a store that may only be read stays as it is."""
    sentences = verdict.sentences
    check = BackupCheck(verdict.finished, not sentences, verdict.checked_bytes, verdict.pages or 0, len(sentences), tuple(sentences[:MAX_PROBLEMS]))
    try:
        write_check(archive.store, verdict.backup, verdict.way, check)
    except StoreForbidden as refused:
        LOG.warning("the result cannot be remembered", str(refused), "backup-list will not show it.", action="backup-verify")
