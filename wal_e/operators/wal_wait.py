"""Waiting until the WAL that a backup needs is in the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from wal_e.archive.archive import Archive
from wal_e.errors import ArchiveTimeout
from wal_e.log import Logger
from wal_e.progress import shown_seconds

LOG = Logger(__name__)

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
FIRST_LINE_AFTER_S = 5.0
LINE_EVERY_S = 60.0


def wait_for_wal(archive: Archive, names: Iterable[str], timeout_s: float, archiver_failure: Callable[[], str | None]) -> None:
    """Return when every named segment is in the store.

    ``archiver_failure`` tells, when asked, what the server says about its failing archive_command.

    Raises: ArchiveTimeout naming the first missing segment; what the store raises.
    """
    deadline = time.monotonic() + timeout_s
    needed = list(names)
    stored = archive.wal_keys_of(needed)
    for name in needed:
        if name not in stored:
            _wait_for_one(archive, name, deadline, timeout_s, archiver_failure)


def _wait_for_one(archive: Archive, name: str, deadline: float, timeout_s: float, archiver_failure: Callable[[], str | None]) -> None:
    pause_s, line_due = FIRST_PAUSE_S, time.monotonic() + FIRST_LINE_AFTER_S
    while not archive.has_wal(name):
        now = time.monotonic()
        if now >= deadline:
            raise ArchiveTimeout(
                f"WAL segment {name} did not arrive in the store within {shown_seconds(timeout_s)}",
                archiver_failure() or "The server reports no failing archive_command.",
                f"The backup cannot be used without it and was not recorded. Does archive_command store at {archive.store.url}? Else look at the server's log, "
                "and at pg_stat_archiver; then push again.",
            )
        if now >= line_due:
            LOG.info(f"waiting for WAL segment {name}", archiver_failure() or "", action="backup-push", seg=name)
            line_due = now + LINE_EVERY_S
        time.sleep(min(pause_s, max(min(deadline, line_due) - now, 0.001)))
        pause_s = min(pause_s * 2, LAST_PAUSE_S)
