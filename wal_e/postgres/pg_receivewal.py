"""``pg_receivewal``, PostgreSQL's own receiver of WAL: where it is, how it is run, what its endings mean, what it leaves in its directory.

It writes ``SEGMENT.partial``, padded with zeros to the size of a segment, flushes it and renames it to
``SEGMENT`` when it is full. When it starts, it goes on after the newest file in its directory; with
an empty one it asks the slot only from version 15 on, and begins before that wherever the server is. It
follows a newest file that is an empty ``.partial`` in every version, so we say with one where to begin.

Run as a program, this module ties the receiver to the life of its parent: without that, a receiver
whose ``wal-receive`` was killed would go on and keep the slot from the next one.
"""

from __future__ import annotations

import os
import signal
import sys
from glob import glob
from shutil import which

from wal_e.errors import ConfigurationError, ServerUnavailable, ToolMissing, WalGap
from wal_e.postgres.wal import Lsn, segment_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.errors import WaleError

PROGRAM = "pg_receivewal"
PARTIAL = ".partial"

_BIN_DIRECTORIES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin")  # Debian's, and those of PostgreSQL's own packages for Red Hat's systems
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# A server that vanishes without a word is noticed in a minute; the kernel alone needs a quarter of an hour.
CONNECTION = "keepalives_idle=30 keepalives_interval=10 keepalives_count=3 connect_timeout=10"
CONNECTION_12 = f"{CONNECTION} tcp_user_timeout=60000"  # libpq knows it from 12 on

STATUS_INTERVAL_S = "2"  # how often the server is told what was received, which is what it keeps WAL by

_PAGE_BYTES = 8192
_ALIGNED_BYTES = 8  # a record begins at a multiple of it
_PAGE_HEADER_BYTES = 16  # magic, info, timeline and page address: xlog_internal.h


def find_program() -> str:
    """Find the program: on PATH, beside pg_config, or in the newest directory of a package. Raises: ToolMissing."""
    found = which(PROGRAM)
    beside = os.path.join(os.path.dirname(os.path.realpath(which("pg_config") or PROGRAM)), PROGRAM)
    packaged = sorted((path for pattern in _BIN_DIRECTORIES for path in glob(os.path.join(pattern, PROGRAM))), key=_version_in, reverse=True)
    for path in (found, beside, *packaged):
        # Debian has a wrapper on PATH, which may choose a cluster of its own: rather the program itself.
        if path and os.access(path, os.X_OK) and os.path.basename(os.path.realpath(path)) == PROGRAM:
            return path
    if found:
        return found
    raise ToolMissing(
        f"there is no {PROGRAM}",
        f"It is neither on PATH ({os.environ.get('PATH', '')}) nor in {' or '.join(_BIN_DIRECTORIES)}.",
        "Install PostgreSQL's client programs (apt-get install postgresql-client), of the server's major version or a later one.",
    )


def _version_in(path: str) -> int:
    return int("".join(filter(str.isdigit, path)) or 0)


def command(program: str, directory: str, slot: str, connection: str) -> tuple[str, ...]:
    """The command line that receives into a directory, tied to this process."""
    receive = (program, "--directory", directory, "--slot", slot, "--no-loop", "--no-password", "--status-interval", STATUS_INTERVAL_S, "--dbname", connection)
    return (sys.executable, "-m", __name__, str(os.getpid()), *receive)


def explained(status: int, said: str) -> WaleError:
    """Translate an ending: what can never go on is a WalGap or a ConfigurationError, all else is transient."""
    words = " ".join(said.replace(f"{PROGRAM}: ", "").split())
    how = f"{PROGRAM} was ended by signal {-status}." if status < 0 else f"{PROGRAM} ended with status {status}."
    detail = f"It said: {words}" if words else how
    if "has already been removed" in said or "invalidated" in said:
        return WalGap(
            "the server does not have the WAL any more that comes next",
            detail,
            "Nothing was skipped. See what the store has (wal-e wal-verify). Start with an empty directory, which begins where the store ends; if the server "
            "does not have that any more, use --accept-gap, and make a base backup at once.",
        )
    if "not in this server's history" in said:
        return WalGap(
            "the server's history does not contain what was received",
            detail,
            "A server was promoted that had not got all of this WAL. What was received whole is stored: move the directory away, and start with an empty one.",
        )
    if "incompatible server version" in said:
        return ConfigurationError(
            f"this {PROGRAM} is older than the server", detail, f"Install the {PROGRAM} of the server's major version, and put it on PATH."
        )
    return ServerUnavailable("the server no longer sends WAL", detail, "It is asked again until it does.")


def received_up_to(path: str, name: str, segment_size: int) -> Lsn:
    """How far a segment that is being received has come, by what is in its file.

    Pages come in order into a file of zeros, and each says its own position: the last one is found by halving.

    Raises: OSError.
    """
    start = segment_start(name, segment_size)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        low, high = 0, segment_size // _PAGE_BYTES
        while low < high:
            middle = (low + high) // 2
            header = os.pread(fd, _PAGE_HEADER_BYTES, middle * _PAGE_BYTES)
            if int.from_bytes(header[8:16], "little") == start + middle * _PAGE_BYTES and header[:2] != b"\0\0":
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return start
        page = (low - 1) * _PAGE_BYTES
        used = len(os.pread(fd, _PAGE_BYTES, page).rstrip(b"\0"))
        return Lsn(start + page + -(-used // _ALIGNED_BYTES) * _ALIGNED_BYTES)
    finally:
        os.close(fd)


def _tie_and_run(parent: int, argv: list[str]) -> None:
    """Become the program, which the kernel kills when the parent dies."""
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)  # it died before it could be asked for
    os.execv(argv[0], argv)


if __name__ == "__main__":
    _tie_and_run(int(sys.argv[1]), sys.argv[2:])
