"""Looking for something in stored WAL: the last commit, the first one after a moment, a transaction, a restore point.

A segment is decoded and looked through as it streams by; nothing is written to disk. A record belongs to the segment in which it
begins. Commits are nearly in the order of their times: a backend takes the time, and may be held up before it
writes its record, and a clock may be set back. So whoever looks for a moment finds the segment by halving, and
begins to read where all is earlier by ``DISORDER``.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from datetime import datetime, timedelta
from io import RawIOBase
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.recovery_window import Way
from wal_e.errors import BlobNotFound, DamageError, WalRefused
from wal_e.log import Logger
from wal_e.pipeline import pool
from wal_e.postgres.wal import Lsn, segment_start
from wal_e.postgres.wal_reader import WalReader
from wal_e.postgres.wal_records import ENDINGS, RESTORE_POINT, Record
from wal_e.progress import LINE_EVERY_S, Progress
from wal_e.retry import once_more, retrying

LOG = Logger(__name__)

LANES = 4
DISORDER = timedelta(seconds=10)  # by which a commit may stand behind a later one
THE_BEGINNING = Lsn(0)

Matching = Callable[[Record], bool]


class Found(NamedTuple):
    """What a segment has: the first and the last matching record and the latest time of one; then, of all, the latest time and the last whole record."""

    first: Record | None
    last: Record | None
    latest: datetime | None
    written: datetime | None
    begin: Lsn | None
    end: Lsn | None


class Ending(NamedTuple):
    """The end of a way: the last end of a transaction, the latest time of anything there, and where the last whole record begins and ends."""

    commit: Record | None
    written: datetime | None
    begin: Lsn | None
    end: Lsn | None


def ending(archive: Archive, way: Way, segments: int | None = None) -> Ending:
    """Look at the end of a way, and back from there up to the first segment with the end of a transaction, or over so many segments.

    Raises: DamageError naming the key; what the store raises.
    """
    summary = Ending(None, None, None, None)
    positions = range(way.segments - 1, max(way.segments - (segments or way.segments), 0) - 1, -1)
    for some, lanes in ((positions[:1], 1), (positions[1:], LANES)):  # mostly the last one suffices
        with closing(_searched(archive, way, some, lanes, _ends_transaction)) as found:
            for one in found:
                summary = Ending(one.last, summary.written or one.written, summary.begin or one.begin, summary.end or one.end)
                if one.last is not None:
                    return summary
    return summary


def last_commit(archive: Archive, way: Way, segments: int | None = None) -> Record | None:
    """The last end of a transaction, commit or abort; looked for in so many segments, or in all. Raises: as :func:`ending`."""
    return ending(archive, way, segments).commit


def last_record(archive: Archive, way: Way) -> Lsn | None:
    """Where the last whole record begins. Raises: as :func:`ending`."""
    return ending(archive, way, 1).begin


def first_after(archive: Archive, way: Way, moment: datetime, since: Lsn = THE_BEGINNING) -> Record | None:
    """The first end of a transaction, in the order of WAL, that is later than a moment; None when there is none.

    Raises: as :func:`ending`.
    """
    way = way.from_lsn(since)

    def matches(record: Record) -> bool:
        return _ends_transaction(record) and record.lsn >= since and record.time > moment

    return _first(archive, way, range(_begin_of(archive, way, moment - DISORDER), way.segments), matches)


def first_commit(archive: Archive, way: Way, since: Lsn) -> Record | None:
    """The first end of a transaction from a position on, commit or abort. Raises: as :func:`ending`."""
    way = way.from_lsn(since)
    return _first(archive, way, range(way.segments), lambda record: _ends_transaction(record) and record.lsn >= since)


def find_xid(archive: Archive, way: Way, xid: int, since: Lsn = THE_BEGINNING) -> Record | None:
    """The commit or abort of a transaction. Raises: as :func:`ending`."""
    way = way.from_lsn(since)
    return _first(archive, way, range(way.segments), lambda record: record.xid == xid and _ends_transaction(record) and record.lsn >= since)


def find_restore_point(archive: Archive, way: Way, name: str, since: Lsn = THE_BEGINNING) -> Record | None:
    """The first restore point of that name. Raises: as :func:`ending`."""
    way = way.from_lsn(since)
    return _first(archive, way, range(way.segments), lambda record: record.name == name and record.kind == RESTORE_POINT and record.lsn >= since)


def latest_before(archive: Archive, way: Way, lsn: Lsn) -> datetime | None:
    """The latest time at which a transaction ended before a position, by the last segment there in which one did. Raises: as :func:`ending`."""
    way = way.up_to_lsn(lsn)
    positions = range(way.segments - 1, -1, -1)
    with closing(_searched(archive, way, positions, 1, lambda record: _ends_transaction(record) and record.lsn < lsn)) as found:
        return next((one.latest for one in found if one.latest is not None), None)


def _ends_transaction(record: Record) -> bool:
    return record.kind in ENDINGS


def _begin_of(archive: Archive, way: Way, moment: datetime) -> int:
    """The position of the segment before the first one after which all is later than a moment."""
    low, high = 0, way.segments
    while low < high:
        middle = (low + high) // 2
        with closing(_searched(archive, way, range(middle, high), 1, _ends_transaction)) as found:
            first = next((one.first for one in found if one.first is not None), None)
        if first is None or first.time > moment:
            high = middle
        else:
            low = middle + 1
    return max(low - 1, 0)


def _first(archive: Archive, way: Way, positions: range, matches: Matching) -> Record | None:
    with closing(_searched(archive, way, positions, LANES, matches)) as found:
        return next((one.first for one in found if one.first is not None), None)


def _searched(archive: Archive, way: Way, positions: range, lanes: int, matches: Matching) -> Generator[Found, None, None]:
    """Yield what the segments at these positions have, in that order; with more than one lane some are read ahead."""
    progress = Progress(len(positions) * way.segment_size, time.monotonic)

    def tick() -> None:
        if line := progress.line_due():
            LOG.info(f"looking through WAL: {line}", action="wal-search", state="progress")

    if lanes == 1:
        for position in positions:
            yield _found(archive, way, position, matches)
            progress.add(way.segment_size)
            tick()
        return
    ready: dict[int, pool.Outcome[int, Found]] = {}
    due = iter(positions)
    following = next(due, None)
    for outcome in pool.run(lambda position: _found(archive, way, position, matches), positions, lanes, pool.Tick(LINE_EVERY_S, tick)):
        progress.add(way.segment_size)
        ready[outcome.item] = outcome
        while following in ready:
            yield ready.pop(following).value()
            following = next(due, None)


def _found(archive: Archive, way: Way, position: int, matches: Matching) -> Found:
    """Look through one segment; and through the next one, if a record goes on there that may say something."""
    name = way.name(position)
    limit = segment_start(name, way.segment_size) + way.segment_size
    reader, found = _looked_through(archive, name, WalReader(), matches)
    if reader.stopped is not None and position < way.segments - 1:
        raise DamageError(
            f"the WAL in {name} ends too early",
            f"{reader.stopped} Recovery ends there, although the next segment is in the store.",
            "See wal-e wal-verify --content. Look for another copy of this segment.",
        )
    while reader.open_at is not None and reader.open_at < limit and position + 1 < way.segments:
        position += 1
        reader, more = _looked_through(archive, way.name(position), reader, matches)
        found = _joined(found, more)
    return found


def _looked_through(archive: Archive, name: str, reader: WalReader, matches: Matching) -> tuple[WalReader, Found]:
    """Read a stored segment with a copy of a reader, which is returned: an attempt that failed halfway leaves no trace."""
    result: list[tuple[WalReader, Found]] = []

    def consume(stream: RawIOBase) -> None:
        mine = copy.copy(reader)
        result[:] = [(mine, _summed(mine, mine.read(stream), matches))]

    retrying(lambda: once_more(lambda: _decode(archive, name, consume)), archive.fetch_policy)
    return result[0]


def _decode(archive: Archive, name: str, consume: Callable[[RawIOBase], None]) -> None:
    for suffix in archive.wal_suffixes():
        key = layout.wal_key(name, suffix)

        def consume_or_blame(stream: RawIOBase, key: str = key) -> None:
            try:
                consume(stream)
            except WalRefused as refused:
                raise DamageError(f"{key} is damaged", str(refused), "Look for another copy of this file.") from None

        try:
            return archive.pipeline.decode(archive.store.get(key), key, consume_or_blame)
        except BlobNotFound:
            continue
    raise BlobNotFound(f"the store has no {name}", f"{archive.store.url} was asked and holds no such WAL file.", "Was it deleted a moment ago? Try again.")


def _summed(reader: WalReader, records: Iterable[Record], matches: Matching) -> Found:
    first = last = latest = written = None
    for record in records:
        written = _later(written, record.time)
        if matches(record):
            first, last = first or record, record
            latest = _later(latest, record.time)
    return Found(first, last, latest, written, reader.begin, reader.end)


def _joined(one: Found, more: Found) -> Found:
    first, last = one.first or more.first, more.last or one.last
    return Found(first, last, _later(one.latest, more.latest), _later(one.written, more.written), more.begin, more.end)


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max(one, other) if one and other else one or other
