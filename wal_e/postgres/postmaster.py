"""What a running server says of itself in ``postmaster.pid``, without being asked.

Line 8 of the file is the server's state, from PostgreSQL 10 on (``LOCK_FILE_LINE_PM_STATUS`` in ``pidfile.h``). A fast shutdown
writes ``stopping`` there, and then waits for ``archive_command`` to end: whoever only waits for better times should not.
"""

from __future__ import annotations

import os

_STATE_LINE = 8
_MAX_BYTES = 8192


def is_stopping(pg_wal: str) -> bool:
    """Whether the server whose ``pg_wal`` this is was told to shut down and is about to."""
    try:
        with open(os.path.join(os.path.dirname(pg_wal), "postmaster.pid"), "rb") as stream:
            lines = stream.read(_MAX_BYTES).split(b"\n")
    except OSError:
        return False
    return len(lines) >= _STATE_LINE and lines[_STATE_LINE - 1].strip() == b"stopping"
