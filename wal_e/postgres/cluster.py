"""One data directory, its server running or stopped. Reads only.

``postmaster.pid`` has one fact per line (``utils/pidfile.h``, the same in versions 10 to 18):
process id, data directory, start time, port, first directory for sockets, first address to
listen on. A standalone backend writes its process id with a minus sign and stops after three.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from datetime import UTC, datetime

from wal_e.errors import LocalFileError, LockHeld, NotACluster, UsageError, local_error
from wal_e.log import Logger
from wal_e.pids import is_running
from wal_e.postgres import files
from wal_e.postgres.control import ControlFile, read_control
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

OLDEST_MAJOR = 10
NEWEST_MAJOR = 18

_CLEANLY_STOPPED = (1, 2)  # DB_SHUTDOWNED, DB_SHUTDOWNED_IN_RECOVERY in catalog/pg_control.h
_NO_LOCKS_HERE = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP)  # NFS cannot lock what is not open for writing

_log = Logger(__name__)


class Postmaster(NamedTuple):
    """A live server, as its postmaster.pid tells; 0 and "" stand for what it does not tell (yet)."""

    pid: int
    data_directory: str
    started: datetime
    port: int
    socket_directory: str
    listen_address: str


class Cluster:
    """A data directory of PostgreSQL 10 or later: where it is, its version, what pg_control said when it was opened."""

    def __init__(self, path: str, major: int, control: ControlFile) -> None:
        self.path = path
        self.major = major
        self.control = control

    @classmethod
    def open(cls, path: str) -> Cluster:
        """Look at a data directory; ``path`` on the result is absolute, its links are not resolved.

        Raises: NotACluster, UsageError for a version that is too old, DamageError, LocalFileError.
        """
        path = os.path.abspath(path)
        major = _read_major(path)
        control = read_control(path)
        if control.major not in (None, major):
            raise NotACluster(
                f"{path} mixes files of two clusters",
                f"PG_VERSION says {major}, global/pg_control is of PostgreSQL {control.major}.",
                "This cannot be started and is not worth a backup. Look for the right directory with SHOW data_directory.",
            )
        return cls(path, major, control)

    def is_cleanly_stopped(self) -> bool:
        """Whether pg_control, as it was when opened, tells of a clean shutdown."""
        return self.control.state in _CLEANLY_STOPPED

    def tablespaces(self) -> dict[str, str]:
        """Map the OID of each tablespace outside the data directory to its location."""
        return files.tablespaces(self.path)

    def postmaster(self) -> Postmaster | None:
        """Read who runs on this directory now, as :func:`read_postmaster` does."""
        return read_postmaster(self.path)

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Keep other backups of this directory away, as :func:`locked` does."""
        return locked(self.path, "another backup-push")


def read_postmaster(data_directory: str) -> Postmaster | None:
    """Read who runs on a directory now; None when postmaster.pid is absent or its process is gone.

    Raises: LocalFileError when the file cannot be read or understood.
    """
    file = os.path.join(data_directory, "postmaster.pid")
    text = _read_text(file)
    if text is None:
        return None
    lines = [line.strip() for line in text.split("\n")] + [""] * 6
    try:
        pid = abs(int(lines[0]))
        if not 0 < pid < 2**31:
            raise ValueError(pid)
        found = Postmaster(pid, lines[1], datetime.fromtimestamp(int(lines[2]), UTC), int(lines[3] or 0), lines[4], lines[5])
    except (ValueError, OverflowError, OSError):
        raise LocalFileError(
            "postmaster.pid cannot be understood",
            f"{file} begins with {text[:40]!r}.",
            "A server that is just starting writes it in a moment: run it again. If no server uses this directory, remove the file.",
        ) from None
    return found if is_running(pid) else None


@contextlib.contextmanager
def locked(data_directory: str, other: str) -> Iterator[None]:
    """Keep another command away from a directory, by a lock on the directory itself; nothing is written.

    Raises: LockHeld, at once, saying that ``other`` works there, when another process has it.
    """
    try:
        descriptor = os.open(data_directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise local_error(error, f"opening {data_directory}") from error
    try:
        _take(descriptor, data_directory, other)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, data_directory: str, other: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockHeld(
            f"{other} works on {data_directory}",
            "It holds the lock on the data directory.",
            "Wait until it has ended. If there is none in the list of processes, see with `fuser` who has the directory open.",
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS_HERE:
            raise local_error(error, f"locking {data_directory}") from error
        _log.warning(
            f"{data_directory} cannot be locked", f"The system says: {error.strerror}.", "On such a file system, take care that no two commands run at once."
        )


def _read_major(path: str) -> int:
    text = _read_text(os.path.join(path, "PG_VERSION"))
    version = (text or "").strip()
    major = version.split(".")[0]
    if not (major.isascii() and major.isdigit()):
        absent = "There is no PG_VERSION in it." if os.path.isdir(path) else "There is no such directory."
        reason = absent if text is None else f"Its PG_VERSION says {version[:40]!r}."
        raise NotACluster(
            f"{path} is not a PostgreSQL data directory", reason, "Give the directory that SHOW data_directory prints, the one that holds PG_VERSION."
        )
    if int(major) < OLDEST_MAJOR:
        raise UsageError(
            f"PostgreSQL {version} is not supported",
            f"{path} belongs to it; wal-e works with {OLDEST_MAJOR} to {NEWEST_MAJOR}.",
            "Use the old WAL-E for it, or upgrade the server.",
        )
    return int(major)


def _read_text(file: str) -> str | None:
    """The text of a small file, or None when there is none."""
    try:
        with open(file, "rb") as stream:
            return os.fsdecode(stream.read(8192))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise local_error(error, f"reading {file}") from error
