"""What is to be prefetched next: a window that moves with the server.

The server asks for one segment after the other, and the window begins with the one that it has not
taken yet. What vanishes from the prefetch directory was taken, by whomever. Anything else, a
recovery that began again or went to another timeline, ``wal-fetch`` says in ``prefetch.next``.
"""

from __future__ import annotations

import os
import time

from wal_e.errors import WalRefused
from wal_e.postgres.wal import MIN_SEGMENT_SIZE, next_segment
from wal_e.postgres.wal_file import inspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.operators.prefetch_directory import PrefetchDirectory

MAX_BYTES = 1 << 30  # in the prefetch directory, whatever the count says
FREE_SEGMENTS = 4  # room that is left to the server, in segments


class PrefetchWindow:
    """The segments that should be ready; iterating yields those that are not, until there is none for the moment."""

    def __init__(self, directory: PrefetchDirectory, pg_wal: str, first: str, count: int) -> None:
        self.end: str | None = None
        self.moved_at = time.monotonic()
        self._directory = directory
        self._pg_wal = pg_wal
        self._first = first
        self._count = count
        self._segment_size = 0  # unknown until there is one: so the first comes alone, and as soon as can be
        self._ready: set[str] = set()
        self._working: set[str] = set()
        self._asked = directory.asked_for()[1]

    def __iter__(self) -> PrefetchWindow:
        return self

    def __next__(self) -> str:
        self.look()
        name = self.following()
        if name is None:
            raise StopIteration
        self._working.add(name)
        return name

    def look(self) -> None:
        """See what was taken and what was asked for; remove what will not be."""
        ready = set(self._directory.segments())
        taken = max((name for name in self._ready - ready if name >= self._first), default=None)
        asked, at = self._directory.asked_for()
        if asked and at != self._asked:
            self._asked, self.end = at, None
            self._move(asked)
        elif taken is not None:
            self._move(next_segment(taken, self._segment_size))
        if self._segment_size == 0 and self._first in ready:
            self._measure_first(ready)
        wanted = self._names()
        for name in ready.difference(wanted):
            self._directory.forget(name)
        self._ready = ready.intersection(wanted)

    def following(self) -> str | None:
        """The first segment that is neither ready nor on its way; None for none, or for want of room."""
        for name in self._names():
            if self.end is not None and name >= self.end:
                return None
            if name not in self._ready and name not in self._working:
                return name if self._has_room() else None
        return None

    def wants(self, name: str, size_bytes: int) -> bool:
        """Whether a segment of so many bytes that has arrived is still wanted."""
        self._segment_size = size_bytes
        self.look()
        return name in self._names()

    def done(self, name: str) -> None:
        """Take note that the work on a segment has ended."""
        self._working.discard(name)

    def end_at(self, name: str) -> None:
        """Want nothing from this segment on; what comes before it is still wanted."""
        self.end = name if self.end is None else min(self.end, name)

    def holds_any(self) -> bool:
        """Whether something is ready that the server has not taken yet."""
        return bool(self._ready)

    def clear(self) -> None:
        """Remove all that is ready: nobody takes it."""
        for name in self._directory.segments():
            self._directory.forget(name)

    def _move(self, first: str) -> None:
        self._first = first
        self.moved_at = time.monotonic()

    def _measure_first(self, ready: set[str]) -> None:
        """Learn how long segments are from one that was there before us, if it can be trusted."""
        path = self._directory.path(self._first)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return ready.discard(self._first)
        try:
            inspect(fd, self._first, os.path.join(self._pg_wal, self._first))
            self._segment_size = os.fstat(fd).st_size
        except WalRefused:
            self._directory.forget(self._first)
            ready.discard(self._first)
        finally:
            os.close(fd)
        return None

    def _names(self) -> list[str]:
        names = [self._first]
        if self._segment_size:
            while len(names) < min(self._count, MAX_BYTES // self._segment_size):
                names.append(next_segment(names[-1], self._segment_size))
        return names

    def _has_room(self) -> bool:
        space = os.statvfs(self._directory.ready)
        return space.f_bavail * space.f_frsize >= FREE_SEGMENTS * max(self._segment_size, MIN_SEGMENT_SIZE)
