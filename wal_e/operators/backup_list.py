"""``backup-list``: which backups there are, oldest first."""

from __future__ import annotations

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.errors import BackupNotFound
from wal_e.log import Logger

LOG = Logger(__name__)


def listed(archive: Archive, query: str | None) -> list[Backup]:
    """The backups that a query selects: all, ``LATEST``, or one name; a well-formed unknown name selects none.

    Raises: BackupNotFound for a query that is neither; what the store raises.
    """
    if query is not None and query != "LATEST" and layout.parse_backup_name(query) is None:
        raise BackupNotFound(
            f"{query!r} is neither LATEST nor the name of a backup",
            "A name looks like base_000000010000000000000007_00000040.",
            "Leave it out to see all backups.",
        )
    backups = Catalog(archive.store).backups()
    if query is not None:
        backups = backups[-1:] if query == "LATEST" else [backup for backup in backups if backup.name == query]
    for backup in backups:
        if backup.damage is not None:
            LOG.warning(backup.damage.message, backup.damage.detail, backup.damage.hint, action="backup-list")
    return backups
