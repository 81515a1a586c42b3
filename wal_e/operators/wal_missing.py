"""``wal-push --missing``: store again what the server takes for archived, the store lacks, and pg_wal still has.

Whoever lost objects, or had an archive_command that lied, has gaps which PostgreSQL never fills:
it pushes a file once. What may be pushed here:

- a file with ``.done``: the server says that it is archived, so it was complete;
- a file without a status that is complete for certain: a segment that ends before the server's
  position on its timeline, or before the place where an ancestor timeline was left;
- never one with ``.ready``, which waits for its turn, and never the segment being written;
- nothing of a timeline of which the store holds another server's WAL (split brain): stored segments
  next to what is missing are compared first.

The server may recycle such a file at any moment, which nothing prevents once it is done: the file gets another
name and then other content. So a segment is copied first, and the copy counts only if the
name still led to the same file afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from itertools import groupby, pairwise
from tempfile import TemporaryDirectory
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.ranges import Range, Ranges
from wal_e.errors import LocalFileError, WalConflict, WaleError, WalGap, WalRefused, local_error
from wal_e.log import Logger
from wal_e.operators.wal_push import push
from wal_e.postgres import archive_status
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.control import read_control
from wal_e.postgres.monitor import Monitor
from wal_e.postgres.wal import Lsn, Switch, parse_history, segment_name, segment_start, segment_timeline, wal_kind
from wal_e.postgres.wal_file import inspect

LOG = Logger(__name__)

_LISTED = 16  # characters of a name that share one listing: timeline and log, at most 4096 segments; a whole history file's name

_LOG_BYTES = 2**32  # of WAL under one such listing


class Reach(NamedTuple):
    """How far WAL is complete: before ``end`` on the timeline, and before where each ancestor was left."""

    timeline: int
    end: Lsn
    ancestors: tuple[Switch, ...]

    def covers(self, segment: str, segment_size: int) -> bool:
        """Whether a segment is complete for certain."""
        ends = {self.timeline: self.end, **dict(self.ancestors)}
        end = ends.get(segment_timeline(segment))
        return end is not None and segment_start(segment, segment_size) + segment_size <= end


class Gap(NamedTuple):
    """Segments that neither the store nor pg_wal has, from the first to the last, both in it."""

    first: str
    last: str


class Healed(NamedTuple):
    """What was pushed, what could not be and why, which files wait for their turn, and the gaps that are left."""

    pushed: list[str]
    failed: list[tuple[str, WaleError]]
    waiting: int
    gaps: list[Gap]

    def raise_what_is_left(self) -> None:
        """Raise the first failure, else a WalGap for the gaps."""
        for _, error in self.failed:
            raise error
        if self.gaps:
            spans = ", ".join(gap.first if gap.first == gap.last else f"{gap.first} to {gap.last}" for gap in self.gaps)
            raise WalGap(
                "WAL is missing from the store and from pg_wal",
                f"Neither has {spans}.",
                "Look for these files elsewhere: in pg_wal of a standby, or in a copy of the store. Recovery cannot pass the gap: make a new base backup.",
            )


def push_missing(archive: Archive, cluster: Cluster, monitor: Monitor | None) -> Healed:
    """Push what is missing, oldest first, and find the gaps that stay, as far back as the WAL around that of pg_wal goes.

    Raises: WrongCluster, LocalFileError, ServerUnavailable, what the store raises when it is asked what it holds.
    """
    pg_wal = os.path.join(cluster.path, "pg_wal")
    size = cluster.control.segment_size
    last_archived = (monitor.archiver().last_archived_wal if monitor else None) or ""
    reach = _reach(pg_wal, cluster, monitor)
    marked = archive_status.statuses(pg_wal)
    names = _present(pg_wal)
    waiting = {name for name in names if name in marked and marked[name].state == "ready"}
    settled = [name for name in names if name not in waiting and (name in marked or _is_complete(name, reach, size))]
    archive.claim(cluster.control.system_identifier)
    stored = _stored(archive, [*settled, *filter(_is_segment, [last_archived])], size)
    disputed = _disputed(archive, pg_wal, _witnesses(settled, stored))
    pushed, failed = _push_all(archive, pg_wal, [name for name in settled if name not in stored and name[:8] not in disputed])
    failed += [(name, disputed[name[:8]]) for name in settled if name not in stored and name[:8] in disputed]
    held = {*stored, *pushed, *waiting, *(name for name, _ in failed)}
    return Healed(pushed, failed, len(waiting), _gaps(held, last_archived, size))


def _is_segment(name: str) -> bool:
    return wal_kind(name) == "segment"


def _present(pg_wal: str) -> list[str]:
    """WAL files that are there, history files first, then ascending."""
    try:
        found = [name for name in os.listdir(pg_wal) if wal_kind(name)]
    except OSError as error:
        raise local_error(error, f"reading {pg_wal}") from None
    return sorted(found, key=lambda name: (wal_kind(name) != "history", name))


def _reach(pg_wal: str, cluster: Cluster, monitor: Monitor | None) -> Reach:
    """How far the server is; without one, what pg_control tells of the last checkpoint."""
    if monitor is not None:
        position = monitor.position()
        timeline, end = position.timeline, position.lsn
    else:
        control = read_control(cluster.path)
        timeline, end = control.timeline, control.redo
    try:
        with open(os.path.join(pg_wal, f"{timeline:08X}.history"), "rb") as file:
            return Reach(timeline, end, parse_history(file.read(), timeline))
    except (OSError, WalRefused):
        return Reach(timeline, end, ())  # the first timeline has no history; without one, nothing is known of ancestors


def _is_complete(name: str, reach: Reach, segment_size: int) -> bool:
    """Whether a file without a status is complete for certain."""
    if wal_kind(name) == "history":  # made under another name, then renamed
        return int(name[:8], 16) <= reach.timeline
    return _is_segment(name) and reach.covers(name, segment_size)


def _stored(archive: Archive, names: Iterable[str], segment_size: int) -> set[str]:
    """What the store has around these names; one listing for each timeline and log, the ones before included."""
    names = set(names)
    before = {
        segment_name(segment_timeline(name), start - _LOG_BYTES, segment_size)
        for name in filter(_is_segment, names)
        if (start := segment_start(name, segment_size)) >= _LOG_BYTES
    }
    suffixes = archive.wal_suffixes()
    found: set[str] = set()
    for prefix, _ in groupby(sorted(names | before), key=lambda name: name[:_LISTED]):
        for blob in archive.store.list(layout.wal_key(prefix, "")):
            name = layout.parse_wal_key(blob.key, suffixes)
            if name and wal_kind(name) and _fits(name, segment_size):
                found.add(name)
    return found


def _fits(name: str, segment_size: int) -> bool:
    """Whether a stored name is one that this cluster can have given."""
    return not _is_segment(name) or int(name[16:], 16) < _LOG_BYTES // segment_size


def _witnesses(settled: list[str], stored: set[str]) -> list[str]:
    """Segments that are stored, in pg_wal, and next to one that is missing: if they differ, so does the server."""
    found: set[str] = set()
    for one, other in pairwise(sorted(filter(_is_segment, settled))):
        if one[:8] == other[:8] and (one in stored) != (other in stored):
            found.add(one if one in stored else other)
    return sorted(found)


def _disputed(archive: Archive, pg_wal: str, witnesses: list[str]) -> dict[str, WalConflict]:
    """Timelines of which the store holds another server's WAL, with the proof.

    A clone lacks what the other server did not store yet: pushed, it would be in that server's way for ever.
    """
    found: dict[str, WalConflict] = {}
    for ended in archive.waits.run(lambda name: _push_one(archive, pg_wal, name), witnesses):
        if isinstance(ended.error, WalConflict):
            found[ended.item[:8]] = ended.error
        elif isinstance(ended.error, WaleError):
            LOG.warning(f"{ended.item} in the store could not be compared with pg_wal", str(ended.error), ended.error.hint, action="push-wal", seg=ended.item)
        elif ended.error is not None:
            raise ended.error
    return found


def _push_all(archive: Archive, pg_wal: str, names: list[str]) -> tuple[list[str], list[tuple[str, WaleError]]]:
    """Push files of pg_wal, history files first, then oldest first; what vanished meanwhile is in neither list."""
    pushed: list[str] = []
    failed: list[tuple[str, WaleError]] = []
    histories = [name for name in names if wal_kind(name) == "history"]  # before the segments of their timelines
    for group in (histories, names[len(histories) :]):
        for ended in archive.waits.run(lambda name: _push_one(archive, pg_wal, name), group):
            if ended.error is None:
                pushed.append(ended.item)
            elif isinstance(ended.error, WalRefused):
                LOG.warning(f"{ended.item} in pg_wal cannot be used", str(ended.error), action="push-wal", seg=ended.item)
            elif isinstance(ended.error, WaleError):
                if not isinstance(ended.error, LocalFileError) or os.path.exists(os.path.join(pg_wal, ended.item)):
                    failed.append((ended.item, ended.error))
            else:
                raise ended.error
    return sorted(pushed), sorted(failed, key=lambda one: one[0])


def _push_one(archive: Archive, pg_wal: str, name: str) -> None:
    path = os.path.join(pg_wal, name)
    if wal_kind(name) not in ("segment", "partial"):
        push(archive, path)  # never recycled
        return
    try:
        temporary = TemporaryDirectory(prefix="wal-e-")
    except OSError as error:
        raise local_error(error, f"making a temporary directory to copy {name} to") from None
    with temporary as directory:
        copy = os.path.join(directory, name)
        archive.waits.offload(lambda: _copied(path, name, copy))
        push(archive, copy)


def _copied(path: str, name: str, copy: str) -> None:
    """Copy a segment, and see that it still is that segment afterwards. Raises: WalRefused, LocalFileError, DiskFull."""
    try:
        with open(path, "rb") as source, open(copy, "wb") as target:
            inspect(source.fileno(), name, path)
            shutil.copyfileobj(source, target, 1024 * 1024)
            if not os.path.samestat(os.stat(path), os.fstat(source.fileno())):
                raise FileNotFoundError
    except FileNotFoundError:
        raise WalRefused(f"{name} is not there any more", "The server recycled it while it was read, which is its right with a file that is done.") from None
    except OSError as error:
        raise local_error(error, f"copying {path}") from None


def _gaps(held: set[str], last_archived: str, segment_size: int) -> list[Gap]:
    """What is nowhere between the oldest and the newest segment of each timeline, up to the one that was archived last."""
    numbers: dict[int, Ranges] = {}
    for name in filter(_is_segment, held):
        numbers.setdefault(segment_timeline(name), Ranges()).add(segment_start(name, segment_size) // segment_size)
    missing = [(timeline, gap) for timeline, have in sorted(numbers.items()) for gap in have.gaps()]
    if _is_segment(last_archived):
        timeline, last = segment_timeline(last_archived), segment_start(last_archived, segment_size) // segment_size
        newest = numbers[timeline].last if timeline in numbers else last - 1
        missing += [(timeline, Range(newest + 1, last))] if newest < last else []
    return [Gap(*(segment_name(timeline, number * segment_size, segment_size) for number in gap)) for timeline, gap in missing]
