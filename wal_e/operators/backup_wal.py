"""The WAL without which a backup is worth nothing, from its start to its stop: is it there, is it good, and which blocks does it put right?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from io import RawIOBase
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup
from wal_e.archive.ranges import Ranges
from wal_e.archive.sentinel import Facts
from wal_e.archive.wal_reach import Stretch
from wal_e.errors import BackupNotFound, DamageError, WalRefused
from wal_e.operators.wal_survey import look
from wal_e.postgres.page import DamagedPages, PageRanges
from wal_e.postgres.wal import segments_needed
from wal_e.postgres.wal_blocks import Fork, fork_of, touched_blocks
from wal_e.postgres.wal_pages import Expected, check_stream
from wal_e.postgres.wal_reader import WalReader
from wal_e.retry import once_more, retrying


class WalOfBackup(NamedTuple):
    """The segments that make one backup consistent: keys of those that are stored, by name and in order; and the first that is not, None if all are."""

    keys: Mapping[str, str]
    missing: str | None


def find_wal(archive: Archive, backup: Backup, facts: Facts) -> WalOfBackup:
    """Look for each segment; only where one is missing, look at all timelines, for a newer one may have what the backup's own lacks.

    Raises: what the store raises.
    """
    if not facts.online:
        return WalOfBackup({}, None)
    names = list(segments_needed(facts.timeline, facts.start_lsn, facts.stop_lsn, facts.segment_size))
    keys = archive.wal_keys_of(names)
    if len(keys) == len(names):
        return WalOfBackup(keys, None)
    survey = look(archive)
    reach = next((reach for reach in survey.reaches if reach.need.name == backup.name), None)
    if reach is None:
        raise BackupNotFound(f"there is no backup {backup.name} any more", "It was deleted while it was verified.", "See wal-e backup-list.")
    return WalOfBackup(archive.wal_keys_of(_names(reach.consistent, survey.wal.name)), reach.unusable_without)


def _names(stretches: tuple[Stretch, ...], name: Callable[[int, int], str]) -> Iterator[str]:
    for timeline, first, last in stretches:
        for number in range(first, last + 1):
            yield name(timeline, number)


def check_segment_content(archive: Archive, name: str, key: str, facts: Facts) -> None:
    """Read a stored segment up to the end of the backup, page by page.

    Raises: DamageError naming the key; what the store raises.
    """

    def check(stream: RawIOBase) -> None:
        try:
            check_stream(stream, Expected(name, (facts.system_identifier,), facts.stop_lsn))
        except WalRefused as refused:
            raise _damaged(key, refused) from None

    retrying(lambda: once_more(lambda: archive.pipeline.decode(archive.store.get(key), key, check)), archive.fetch_policy)


def without_those_in_wal(archive: Archive, wal: WalOfBackup, facts: Facts, pages: tuple[DamagedPages, ...]) -> tuple[DamagedPages, ...]:
    """Leave out pages that recovery replaces, since the WAL of the backup refers to them.

    Raises: DamageError when that WAL cannot be followed; what the store raises.
    """
    wanted = {fork_of(damaged.relation): Ranges(damaged.blocks) for damaged in pages}
    replaced = retrying(lambda: _replaced(archive, wal, facts, wanted), archive.fetch_policy)
    left = PageRanges()
    for relation, blocks in pages:
        among = replaced[fork_of(relation)]
        for first, last in blocks:
            for block in range(first, last + 1):
                if block not in among:
                    left.add(relation, block, block)
    return left.damaged()


def _replaced(archive: Archive, wal: WalOfBackup, facts: Facts, wanted: Mapping[Fork, Ranges]) -> dict[Fork, Ranges]:
    """Those of the wanted blocks to which the WAL from start to stop refers."""
    reader = WalReader(highest_rmid=255)
    replaced = {fork: Ranges() for fork in wanted}

    def follow(stream: RawIOBase) -> None:
        for taken in reader.take(stream):
            if facts.start_lsn <= taken.lsn < facts.stop_lsn:
                for fork, block in touched_blocks(taken.data, facts.major):
                    if fork in wanted and block in wanted[fork]:
                        replaced[fork].add(block)
        if reader.stopped and (reader.end or 0) < facts.stop_lsn:
            raise WalRefused("its records cannot be followed", reader.stopped)

    for key in wal.keys.values():
        try:
            archive.pipeline.decode(archive.store.get(key), key, follow)
        except WalRefused as refused:
            raise _damaged(key, refused) from None
    return replaced


def _damaged(key: str, refused: WalRefused) -> DamageError:
    return DamageError(f"{key} is damaged", str(refused), "Look for another copy of this file.")
