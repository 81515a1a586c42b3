"""``delete``: old backups and the WAL that nobody needs, everything, or what never became a backup.

A backup goes in this order: a mark in its claim, its sentinel, its objects, the claim itself. So there is no moment
at which a backup is listed whose data is gone, and whoever deletes next finds what a deletion that did not
end has left. WAL goes last, judged by all that stays then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.retention import Before, BeforeSegment, Policy, WalNeed, plan, start_of
from wal_e.blobstore.base import Blob, BlobStore
from wal_e.errors import BackupNotFound, BlobNotFound, UsageError
from wal_e.log import Logger
from wal_e.operators.backup_claim import LIVE_S, is_complete
from wal_e.operators.erasing import Erased, Hand
from wal_e.operators.inventory import holdings_of, take_inventory, wal_files
from wal_e.postgres.wal import wal_kind

LOG = Logger(__name__)

DEAD_AFTER = timedelta(hours=24)  # since its last object; a push that waits for WAL writes none, for WALE_ARCHIVE_TIMEOUT


class Gone(NamedTuple):
    """A backup, or a remnant of one, that went: when it was finished, None for a remnant, and what it was."""

    name: str
    finished: datetime | None
    erased: Erased


class Span(NamedTuple):
    """WAL files of one timeline that went, by the segments they belong to."""

    first: str
    last: str
    erased: Erased

    def plus(self, last: str, erased: Erased) -> Span:
        """Go on to a later file."""
        return Span(self.first, last, self.erased.plus(erased))


class Report:
    """What went, or would go, and what stays."""

    def __init__(self) -> None:
        self.backups: list[Gone] = []
        self.remnants: list[Gone] = []
        self.wal: dict[int, Span] = {}
        self.others = Erased()
        self.leftovers = Erased()
        self.kept: list[str] = []
        self.kept_remnants: list[str] = []
        self.kept_wal = 0
        self.kept_histories = 0
        self.kept_unknown = 0

    @property
    def total(self) -> Erased:
        """All that went."""
        parts = [*(gone.erased for gone in self.backups + self.remnants), *(span.erased for span in self.wal.values()), self.others, self.leftovers]
        return Erased(sum(part.objects for part in parts), sum(part.size_bytes for part in parts))


def dead_after(archive_timeout_s: float) -> timedelta:
    """How long after its last object an unfinished push counts as dead; longer than any wait of its own."""
    return max(DEAD_AFTER, timedelta(seconds=min(archive_timeout_s + LIVE_S, timedelta(days=3650).total_seconds())))


def position(archive: Archive, text: str) -> Before | BeforeSegment:
    """Read what stands after ``before``: a backup's name or its sentinel's, ``LATEST``, or a segment.

    Raises: UsageError for what is none of these; BackupNotFound; DamageError when that backup cannot be read.
    """
    if wal_kind(text) == "segment":
        return BeforeSegment(text)
    name = layout.parse_sentinel_key(layout.BACKUPS + text.removeprefix(layout.BACKUPS)) or text
    if name != "LATEST" and layout.parse_backup_name(name) is None:
        raise UsageError(
            f"{text!r} is neither a backup nor a segment",
            "A backup's name looks like base_000000010000000000000007_00000040, a segment's like 000000010000000000000007.",
            "Use LATEST, or a name from wal-e backup-list.",
        )
    found = Catalog(archive.store).find(name)
    found.readable()
    return Before(found.name)


def delete_backups(archive: Archive, policy: Policy, hand: Hand, now: datetime, age: timedelta) -> Report:
    """Let go what a policy does not keep: backups, remnants older than all that stays, and WAL.

    Raises: BackupNotFound when the backup that a policy names is gone; UsageError; what the store raises.
    """
    report = Report()
    inventory = take_inventory(archive.store, now, age)
    if isinstance(policy, Before) and all(backup.name != policy.backup for backup in inventory.backups):
        raise BackupNotFound(f"there is no backup {policy.backup} any more", "It was deleted a moment ago.", "See wal-e backup-list.")
    holdings = holdings_of(archive, inventory)
    planned = plan(holdings, policy)
    going = {backup.name for backup in planned.going}
    failed = [backup.name for backup in inventory.backups if backup.name in going and not _erase_backup(archive.store, backup, hand, report)]
    for remnant in planned.remnants_going:
        _erase_remnant(archive.store, remnant.name, hand, report)
    starts = (*planned.starts, *(start_of(backup) for backup in planned.going if backup.name in failed))
    report.kept = [backup.name for backup in inventory.backups if backup.name not in going or backup.name in failed]
    report.kept_remnants = [remnant.name for remnant in planned.remnants_kept]
    report.kept_unknown += inventory.unknown
    _erase_wal(archive, _needless(WalNeed(starts, holdings), report), hand, report)
    return report


def delete_garbage(archive: Archive, hand: Hand, now: datetime, age: timedelta) -> Report:
    """Let go what is no part of a backup and was not added to for ``age``: remnants, probes, and what the store keeps out of sight."""
    report = Report()
    inventory = take_inventory(archive.store, now, age)
    report.kept = [backup.name for backup in inventory.backups]
    report.kept_unknown = inventory.unknown
    for remnant in inventory.remnants:
        if remnant.state == "alive":
            report.kept_remnants.append(remnant.name)
        else:
            _erase_remnant(archive.store, remnant.name, hand, report)
    report.others = hand.erase(blob for blob in archive.store.list(layout.PROBES) if blob.modified < now - age)
    for leftover in archive.store.leftovers():
        if leftover.started < now - age:
            report.leftovers = report.leftovers.plus(hand.discard(leftover))
    return report


def delete_everything(archive: Archive, hand: Hand, now: datetime, age: timedelta) -> Report:
    """Let go all of layout 005: backups, whatever else lies beside them, probes, WAL, and last the identity of the prefix."""
    report = Report()
    store = archive.store
    inventory = take_inventory(store, now, age)
    for remnant in inventory.remnants:
        if remnant.state == "alive":
            LOG.warning(f"a push of {remnant.name} may be at work", "It will fail, and may leave objects behind.", action="delete")
    failed = [backup for backup in inventory.backups if not _erase_backup(store, backup, hand, report)]
    if failed:
        hand.finish()  # a backup that stays needs its WAL
    for remnant in inventory.remnants:
        _erase_remnant(store, remnant.name, hand, report)
    for belongs in (_is_beside, _is_within):
        report.others = report.others.plus(hand.erase(blob for blob in store.list(layout.BACKUPS) if _is_foreign(blob) and belongs(blob)))
    report.others = report.others.plus(hand.erase(store.list(layout.PROBES)))
    _erase_wal(archive, lambda _name, _blob: True, hand, report)
    hand.finish()
    for key in layout.OF_THE_PREFIX:
        report.others = report.others.plus(hand.erase([blob for blob in store.list(key) if blob.key == key]))
    ours = (layout.BACKUPS, layout.WAL, layout.PROBES)
    report.kept_unknown = sum(not blob.key.startswith(ours) and blob.key not in layout.OF_THE_PREFIX for blob in store.list())
    return report


def _is_foreign(blob: Blob) -> bool:
    return layout.parse_object_key(blob.key) is None and layout.parse_sentinel_key(blob.key) is None


def _is_beside(blob: Blob) -> bool:
    """Where sentinels are, which go before what they stand for."""
    return "/" not in blob.key.removeprefix(layout.BACKUPS)


def _is_within(blob: Blob) -> bool:
    return not _is_beside(blob)


def _erase_backup(store: BlobStore, backup: Backup, hand: Hand, report: Report) -> bool:
    """Let a backup go, the sentinel first; false when it stays because that failed."""
    if not hand.mark(backup.name):
        return False
    sentinel = hand.erase(_present(store, layout.sentinel_key(backup.name)))
    if sentinel.left:
        return False
    report.backups.append(Gone(backup.name, backup.finished, sentinel.plus(_erase_objects(store, backup.name, hand))))
    return True


def _erase_remnant(store: BlobStore, name: str, hand: Hand, report: Report) -> None:
    if not is_complete(store, name):
        report.remnants.append(Gone(name, None, _erase_objects(store, name, hand)))


def _erase_objects(store: BlobStore, name: str, hand: Hand) -> Erased:
    """Let all objects of a backup go; the claim last, and only if nothing is left beside it."""
    claim = layout.version_key(name)
    erased = hand.erase(blob for blob in store.list(layout.backup_prefix(name)) if blob.key != claim)
    return erased if erased.left else erased.plus(hand.erase(_present(store, claim)))


def _present(store: BlobStore, key: str) -> list[Blob]:
    try:
        return [store.stat(key)]
    except BlobNotFound:
        return []


def _erase_wal(archive: Archive, goes: Callable[[str | None, Blob], bool], hand: Hand, report: Report) -> None:
    """Let WAL go in order of key, one timeline after the other."""
    for timeline, files in groupby(wal_files(archive), key=lambda file: (file[0] or "")[:8]):
        ends: list[str] = []
        erased = hand.erase(_noting(ends, ((name, blob) for name, blob in files if goes(name, blob))))
        if timeline and ends:
            number = int(timeline, 16)
            report.wal[number] = Span(ends[0], ends[-1], erased) if number not in report.wal else report.wal[number].plus(ends[-1], erased)
        else:
            report.others = report.others.plus(erased)


def _noting(ends: list[str], files: Iterable[tuple[str | None, Blob]]) -> Iterator[Blob]:
    """Pass the blobs on; keep the first and the last name."""
    for name, blob in files:
        del ends[1:]
        ends.append(name or "")
        yield blob


def _needless(need: WalNeed, report: Report) -> Callable[[str | None, Blob], bool]:
    """Judge WAL by who needs it, and count what stays. History files are tiny, and never go."""

    def goes(name: str | None, blob: Blob) -> bool:
        if name is None:
            report.kept_unknown += 1
        elif wal_kind(name) == "history":
            report.kept_histories += 1
        elif need.keeps(name, blob.modified):
            report.kept_wal += 1
        else:
            return True
        return False

    return goes
