"""Prefetch: one background process that stays a few segments ahead of a recovering server.

``wal-fetch`` starts it after a segment, and hands it the lock of the prefetch directory, so that
there is never a second one. It lives as long as the recovery goes on: it goes where the server goes,
and ends when the server has taken the last segment of the archive. When the recovery or the server
ends before, or nobody has taken anything for long, it removes what it made ready.
"""

from __future__ import annotations

import os
import sys
import time

from wal_e.errors import BlobNotFound, LocalFileError, WaleError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.operators.prefetch_directory import PrefetchDirectory, move
from wal_e.operators.prefetch_window import PrefetchWindow
from wal_e.operators.wal_fetch import download, flush
from wal_e.pids import is_running
from wal_e.postgres.recovery import requested_role
from wal_e.postgres.wal import next_segment, wal_kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wal_e.archive.archive import Archive

LOG = Logger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 0.01, 0.25
IDLE_S = 300.0  # a segment may take minutes to replay
IDLE_WITHOUT_SERVER_S = 10.0  # nobody recovers here: somebody fetched a segment by hand
POSTMASTER_PID = "postmaster.pid"


def promote(name: str, destination: str) -> bool:
    """Move a segment that is ready to its destination; False when there is none. A file that is not the segment is removed.

    Raises: DamageError (of pg_control), LocalFileError.
    """
    directory = PrefetchDirectory.beside(destination)
    try:
        move(directory, name, destination)
    except WalRefused as refused:
        LOG.warning(f"the prefetched {name} is not used", str(refused), "It is fetched again from the store.", action="wal-fetch", seg=name)
        directory.forget(name)
        return False
    except OSError:
        return False  # there is none, or it cannot be had; if the destination is to blame, the fetch will say so
    return True


def start_prefetching(name: str, destination: str, count: int, environ: Callable[[], Mapping[str, str]]) -> None:
    """See that what follows ``name``, which was fetched, is prefetched; never fails.

    The process leads a session of its own, with no terminal and no descriptor of the server's but the lock.
    """
    try:
        following = next_segment(name, os.path.getsize(destination))
        if _is_for_pg_rewind():
            return
        directory = PrefetchDirectory.beside(destination)
        directory.make()
        lock = directory.lock()
        if lock is None:
            directory.ask_for(following)
            return
        if not directory.reaches_the_end_after(name, following):
            directory.announce(following)
            _spawn(os.path.abspath(os.path.dirname(destination)), following, count, environ(), lock)
        os.close(lock)
    except (OSError, WaleError) as error:
        LOG.warning("prefetching could not be started", str(error), "Recovery goes on without it, one segment at a time.", action="wal-fetch", seg=name)


def _spawn(pg_wal: str, first: str, count: int, environ: Mapping[str, str], lock: int) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    argv = [sys.executable, "-m", "wal_e", "wal-prefetch", "--prefetch", str(count), pg_wal, first]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in ((0, lock), (1, null), (2, null))]
    os.posix_spawn(sys.executable, argv, environ, file_actions=actions, setsid=True)
    os.close(null)


def _is_for_pg_rewind() -> bool:
    """Whether pg_rewind runs this restore_command: it lists its target's files, which must not come and go meanwhile."""
    pid = os.getppid()
    while pid > 1:
        try:
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                command, _, rest = file.read(4096).partition(b"(")[2].rpartition(b")")
        except OSError:
            return False
        if command == b"pg_rewind":
            return True
        pid = int(rest.split()[1])
    return False


