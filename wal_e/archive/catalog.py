"""Which backups a prefix holds. A backup exists when its sentinel does."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.layout import BackupName
from wal_e.archive.sentinel import Sentinel, parse_sentinel
from wal_e.blobstore.base import BlobStore
from wal_e.errors import BackupNotFound, BlobNotFound, DamageError
from wal_e.pipeline import pool

READ_LANES = 8


class Backup(NamedTuple):
    """One complete backup: its name, when its sentinel was stored, and what that says.

    ``sentinel`` is None, and ``damage`` tells why, when the sentinel cannot be understood.
    """

    name: str
    modified: datetime
    sentinel: Sentinel | None
    damage: DamageError | None

    @property
    def finished(self) -> datetime:
        """When the backup was complete: as its sentinel says, else when that was stored."""
        facts = self.sentinel.facts if self.sentinel else None
        return facts.finished if facts else self.modified

    @property
    def parsed_name(self) -> BackupName:
        """Start segment and offset."""
        parsed = layout.parse_backup_name(self.name)
        assert parsed is not None
        return parsed

    def readable(self) -> Sentinel:
        """Return the sentinel, or raise why there is none to go by."""
        if self.sentinel is None:
            assert self.damage is not None
            raise self.damage
        return self.sentinel


class Catalog:
    """The backups of one prefix."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    def backups(self) -> list[Backup]:
        """All complete backups, oldest first by the time they were finished."""
        found = [(name, blob.modified) for blob in self._store.list(layout.BACKUPS) if (name := layout.parse_sentinel_key(blob.key))]
        read = [outcome.value() for outcome in pool.run(lambda one: self._read(*one), found, READ_LANES)]
        return sorted((backup for backup in read if backup is not None), key=lambda backup: (backup.finished, backup.name))

    def find(self, query: str) -> Backup:
        """Return the backup of that name, or the newest for ``LATEST``.

        Raises: BackupNotFound, also for a name that is none.
        """
        if query == "LATEST":
            backups = self.backups()
            if not backups:
                raise BackupNotFound(
                    "there is no backup yet", f"{self._store.url} holds no complete backup.", "Make one with wal-e backup-push, or check the prefix."
                )
            return backups[-1]
        if layout.parse_backup_name(query) is None:
            raise BackupNotFound(
                f"{query!r} is not the name of a backup",
                "A name looks like base_000000010000000000000007_00000040.",
                "Use LATEST, or a name from wal-e backup-list.",
            )
        try:
            blob = self._store.stat(layout.sentinel_key(query))
        except BlobNotFound:
            blob = None
        backup = self._read(query, blob.modified) if blob else None
        if backup is None:
            raise BackupNotFound(f"there is no backup {query}", f"{self._store.url} holds no complete backup of that name.", "See wal-e backup-list.")
        return backup

    def _read(self, name: str, modified: datetime) -> Backup | None:
        """Read one sentinel; None when it was deleted meanwhile."""
        try:
            return Backup(name, modified, parse_sentinel(b"".join(self._store.get(layout.sentinel_key(name))), name), None)
        except BlobNotFound:
            return None
        except DamageError as damage:
            return Backup(name, modified, None, damage)
