"""Prefetch: one background process that stays a few segments ahead of a recovering server.

The directory is WAL-E's, and other tools read it::

    pg_wal/.wal-e/prefetch/SEGMENT                  whole, checked, durable: ready to be promoted
    pg_wal/.wal-e/prefetch/running/SEGMENT/         a download in progress
    pg_wal/.wal-e/prefetch.lock                     held (flock) by the process that prefetches

``wal-fetch`` promotes a segment by a rename and starts the process when none runs. The process
ends when the store has no next segment, or when nobody took one for a while.
"""

from __future__ import annotations

import os
import sys
import time

from wal_e.errors import BlobNotFound, WaleError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.operators.wal_fetch import download, place
from wal_e.postgres.wal import next_segment, wal_kind
from wal_e.postgres.wal_file import inspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wal_e.archive.archive import Archive

LOG = Logger(__name__)

POLL_S = 0.02
PATIENCE_S = 2.0
IDLE_S = 10.0


class PrefetchDirectory:
    """The prefetch directory of one ``pg_wal``."""

    def __init__(self, pg_wal: str) -> None:
        self.pg_wal = pg_wal
        self.top = os.path.join(pg_wal, ".wal-e")
        self.ready = os.path.join(self.top, "prefetch")
        self.running = os.path.join(self.ready, "running")

    @classmethod
    def beside(cls, destination: str) -> PrefetchDirectory:
        """The directory for a ``%p``, which may be relative or reached through links."""
        return cls(os.path.dirname(os.path.realpath(destination)))

    def make(self) -> None:
        """Make what is missing. Raises: OSError."""
        for path, mode in ((self.top, 0o755), (self.ready, 0o700), (self.running, 0o700)):
            try:
                os.mkdir(path, mode)
            except FileExistsError:
                pass

    def segments(self) -> list[str]:
        """Names of the segments that are ready, in order."""
        try:
            return sorted(name for name in os.listdir(self.ready) if wal_kind(name) == "segment")
        except OSError:
            return []

    def forget_before(self, name: str) -> None:
        """Remove segments that a server which has come to ``name`` will not ask for again."""
        for old in self.segments():
            if old < name:
                _remove(os.path.join(self.ready, old))

    def try_lock(self) -> int | None:
        """Take the lock; return its descriptor, or None when another process has it."""
        import fcntl

        fd = os.open(os.path.join(self.top, "prefetch.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def promote(name: str, destination: str, patience_s: float = PATIENCE_S) -> bool:
    """Move a prefetched segment to its destination; False when there is none to be had.

    Waits for a download in progress for as long as it grows.

    Raises: LocalFileError.
    """
    directory = PrefetchDirectory.beside(destination)
    ready = os.path.join(directory.ready, name)
    if not _arrives(directory, name, ready, patience_s):
        return False
    try:
        fd = os.open(ready, os.O_RDONLY | os.O_CLOEXEC)
        try:
            inspect(fd, name, destination)
        finally:
            os.close(fd)
    except WalRefused as refused:
        LOG.warning(f"the prefetched {name} is not used", str(refused), "It is fetched again from the store.", action="wal-fetch", seg=name)
        _remove(ready)
        return False
    except OSError:
        return False  # somebody else took it
    place(ready, destination)
    directory.forget_before(name)
    return True


def _arrives(directory: PrefetchDirectory, name: str, ready: str, patience_s: float) -> bool:
    """Wait while the download of this segment grows; tell whether it is ready."""
    progress, left_s = -1, patience_s
    while not os.path.exists(ready):
        seen = _downloaded_bytes(os.path.join(directory.running, name))
        if seen is None or left_s <= 0:
            return os.path.exists(ready)
        left_s = patience_s if seen > progress else left_s - POLL_S
        progress = max(progress, seen)
        time.sleep(POLL_S)
    return True


def _downloaded_bytes(running: str) -> int | None:
    """How much of a download is there, None when none is running."""
    try:
        return sum(entry.stat().st_size for entry in os.scandir(running))
    except OSError:
        return None


def start_prefetching(name: str, destination: str, count: int, environ: Callable[[], Mapping[str, str]]) -> None:
    """Start the background process after ``name`` was fetched, unless one runs; never fails.

    It leads a session of its own, with no terminal and no descriptor of the server's.
    """
    try:
        directory = PrefetchDirectory.beside(destination)
        following = next_segment(name, os.path.getsize(destination))
        directory.make()
        directory.forget_before(name)
        lock = directory.try_lock()
        if lock is None:
            return
        os.close(lock)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        argv = [sys.executable, "-m", "wal_e", "wal-prefetch", "--prefetch", str(count), directory.pg_wal, following]
        os.posix_spawn(sys.executable, argv, environ(), file_actions=[(os.POSIX_SPAWN_DUP2, null, fd) for fd in (0, 1, 2)], setsid=True)
        os.close(null)
    except (OSError, WaleError) as error:
        LOG.warning("prefetching could not be started", str(error), "Recovery goes on without it, one segment at a time.", action="wal-fetch", seg=name)


def prefetch(archive: Archive, pg_wal: str, first: str, count: int) -> None:
    """Keep up to ``count`` segments ready, beginning with ``first``, until the store has no more.

    Raises: WalRefused for a name that is no segment; LocalFileError; what the store raises.
    """
    if wal_kind(first) != "segment":
        raise WalRefused(f"{first!r} is not the name of a WAL segment")
    directory = PrefetchDirectory(pg_wal)
    try:
        directory.make()
        lock = directory.try_lock()
        if lock is None:
            return
        _remove_leftovers(directory)
        _stay_ahead(archive, directory, first, count)
        os.close(lock)
    except OSError as error:
        raise local_error(error, f"prefetching into {directory.ready}") from None


def _stay_ahead(archive: Archive, directory: PrefetchDirectory, name: str, count: int) -> None:
    last_taken, waiting = time.monotonic(), directory.segments()
    while time.monotonic() - last_taken < IDLE_S and os.path.isdir(directory.ready):
        before, waiting = waiting, directory.segments()
        if waiting != before:
            last_taken = time.monotonic()
        if len(waiting) >= count:
            time.sleep(POLL_S)
            continue
        try:
            name = next_segment(name, _prefetch_one(archive, directory, name))
        except BlobNotFound:
            return


def _prefetch_one(archive: Archive, directory: PrefetchDirectory, name: str) -> int:
    """Download one segment and make it ready; return its size in bytes."""
    running = os.path.join(directory.running, name)
    temporary, ready = os.path.join(running, "tmp"), os.path.join(directory.ready, name)
    if os.path.exists(ready):
        return os.path.getsize(ready)
    try:
        os.mkdir(running, 0o700)
        download(archive, name, temporary, os.path.join(directory.pg_wal, name))
        size = os.path.getsize(temporary)
        os.rename(temporary, ready)
        return size
    finally:
        _remove(temporary)
        try:
            os.rmdir(running)
        except FileNotFoundError:
            pass


def _remove_leftovers(directory: PrefetchDirectory) -> None:
    """Remove what a killed predecessor left in ``running``; this process alone has the lock."""
    for name in os.listdir(directory.running):
        running = os.path.join(directory.running, name)
        for leftover in os.listdir(running):
            _remove(os.path.join(running, leftover))
        os.rmdir(running)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
