"""The prefetch directory of one ``pg_wal``: where the background process and ``wal-fetch`` meet.

The directory is WAL-E's, and other tools read it::

    pg_wal/.wal-e/prefetch/SEGMENT                  whole, checked, durable: ready to be taken, by a rename
    pg_wal/.wal-e/prefetch/running/SEGMENT/         a download in progress, or one that begins in a moment
    pg_wal/.wal-e/prefetch.lock                     held (flock) by the process that prefetches, and by nobody else
    pg_wal/.wal-e/prefetch.next                     the segment that the server wants next, when it is not the one expected
    pg_wal/.wal-e/prefetch.end                      the first segment that the store did not have, lately

This module is all that a prefetched segment costs beside the interpreter, so it imports next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import time

from wal_e.errors import WaleError
from wal_e.postgres.wal import wal_kind
from wal_e.postgres.wal_file import inspect

POLL_S = 0.004
PATIENCE_S = 2.0
END_COUNTS_S = 60.0  # a standby that is up to date asks for the same segment every 5 s


class PrefetchDirectory:
    """The prefetch directory of one ``pg_wal``."""

    def __init__(self, pg_wal: str) -> None:
        self.top = os.path.join(pg_wal, ".wal-e")
        self.ready = os.path.join(self.top, "prefetch")
        self.running = os.path.join(self.ready, "running")
        self._lock = os.path.join(self.top, "prefetch.lock")
        self._next = os.path.join(self.top, "prefetch.next")
        self._end = os.path.join(self.top, "prefetch.end")

    @classmethod
    def beside(cls, destination: str) -> PrefetchDirectory:
        """The directory for a ``%p``, which may be relative or reached through links."""
        return cls(os.path.realpath(os.path.dirname(destination)))

    def make(self) -> None:
        """Make what is missing. Raises: OSError."""
        for path, mode in ((self.top, 0o755), (self.ready, 0o700), (self.running, 0o700)):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                pass

    def path(self, name: str) -> str:
        """Where a segment lies when it is ready."""
        return os.path.join(self.ready, name)

    def segments(self) -> list[str]:
        """Names of the segments that are ready, in order."""
        try:
            return sorted(name for name in os.listdir(self.ready) if wal_kind(name) == "segment")
        except OSError:
            return []

    def forget(self, name: str) -> None:
        """Remove a segment, if it is there. Raises: OSError."""
        try:
            os.unlink(self.path(name))
        except FileNotFoundError:
            pass

    def announce(self, name: str) -> None:
        """Say that a download begins, so that whoever wants the segment waits for it. Raises: OSError."""
        try:
            os.mkdir(os.path.join(self.running, name), 0o700)
        except FileExistsError:
            pass

    def downloaded_bytes(self, name: str) -> int | None:
        """How much of a download is there, None when none is announced."""
        try:
            return sum(entry.stat().st_size for entry in os.scandir(os.path.join(self.running, name)))
        except OSError:
            return None

    def lock(self) -> int | None:
        """Take the lock; return its descriptor, or None when another process has it. Raises: OSError."""
        return self._locked(os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), fcntl.LOCK_EX)

    def inherited_lock(self) -> int | None:
        """The lock, when whoever started this process took it and passed it on as stdin."""
        try:
            if os.path.samestat(os.fstat(0), os.stat(self._lock)):
                return self._locked(os.dup(0), fcntl.LOCK_EX)
        except OSError:
            pass
        return None

    def is_attended(self) -> bool:
        """Whether a background process is at work here."""
        try:
            lock = self._locked(os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC), fcntl.LOCK_SH)
        except OSError:
            return False
        if lock is None:
            return True
        os.close(lock)
        return False

    def ask_for(self, name: str) -> None:
        """Tell the background process which segment the server wants next. Raises: OSError."""
        _replace(self._next, name)

    def asked_for(self) -> tuple[str, int]:
        """The segment that was last asked for, "" for none, and a number that is another one each time."""
        return _read(self._next)

    def note_end(self, name: str) -> None:
        """Remember that the store does not have this segment; where nothing is prefetched, there is nothing to remember."""
        try:
            _replace(self._end, name)
        except OSError:
            pass

    def reaches_the_end_after(self, name: str, following: str) -> bool:
        """Whether the store had nothing to prefetch after a segment, a moment ago."""
        end, at_ns = _read(self._end)
        if end[:8] != name[:8] or not 0 <= time.time() - at_ns / 1e9 < END_COUNTS_S:
            return False
        return end in (name, following) or (end > following and os.path.exists(self.path(following)))

    @staticmethod
    def _locked(fd: int, kind: int) -> int | None:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def take(name: str, destination: str) -> bool:
    """Move a segment that the background process has ready, or nearly so, to its destination.

    False leaves everything as it is: for :func:`wal_e.operators.wal_prefetch.promote`, which explains
    what is wrong with a file, and whoever starts the process when none is at work.
    """
    directory = PrefetchDirectory.beside(destination)
    if wal_kind(name) != "segment" or not directory.is_attended() or not arrives(directory, name, PATIENCE_S):
        return False
    try:
        move(directory, name, destination)
    except (OSError, WaleError):
        return False
    return True


def note_absence(name: str, destination: str) -> None:
    """Remember that the server asked for a segment that the store does not have."""
    if wal_kind(name) == "segment":
        PrefetchDirectory.beside(destination).note_end(name)


def arrives(directory: PrefetchDirectory, name: str, patience_s: float) -> bool:
    """Wait while the download of this segment grows; tell whether it is ready."""
    progress, left_s = -1, patience_s
    while not os.path.exists(directory.path(name)):
        seen = directory.downloaded_bytes(name)
        if seen is None or left_s <= 0 or not directory.is_attended():
            return os.path.exists(directory.path(name))
        left_s = patience_s if seen > progress else left_s - POLL_S
        progress = max(progress, seen)
        time.sleep(POLL_S)
    return True


def move(directory: PrefetchDirectory, name: str, destination: str) -> None:
    """Move a segment that is ready to its destination, if it is what it should be.

    Neither file nor directory is flushed: the file was when it became ready, and a rename that a crash
    undoes is done again, for the server asks again.

    Raises: WalRefused, DamageError (of pg_control), OSError.
    """
    ready = directory.path(name)
    fd = os.open(ready, os.O_RDONLY | os.O_CLOEXEC)
    try:
        inspect(fd, name, destination)
    finally:
        os.close(fd)
    os.rename(ready, destination)


def _read(path: str) -> tuple[str, int]:
    """A segment's name in a file, "" for anything else, and when it was written, in nanoseconds."""
    try:
        with open(path, "rb", buffering=0) as file:
            name = file.read(64).decode("ascii", "replace")
            return name if wal_kind(name) == "segment" else "", os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return "", 0


def _replace(path: str, name: str) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb", buffering=0) as file:
        file.write(name.encode())
    os.rename(temporary, path)