def prefetch(archive: Archive, pg_wal: str, first: str, count: int) -> None:
    """Keep up to ``count`` segments ready, beginning with ``first``, until the store has no more.

    Raises: WalRefused for a name that is no segment; LocalFileError; what the store raises.
    """
    if wal_kind(first) != "segment":
        raise WalRefused(f"{first!r} is not the name of a WAL segment")
    directory = PrefetchDirectory(os.path.realpath(pg_wal))
    try:
        directory.make()
        lock = directory.inherited_lock() or directory.lock()
        if lock is None:
            return
        try:
            _remove_leftovers(directory, first)
            _Prefetcher(archive, directory, pg_wal, PrefetchWindow(directory, pg_wal, first, count)).work()
        finally:
            os.close(lock)
    except (OSError, LocalFileError) as error:
        if not os.path.isdir(directory.ready):
            return  # whoever removed it wants no prefetching
        if isinstance(error, LocalFileError):
            raise
        raise local_error(error, f"prefetching into {directory.ready}") from None


class _Prefetcher:
    """The background process at work: lanes while something is wanted, else a look now and then."""

    def __init__(self, archive: Archive, directory: PrefetchDirectory, pg_wal: str, window: PrefetchWindow) -> None:
        self._archive = archive
        self._directory = directory
        self._pg_wal = pg_wal
        self._window = window
        self._server = _Server(os.path.dirname(os.path.abspath(pg_wal)))

    def work(self) -> None:
        """Work until the archive ends, or there is nobody to work for. Raises: what the store raises; OSError."""
        window, noted = self._window, None
        while os.path.isdir(self._directory.ready):
            failure = self._fetch_what_is_wanted()
            if window.end is not None and window.end != noted:
                self._directory.note_end(window.end)
                noted = window.end
                if failure is not None:
                    raise failure
            window.look()
            idle_s = time.monotonic() - window.moved_at
            if self._server.is_gone() or idle_s > (IDLE_S if self._server.is_known else IDLE_WITHOUT_SERVER_S):
                window.clear()
                return
            if window.end is not None and not (self._server.is_known and window.holds_any()):
                return
            if window.following() is None:
                time.sleep(min(max(idle_s / 10, FIRST_PAUSE_S), LAST_PAUSE_S))

    def _fetch_what_is_wanted(self) -> Exception | None:
        """Fetch in lanes for as long as the window has something; return the first error that is not absence."""
        failure: Exception | None = None
        for ended in self._archive.waits.run(self._fetch, self._window):
            self._window.done(ended.item)
            if ended.error is not None:
                self._window.end_at(ended.item)
                if not isinstance(ended.error, BlobNotFound):
                    failure = failure or ended.error
        return failure

    def _fetch(self, name: str) -> None:
        """Download one segment and make it ready, if the server still wants it by then."""
        running = os.path.join(self._directory.running, name)
        temporary = os.path.join(running, "tmp")
        try:
            self._directory.announce(name)
            download(self._archive, name, temporary, os.path.join(self._pg_wal, name))
            if self._window.wants(name, os.path.getsize(temporary)):
                flush(temporary)
                os.rename(temporary, self._directory.path(name))
        finally:
            _remove(temporary)
            _remove_directory(running)


class _Server:
    """The server of a data directory, as far as its files tell."""

    def __init__(self, data_directory: str) -> None:
        self._directory = data_directory
        self._pid = self._read()
        self._role = requested_role(data_directory)
        self.is_known = self._pid is not None

    def is_gone(self) -> bool:
        """Whether the server that was there has ended, or its recovery has."""
        if self._pid is None:
            return False
        if self._read() != self._pid or (self._role is not None and requested_role(self._directory) is None):
            return True
        return not is_running(self._pid)

    def _read(self) -> int | None:
        try:
            with open(os.path.join(self._directory, POSTMASTER_PID), "rb", buffering=0) as file:
                return int(file.read(64).split()[0])
        except (OSError, ValueError, IndexError):
            return None


def _remove_leftovers(directory: PrefetchDirectory, first: str) -> None:
    """Remove what a killed predecessor left in ``running``; this process alone has the lock. The first download was announced."""
    for entry in os.scandir(directory.running):
        if not entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
            continue
        for leftover in os.listdir(entry.path):
            _remove(os.path.join(entry.path, leftover))
        if entry.name != first:
            _remove_directory(entry.path)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        pass


def _remove_directory(path: str) -> None:
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass
