"""WAL that waits to be archived: how much, since when, whether that is too much, and giving it up where that was asked for.

An alarm changes nothing: PostgreSQL keeps what is not archived, until its disk is full. Only
``--drop-after`` gives WAL up, oldest segments first, and says so for each file: recovery cannot
pass the gap, so a new base backup is needed at once.
"""

from __future__ import annotations

import time

from wal_e.errors import BacklogAlarm, WalDropped
from wal_e.log import Logger
from wal_e.postgres import archive_status
from wal_e.postgres.wal import wal_kind
from wal_e.progress import shown_seconds
from wal_e.record import NamedTuple

LOG = Logger(__name__)


class Backlog(NamedTuple):
    """Files that wait, in the order in which the server takes them; the age of the longest waiting, in seconds."""

    names: tuple[str, ...]
    oldest_age_s: float


def measure(pg_wal: str, now: float | None = None) -> Backlog:
    """Look at what waits; ``now`` is in seconds since the epoch. Raises: LocalFileError."""
    names = archive_status.ready_names(pg_wal)
    since = [moment for name in names if (moment := archive_status.waiting_since(pg_wal, name)) is not None]
    return Backlog(tuple(names), max((time.time() if now is None else now) - min(since), 0.0) if since else 0.0)


def alarm(backlog: Backlog, limit: int) -> BacklogAlarm | None:
    """The alarm that a backlog beyond the limit raises, None while it is within."""
    if len(backlog.names) <= limit:
        return None
    return BacklogAlarm(
        f"{len(backlog.names)} WAL files wait to be archived",
        f"The limit is {limit}. The oldest is {backlog.names[0]}; the longest wait is {shown_seconds(backlog.oldest_age_s)}.",
        "See the log of wal-push or wal-archive for what is wrong with the store, and watch the free space of pg_wal: PostgreSQL keeps all of this.",
    )


def drop(pg_wal: str, keep: int) -> list[str]:
    """Mark the oldest waiting segments done although they are not stored, until ``keep`` files wait; return their names.

    Files of histories and of backups are small and stay. Each dropped file is an error in the log.

    Raises: LocalFileError.
    """
    waiting = archive_status.ready_names(pg_wal)
    excess = max(len(waiting) - keep, 0)
    dropped = [name for name in waiting if wal_kind(name) in ("segment", "partial")][:excess]
    for name in dropped:
        archive_status.mark_done(pg_wal, name)
        LOG.error(
            WalDropped(
                f"{name} was dropped: it is not in the store and never will be",
                f"More than {keep} WAL files waited, and --drop-after {keep} was given.",
                "Recovery cannot pass this gap. Make a new base backup as soon as the store is back.",
            ),
            seg=name,
            action="push-wal",
        )
    return dropped
