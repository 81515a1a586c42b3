"""``wal-status``: does archiving keep up, on one cluster, right now?

Reads the data directory, and asks the server where it answers; the store is never touched, so
this works, and tells the truth about what waits, while the store is away.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from wal_e.errors import BacklogAlarm, ServerRefused, ServerUnavailable, WaleError, local_error
from wal_e.operators import backlog
from wal_e.operators.backlog import Backlog
from wal_e.operators.handshake import archiver_answers
from wal_e.operators.metrics import Metric
from wal_e.postgres import archive_status, monitor
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.connection import ArchivingSettings
from wal_e.postgres.monitor import ArchiverStats, Position
from wal_e.postgres.wal import wal_kind

RATE_WINDOW_S = 900.0  # the rate of WAL is that of the last quarter of an hour
MIN_RATE_SPAN_S = 1.0


class Disk(NamedTuple):
    """The file system of pg_wal: bytes free for this user, bytes in all, and bytes per second of new WAL, None while that is not known."""

    free_bytes: int
    size_bytes: int
    rate: float | None

    @property
    def lasts_s(self) -> float | None:
        """How long the free space lasts if nothing more is archived, in seconds."""
        return self.free_bytes / self.rate if self.rate else None


class ServerFacts(NamedTuple):
    """What the server says."""

    position: Position
    archiving: ArchivingSettings
    archiver: ArchiverStats


class Status(NamedTuple):
    """All that is known: ``resident`` whether a resident archiver runs; ``server`` None with the reason why in ``trouble``."""

    pgdata: str
    system_identifier: int
    major: int
    segment_size: int
    backlog: Backlog
    limit: int
    resident: bool
    disk: Disk
    server: ServerFacts | None
    trouble: WaleError | None
    alarm: BacklogAlarm | None


def look(cluster: Cluster, environ: Mapping[str, str], limit: int, now: float) -> Status:
    """Look at a cluster; ``now`` is in seconds since the epoch.

    Raises: LocalFileError; WrongCluster when the server is another cluster's.
    """
    pg_wal = os.path.join(cluster.path, "pg_wal")
    waiting = backlog.measure(pg_wal, now)
    server: ServerFacts | None = None
    trouble: WaleError | None = None
    try:
        with monitor.connect(environ, cluster) as session:
            server = ServerFacts(session.position(), session.archiving(), session.archiver())
    except (ServerUnavailable, ServerRefused) as error:
        trouble = error
    alarms = [backlog.alarm(waiting, limit), _failure(server.archiver, pg_wal) if server else None]
    return Status(
        cluster.path,
        cluster.control.system_identifier,
        cluster.major,
        cluster.control.segment_size,
        waiting,
        limit,
        archiver_answers(pg_wal),
        _disk(pg_wal, cluster.control.segment_size, now),
        server,
        trouble,
        _merged([alarm for alarm in alarms if alarm is not None]),
    )


def metrics(status: Status) -> list[Metric]:
    """The same as numbers."""
    facts = status.server
    archiver = facts.archiver if facts else None
    return [
        Metric("wal_backlog_files", "gauge", "WAL files that wait to be archived.", len(status.backlog.names)),
        Metric("wal_backlog_oldest_seconds", "gauge", "How long the longest waiting WAL file waits.", status.backlog.oldest_age_s),
        Metric("wal_backlog_limit_files", "gauge", "WAL files that may wait before an alarm is raised.", status.limit),
        Metric("wal_alarm", "gauge", "1 while there is an alarm: too much waits, or the last attempt to archive failed.", int(status.alarm is not None)),
        Metric("wal_resident_archiver_running", "gauge", "1 while a resident archiver runs on the cluster.", int(status.resident)),
        Metric("wal_disk_free_bytes", "gauge", "Free space of the file system of pg_wal.", status.disk.free_bytes),
        Metric("wal_disk_size_bytes", "gauge", "Size of the file system of pg_wal.", status.disk.size_bytes),
        Metric("wal_written_bytes_per_second", "gauge", "How fast the server fills WAL segments.", status.disk.rate),
        Metric("wal_disk_lasts_seconds", "gauge", "How long the free space lasts if nothing more is archived.", status.disk.lasts_s),
        Metric("wal_server_up", "gauge", "1 if the server answered.", int(facts is not None)),
        Metric("wal_position_bytes", "gauge", "Position of the server in the WAL.", int(facts.position.lsn) if facts else None),
        Metric("wal_server_archived_total", "counter", "WAL files that the server's archiver archived.", archiver.archived_count if archiver else None),
        Metric("wal_server_failed_total", "counter", "Attempts of the server's archiver that failed.", archiver.failed_count if archiver else None),
        *(
            Metric(f"wal_server_last_{what}_timestamp_seconds", "gauge", f"When the server's archiver last {verb}.", moment.timestamp() if moment else None)
            for what, verb, moment in (
                ("archived", "succeeded", archiver.last_archived_time if archiver else None),
                ("failed", "failed", archiver.last_failed_time if archiver else None),
            )
        ),
    ]


def _failure(stats: ArchiverStats, pg_wal: str) -> BacklogAlarm | None:
    """An alarm if the last attempt failed and its file still waits: a resident archiver stores files without the server's noticing."""
    if not stats.is_failing or archive_status.waiting_since(pg_wal, stats.last_failed_wal or "") is None:
        return None
    return BacklogAlarm(
        "the server's last attempt to archive failed",
        f"It was for {stats.last_failed_wal}, at {stats.last_failed_time:%Y-%m-%d %H:%M:%S} UTC; {stats.failed_count} attempts failed in all.",
        "See the server's log for what archive_command said.",
    )


def _merged(alarms: list[BacklogAlarm]) -> BacklogAlarm | None:
    """One alarm that says all."""
    if not alarms:
        return None
    return BacklogAlarm("; ".join(alarm.message for alarm in alarms), " ".join(alarm.detail for alarm in alarms), " ".join(alarm.hint for alarm in alarms))


def _disk(pg_wal: str, segment_size: int, now: float) -> Disk:
    try:
        found = os.statvfs(pg_wal)
    except OSError as error:
        raise local_error(error, f"asking for the free space of {pg_wal}") from None
    return Disk(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize, _rate(pg_wal, segment_size, now))


def _rate(pg_wal: str, segment_size: int, now: float) -> float | None:
    """Bytes per second of finished segments within the window; unknown while fewer than two were finished in it."""
    marked = archive_status.statuses(pg_wal).items()
    finished = sorted(mark.since_s for name, mark in marked if wal_kind(name) == "segment" and now - RATE_WINDOW_S <= mark.since_s <= now)
    if len(finished) < 2:
        return None
    return (len(finished) - 1) * segment_size / max(now - finished[0], MIN_RATE_SPAN_S)
