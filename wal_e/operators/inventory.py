"""What a prefix holds, as far as a deletion must know: backups, remnants of backups, histories of timelines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import datetime, timedelta
from tempfile import TemporaryFile
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.identity import read_identity
from wal_e.archive.retention import Held, Holdings, Remnant, Start
from wal_e.blobstore.base import Blob, BlobStore
from wal_e.errors import BlobNotFound, CodecFailed, ConfigurationError, DamageError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.operators.backup_claim import is_marked_deleted
from wal_e.pipeline import pool
from wal_e.postgres.wal import Switch, parse_history, wal_kind

LOG = Logger(__name__)

READ_LANES = 8


class Objects(NamedTuple):
    """The objects below one backup's name: how many, bytes in all, and when the first and the last were stored."""

    number: int
    size_bytes: int
    oldest: datetime
    newest: datetime

    def with_blob(self, blob: Blob) -> Objects:
        """Count one more."""
        return Objects(self.number + 1, self.size_bytes + blob.size, min(self.oldest, blob.modified), max(self.newest, blob.modified))


class Inventory(NamedTuple):
    """Complete backups, oldest first; objects by backup name; remnants; backups of other programs; number of other keys beside them."""

    backups: list[Backup]
    objects: dict[str, Objects]
    remnants: list[Remnant]
    foreign: list[Start]
    unknown: int


def take_inventory(store: BlobStore, now: datetime, age: timedelta) -> Inventory:
    """Look at all base backups; what was added to within ``age`` may still be written.

    A backup that becomes complete while this looks is complete.
    """
    objects: dict[str, Objects] = {}
    foreign: dict[str, Start] = {}
    unknown = 0
    for blob in store.list(layout.BACKUPS):
        if name := layout.parse_object_key(blob.key):
            objects[name] = objects[name].with_blob(blob) if name in objects else Objects(1, blob.size, blob.modified, blob.modified)
        elif not layout.parse_sentinel_key(blob.key):
            unknown += 1
            if segment := layout.parse_foreign_start(blob.key):
                foreign[segment] = Start(segment, min(foreign[segment].since or blob.modified, blob.modified) if segment in foreign else blob.modified)
    backups = Catalog(store).backups()
    for backup in backups:
        if backup.damage is not None:
            LOG.warning(
                backup.damage.message,
                f"{backup.damage.detail} The backup counts as kept, and so does the WAL from its start on.",
                backup.damage.hint,
                action="delete",
            )
    incomplete = {name: found for name, found in objects.items() if name not in {backup.name for backup in backups}}
    remnants = [_remnant(store, name, found, now - age) for name, found in incomplete.items()]
    return Inventory(backups, objects, remnants, list(foreign.values()), unknown)


def holdings_of(archive: Archive, inventory: Inventory) -> Holdings:
    """What retention decides by: the inventory, and whose WAL is there, of which timelines."""
    identity = read_identity(archive.store)
    return Holdings(
        [_held(backup, inventory.objects.get(backup.name)) for backup in inventory.backups],
        inventory.remnants,
        inventory.foreign,
        dict(_histories(archive)),
        frozenset(identity.system_identifiers if identity else ()),
    )


def wal_files(archive: Archive) -> Iterator[tuple[str | None, Blob]]:
    """Yield all that is stored as WAL in order of key, with its name where it has one."""
    suffixes = archive.wal_suffixes()
    for blob in archive.store.list(layout.WAL):
        yield layout.parse_wal_key(blob.key, suffixes), blob


def _remnant(store: BlobStore, name: str, objects: Objects, live_since: datetime) -> Remnant:
    parsed = layout.parse_backup_name(name)
    assert parsed is not None
    state = "deleted" if is_marked_deleted(store, name) else "alive" if objects.newest >= live_since else "dead"
    return Remnant(name, parsed.segment, objects.oldest, objects.newest, state)


def _held(backup: Backup, objects: Objects | None) -> Held:
    facts = backup.sentinel.facts if backup.sentinel else None
    started = facts.started if facts else objects.oldest if objects else backup.modified
    return Held(
        backup.name,
        backup.parsed_name.segment,
        min(started, backup.finished),
        backup.finished,
        facts.system_identifier if facts else None,
        facts.segment_size if facts else None,
        backup.sentinel is not None,
    )


def _histories(archive: Archive) -> Iterator[tuple[int, tuple[Switch, ...]]]:
    found = [(name, blob.key) for name, blob in wal_files(archive) if name and wal_kind(name) == "history"]
    for outcome in pool.run(lambda one: _history(archive, *one), found, READ_LANES):
        switches = outcome.value()
        if switches is not None:
            yield int(outcome.item[0][:8], 16), switches


def _history(archive: Archive, name: str, key: str) -> tuple[Switch, ...] | None:
    """Read one history; None when it cannot be understood, or was deleted meanwhile."""
    try:
        with TemporaryFile() as spool:
            archive.pipeline.decode_file(archive.store.get(key), key, spool.fileno())
            spool.seek(0, io.SEEK_SET)
            return parse_history(spool.read(), int(name[:8], 16))
    except BlobNotFound:
        return None
    except (DamageError, WalRefused, CodecFailed, ConfigurationError) as error:
        LOG.warning(f"{key} cannot be read", f"{error} It is not known which WAL belongs to that timeline, so more is kept.", error.hint, action="delete")
        return None
    except OSError as error:
        raise local_error(error, f"making a temporary file to read {name}") from None
