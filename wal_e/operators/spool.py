"""The directory that ``wal-receive`` receives into: what is finished in it, what is not, and what may go.

::

    SEGMENT              received whole and flushed by pg_receivewal
    SEGMENT.partial      being received, or where a timeline that was left ended
    TIMELINE.history     as the server has it
    wal-receive.lock     held (flock) by the wal-receive that works here

The newest finished segment always stays: pg_receivewal goes on after the newest file it finds.
"""

from __future__ import annotations

import fcntl
import os

from wal_e.errors import LockHeld, TargetRefused, local_error
from wal_e.postgres.pg_receivewal import PARTIAL
from wal_e.postgres.wal import WAL_HEADER_SIZE, parse_wal_header, wal_kind

LOCK = "wal-receive.lock"
_LOST_AND_FOUND = "lost+found"
_UNFINISHED_HISTORY = ".history.tmp"  # what pg_receivewal writes before it renames


def position_of(segment: str) -> tuple[str, str]:
    """A key to sort names of segments by: position first, then timeline, as pg_receivewal looks for the newest."""
    return segment[8:], segment[:8]


class Spool:
    """One directory, locked as long as this process lives."""

    def __init__(self, directory: str) -> None:
        """Make the directory if it is not there, look whether it is one of ours, and lock it.

        Raises: LockHeld, TargetRefused, LocalFileError.
        """
        self.directory = os.path.abspath(directory)
        try:
            os.makedirs(os.path.dirname(self.directory), exist_ok=True)
            if not os.path.isdir(self.directory):
                os.mkdir(self.directory, 0o700)
            self._require_ours()
            self._lock()
        except OSError as error:
            raise local_error(error, f"opening {self.directory}") from None

    def _require_ours(self) -> None:
        """Refuse a directory with anything else in it, a server's ``pg_wal`` above all: what is stored is removed from here."""
        strange = [name for name in os.listdir(self.directory) if name not in (LOCK, _LOST_AND_FOUND) and not _is_received(name)]
        if strange or os.path.exists(os.path.join(os.path.dirname(self.directory), "PG_VERSION")):
            raise TargetRefused(
                f"{self.directory} is not a directory to receive into",
                f"It holds {strange[0]}." if strange else "It lies in the data directory of a server.",
                "wal-receive removes from its directory what is stored: give it a new one of its own.",
            )

    def _lock(self) -> None:
        self._lock_fd = os.open(self.path(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockHeld(
                f"another wal-receive works in {self.directory}", f"It holds {LOCK} there.", "Each needs a directory and a slot of its own."
            ) from None

    def path(self, name: str) -> str:
        """The path of a file in here."""
        return os.path.join(self.directory, name)

    def _names(self) -> list[str]:
        try:
            return os.listdir(self.directory)
        except OSError as error:
            raise local_error(error, f"reading {self.directory}") from None

    def finished(self) -> list[str]:
        """Segments that were received whole, oldest first. Raises: LocalFileError."""
        return sorted((name for name in self._names() if wal_kind(name) == "segment"), key=position_of)

    def partials(self) -> list[str]:
        """Segments, by their names without ``.partial``, that were not, oldest first. Raises: LocalFileError."""
        return sorted((name.removesuffix(PARTIAL) for name in self._names() if wal_kind(name) == "partial"), key=position_of)

    def histories(self) -> list[str]:
        """History files, oldest timeline first. Raises: LocalFileError."""
        return sorted(name for name in self._names() if wal_kind(name) == "history")

    def system_identifier(self) -> int | None:
        """Whose WAL is in here, by the newest file that tells; None when none does. Raises: LocalFileError."""
        for name in [*reversed(self.finished()), *(segment + PARTIAL for segment in reversed(self.partials()))]:
            header = self._header(name)
            if any(header):
                return parse_wal_header(header).system_identifier
        return None

    def _header(self, name: str) -> bytes:
        try:
            with open(self.path(name), "rb") as stream:
                return stream.read(WAL_HEADER_SIZE)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise local_error(error, f"reading {self.path(name)}") from None

    def _size(self, name: str) -> int:
        try:
            return os.path.getsize(self.path(name))
        except OSError as error:
            raise local_error(error, f"reading {self.path(name)}") from None

    def tidy(self, segment_size: int) -> None:
        """Remove what has no WAL in it: what a killed receiver left half made, and would refuse to go on with, and what only said where to begin.

        Nothing else may work here now. Raises: LocalFileError.
        """
        for segment in self.partials():
            if self._size(segment + PARTIAL) != segment_size:
                self.remove(segment + PARTIAL)
        for name in self._names():
            if name.endswith(_UNFINISHED_HISTORY):
                self.remove(name)

    def begin_with(self, segment: str) -> None:
        """Have the receiver begin at the start of this segment. Raises: LocalFileError."""
        try:
            os.close(os.open(self.path(segment + PARTIAL), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except OSError as error:
            raise local_error(error, f"writing {self.path(segment + PARTIAL)}") from None

    def remove(self, name: str) -> None:
        """Remove a file; an absent one is no error. Raises: LocalFileError."""
        try:
            os.unlink(self.path(name))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise local_error(error, f"removing {self.path(name)}") from None


def _is_received(name: str) -> bool:
    return wal_kind(name.removesuffix(".tmp")) in ("segment", "partial", "history")
