"""Which stored files the server should be told about, by ``.done`` in its directory, and which it is about to ask for.

The server gives each file that is ready to ``archive_command``, the first one first, and warns when a file that
it is at work on was renamed meanwhile. So the first one is left for it to ask, for a moment: the answer is at hand. If it does not ask, since
it is down or waits after a failure, that one is marked as well. What it did ask for it marks itself, when it has seen ``wal-push`` end.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Container, Iterable

from wal_e.operators.archiver_schedule import MAX_NAMES, server_order
from wal_e.postgres.archive_status import waiting_since

GRACE_S = 1.0  # from the start of a shell and of wal-push to its question it is 0.05 s
ASKED_GRACE_S = 5.0  # from the answer to the server's own mark, wal-push and a shell have to end: hundredths of a second, more on a busy machine

FileIdentity = tuple[int, int, int, int]


def file_identity(path: str) -> FileIdentity | None:
    """Device, inode, modification time in nanoseconds and size: the same for the same content; None when it is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


class Stored:
    """The files that this process stored last, up to :data:`MAX_NAMES`, about 400 bytes each."""

    def __init__(self) -> None:
        self._known: dict[str, FileIdentity] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def add(self, name: str, identity: FileIdentity) -> None:
        """Remember a file as it was before and after it was pushed."""
        self._known.pop(name, None)
        self._known[name] = identity
        if len(self._known) > MAX_NAMES:
            del self._known[next(iter(self._known))]

    def holds(self, name: str, path: str) -> bool:
        """Whether the file of this name that is at a path now was stored."""
        known = self._known.get(name)
        return known is not None and known == file_identity(path)


class Marks:
    """Files to be marked done. Moments are those of one clock, in seconds."""

    def __init__(self, pg_wal: str) -> None:
        self._pg_wal = pg_wal
        self._since: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._order: list[tuple[bool, str]] = []

    def restart(self, names: Iterable[str]) -> None:
        """Take these as all the files that wait, in the server's order."""
        self._order = [server_order(name) for name in names]

    def waits(self, name: str) -> None:
        """Take note of one more file that waits."""
        heapq.heappush(self._order, server_order(name))

    def stored(self, name: str, now: float) -> None:
        """Take note of a file that is stored."""
        self._since.setdefault(name, now)

    def asked(self, name: str, now: float) -> None:
        """Take note of an answer that a file is stored: who asked marks it. From any thread."""
        self._asked[name] = now

    def due(self, now: float, waiting: Container[str]) -> list[str]:
        """Take out the files to be marked done now, in the server's order; nobody may be ``waiting`` for them."""
        head = self._head()
        for name, then in list(self._asked.items()):  # a copy, for others add to it meanwhile
            if now - then >= ASKED_GRACE_S:
                self._asked.pop(name, None)
        free = (name for name, since in self._since.items() if name != head or now - since >= GRACE_S)
        due = sorted((name for name in free if name not in waiting and name not in self._asked), key=server_order)
        for name in due:
            del self._since[name]
        return [name for name in due if waiting_since(self._pg_wal, name) is not None]

    def _head(self) -> str | None:
        """The first file that waits: what the server asks for now, or next."""
        while self._order and waiting_since(self._pg_wal, self._order[0][1]) is None:
            heapq.heappop(self._order)
        return self._order[0][1] if self._order else None
