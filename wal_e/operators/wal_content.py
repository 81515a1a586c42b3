"""Reading stored WAL to see whether it is good: all that was not read before, in lanes, with what was good remembered.

A segment is decoded, which proves its codec's checksum, and looked through page by page as it streams by; nothing is
written to disk. What was good is remembered in the store every few seconds, so that a run that is killed
does not begin anew. Damage is reported by key, all of it, and is never remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from io import RawIOBase
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.checked_wal import CheckedWal, read_checked, write_checked
from wal_e.archive.layout import is_streaming
from wal_e.blobstore.base import Blob
from wal_e.errors import BlobFrozen, BlobNotFound, DamageError, StoreForbidden, WalRefused
from wal_e.log import Logger
from wal_e.operators.inventory import wal_files
from wal_e.operators.wal_survey import Survey, decoded
from wal_e.pipeline import pool
from wal_e.postgres.label import parse_backup_label
from wal_e.postgres.wal import Lsn, parse_history, wal_kind
from wal_e.postgres.wal_pages import Expected, check_stream
from wal_e.progress import Progress
from wal_e.retry import once_more, retrying

LOG = Logger(__name__)

REMEMBER_EVERY_S = 10.0


class Finding(NamedTuple):
    """A key, and what is wrong with what is stored there."""

    key: str
    reason: str


class Content:
    """What came of a check: files read now and their stored bytes, files known to be good, damage, and what could not be read."""

    def __init__(self) -> None:
        self.checked = 0
        self.checked_bytes = 0
        self.known = 0
        self.damaged: list[Finding] = []
        self.unreadable: list[Finding] = []


def check_content(archive: Archive, survey: Survey, lanes: int, remembered: CheckedWal) -> Content:
    """Read all WAL that is not remembered as good; what was stored after the survey is left to the next run.

    Raises: what the store raises, CodecFailed, ConfigurationError; damage is in the result.
    """
    content, good = Content(), CheckedWal(survey.wal.newest or remembered.as_of)
    total_bytes = 0
    for name, blob in _readable(archive, survey):
        if remembered.covers(name, blob, survey.wal):
            good.add(name, survey.wal)
            content.known += 1
        else:
            total_bytes += blob.size
    pending = (item for item in _readable(archive, survey) if not remembered.covers(*item, survey.wal))
    memory = _Memory(archive, good, survey)
    progress = Progress(total_bytes, time.monotonic)
    check = _Check(archive, survey)

    def tick() -> None:
        memory.save()
        if line := progress.line_due():
            LOG.info(line, action="wal-verify", state="progress")

    for outcome in pool.run(lambda item: check(*item), pending, lanes, pool.Tick(REMEMBER_EVERY_S, tick)):
        _judge(outcome, content, memory)
        progress.add(outcome.item[1].size)
    memory.save()
    content.damaged.sort()
    return content


def remembered_checks(archive: Archive, survey: Survey) -> CheckedWal:
    """What earlier runs found good."""
    return read_checked(archive.store, survey.wal)


def _readable(archive: Archive, survey: Survey) -> Iterator[tuple[str, Blob]]:
    """Yield the finished WAL files that the survey saw, with their names."""
    for name, blob in wal_files(archive):
        if name and not is_streaming(name) and survey.wal.newest and blob.modified <= survey.wal.newest:
            yield name, blob


def _judge(outcome: pool.Outcome[tuple[str, Blob], None], content: Content, memory: _Memory) -> None:
    name, blob = outcome.item
    if isinstance(outcome.error, DamageError):
        content.damaged.append(Finding(blob.key, f"{outcome.error.message}. {outcome.error.detail}".strip()))
    elif isinstance(outcome.error, BlobFrozen):
        content.unreadable.append(Finding(blob.key, str(outcome.error)))
    elif not isinstance(outcome.error, BlobNotFound):  # a file that was deleted meanwhile is neither good nor damaged
        outcome.value()
        memory.note(name)
        content.checked += 1
        content.checked_bytes += blob.size


class _Memory:
    """What is known to be good, and whether the store knows it, too."""

    def __init__(self, archive: Archive, good: CheckedWal, survey: Survey) -> None:
        self._archive = archive
        self._good = good
        self._wal = survey.wal
        self._unsaved = 0

    def note(self, name: str) -> None:
        self._good.add(name, self._wal)
        self._unsaved += 1

    def save(self) -> None:
        """Write to the store what it does not know; one that may only be read stays as it is."""
        if not self._unsaved:
            return
        self._unsaved = 0
        try:
            write_checked(self._archive.store, self._good, self._wal)
        except StoreForbidden as refused:
            LOG.warning("what was checked cannot be remembered", str(refused), "The next check reads all of it again.", action="wal-verify")


class _Check:
    """Reads one file and raises DamageError when it is not what its name says."""

    def __init__(self, archive: Archive, survey: Survey) -> None:
        self._archive = archive
        self._size = survey.wal.segment_size
        self._system_identifiers = survey.identity.system_identifiers if survey.identity else ()
        self._left_at: dict[str, Lsn] = {}
        for history in survey.histories.values():
            for timeline, end in history:
                name = survey.wal.name(timeline, max(end - 1, 0) // self._size)
                self._left_at[name] = min(end, self._left_at.get(name, end))

    def __call__(self, name: str, blob: Blob) -> None:
        look: dict[str | None, Callable[[str, str], None]] = {"history": self._history, "backup": self._backup_history}
        one = look.get(wal_kind(name), self._segment)
        retrying(lambda: once_more(lambda: one(name, blob.key)), self._archive.fetch_policy)

    def _segment(self, name: str, key: str) -> None:
        up_to = Lsn(0) if name.endswith(".partial") else self._left_at.get(name)  # behind its end a partial one has what was there before
        expected = Expected(name, self._system_identifiers, up_to)

        def consume(stream: RawIOBase) -> None:
            try:
                check_stream(stream, expected)
            except WalRefused as refused:
                raise _damaged(key, refused) from None

        self._archive.pipeline.decode(self._archive.store.get(key), key, consume)

    def _history(self, name: str, key: str) -> None:
        try:
            parse_history(decoded(self._archive, key), int(name[:8], 16))
        except WalRefused as refused:
            raise _damaged(key, refused) from None

    def _backup_history(self, name: str, key: str) -> None:
        data = decoded(self._archive, key)
        try:
            label = parse_backup_label(data.decode("utf-8", "replace"))
        except DamageError as damage:
            raise DamageError(f"{key} is not a backup history file", damage.detail, "Backups do not need it.") from None
        if (label.start_segment, label.start % self._size) != (name[:24], int(name[25:33], 16)):
            raise DamageError(f"{key} is the history of another backup", f"It tells of one that started at {label.start}.", "Backups do not need it.")


def _damaged(key: str, refused: WalRefused) -> DamageError:
    return DamageError(f"{key} is damaged", str(refused), "Look for another copy of this file.")
