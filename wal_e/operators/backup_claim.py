"""The claim on a backup's name: who may write below it, and who may remove what is there.

A name is where a backup starts. Two backups of an idle standby, or two offline ones, start at
the same place, perhaps on two machines at once. So the name is taken by creating
``extended_version.txt`` with a line in it that says by whom; it is looked at again before the
sentinel is written and before anything is removed.
"""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime

from wal_e.archive import layout
from wal_e.blobstore.base import BlobStore
from wal_e.errors import BackupInterrupted, BlobExists, BlobNotFound, LockHeld, WaleError
from wal_e.log import Logger

LOG = Logger(__name__)

LIVE_S = 600.0  # a push that lives writes an object more often than this
MAX_BYTES = 4096

_DELETED = b"being deleted by wal-e on "  # what the claim of a backup whose deletion has begun starts with


class Claim:
    """A name that is ours until the sentinel is written or :meth:`discard` is called."""

    def __init__(self, store: BlobStore, name: str, content: bytes) -> None:
        self._store = store
        self._name = name
        self._content = content

    @classmethod
    def take(cls, store: BlobStore, name: str, version_text: str, data_directory: str) -> Claim | None:
        """Claim a name for a data directory whose lock is held; None when a complete backup has it.

        What a push that ended without a sentinel left is removed first.

        Raises: LockHeld when another push of that name may still be alive; StoreError.
        """
        place = f"{os.uname().nodename}:{data_directory}"
        claim = cls(store, name, f"{version_text}\nclaimed by {place} as {uuid.uuid4()}\n".encode())
        for _ in range(2):
            try:
                store.create(layout.version_key(name), [claim._content])
                return claim
            except BlobExists:
                if is_complete(store, name):
                    return None
                _require_dead(store, name, place)
                LOG.warning(f"removing what an unfinished push of {name} left", action="backup-push")
                _remove(store, name)
            except BaseException:
                claim.discard()  # the key may be there all the same: a signal came, or the answer was lost
                raise
        raise _alive(name, "Its claim was taken again this moment.")

    def require(self) -> None:
        """Raise BackupInterrupted when somebody else has taken the name."""
        if _holder(self._store, self._name) != self._content:
            raise BackupInterrupted(
                f"another push took the name {self._name}", "Two backups with the same start were being made at once.", "See wal-e backup-list, and push again."
            )

    def discard(self) -> None:
        """Remove everything below the name, if it is still ours; never fails, and does not take long about it."""
        store = self._store.hasty()
        try:
            if _holder(store, self._name) == self._content and not is_complete(store, self._name):
                _remove(store, self._name)
        except WaleError as error:
            LOG.warning(f"what was stored of {self._name} could not be removed", str(error), "It is no backup and only takes space.", action="backup-push")


def mark_deleted(store: BlobStore, name: str) -> None:
    """Write into the claim that a deletion has begun, so that whoever comes next may finish it."""
    if not is_marked_deleted(store, name):
        store.put(layout.version_key(name), [_DELETED, f"{os.uname().nodename}\n".encode(), _holder(store, name)])


def is_marked_deleted(store: BlobStore, name: str) -> bool:
    """Whether a deletion of this backup has begun."""
    return _holder(store, name).startswith(_DELETED)


def is_complete(store: BlobStore, name: str) -> bool:
    """Whether there is a backup of that name."""
    try:
        store.stat(layout.sentinel_key(name))
    except BlobNotFound:
        return False
    return True


def _holder(store: BlobStore, name: str) -> bytes:
    try:
        return b"".join(store.get(layout.version_key(name), length=MAX_BYTES))
    except BlobNotFound:
        return b""


def _require_dead(store: BlobStore, name: str, place: str) -> None:
    """Accept leftovers of this very directory, whose lock is ours, and those that nobody has added to for a while."""
    if f"claimed by {place} as ".encode() in _holder(store, name):
        return
    newest = max((blob.modified for blob in store.list(layout.backup_prefix(name))), default=None)
    if newest is not None and (age_s := (datetime.now(UTC) - newest).total_seconds()) < LIVE_S:
        raise _alive(name, f"Its newest object is {age_s:.0f} seconds old.")


def _alive(name: str, detail: str) -> LockHeld:
    return LockHeld(
        f"another push of {name} may be at work",
        detail,
        f"If it is not, push again when {LIVE_S / 60:.0f} minutes have passed; what it left is then removed.",
    )


def _remove(store: BlobStore, name: str) -> None:
    """Remove the objects, the claim last."""
    claim = layout.version_key(name)
    store.delete([blob.key for blob in store.list(layout.backup_prefix(name)) if blob.key != claim])
    store.delete([claim])
