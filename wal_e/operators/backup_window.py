"""The time during which a cluster's files may be copied: opened, kept alive, closed.

Online it is PostgreSQL's non-exclusive backup on one session; a session that ends aborts the
backup, so on any error nothing has to be undone on the server. Offline it is a cleanly
stopped cluster that stays stopped.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple, Protocol, Self, cast

from wal_e.errors import BackupInterrupted, ServerRefused, UsageError, local_error
from wal_e.log import Logger
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.config_files import places_of_stopped
from wal_e.postgres.control import ControlFile, read_control, read_control_bytes
from wal_e.postgres.files import FileEntry
from wal_e.postgres.label import parse_backup_label
from wal_e.postgres.sql import Session, connect
from wal_e.postgres.wal import Lsn, segment_name

LOG = Logger(__name__)


_OF_A_STANDBY = (
    "This server is a standby: its primary writes and archives that segment, when it is full. "
    "SELECT pg_switch_wal() ends it there at once, archive_timeout after a while."
)


class Opened(NamedTuple):
    """The start: timeline, LSN, the server's version text, and WAL files that must travel with the backup."""

    timeline: int
    start: Lsn
    version_text: str
    wal_files: list[FileEntry]


class Closed(NamedTuple):
    """The end: whether WAL must be waited for, the stop LSN, the files of the last partition in their order, and the databases by name, if known."""

    online: bool
    stop: Lsn
    files: list[tuple[str, bytes]]
    databases: dict[str, int] | None


class Window(Protocol):
    """What a push needs of either window."""

    def open(self) -> Opened:
        """Begin; from here on files may be read."""

    def ping(self) -> None:
        """Raise BackupInterrupted when the copy has become worthless."""

    def close(self) -> Closed:
        """End; no file may be read any more."""

    def archiver_failure(self) -> str | None:
        """What the server says about its failing archive_command."""

    def configuration(self) -> dict[str, str]:
        """Where the files of the configuration are, by the names of their settings; asked before ``open()``."""


class OnlineWindow:
    """A non-exclusive backup of a running server, on one protected session."""

    def __init__(self, cluster: Cluster, environ: Mapping[str, str], checkpoint: str) -> None:
        self._cluster = cluster
        self._checkpoint = cast(Literal["spread", "fast"], checkpoint)
        self._session: Session = connect(cluster, environ)
        self._opened: Opened | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._session.close()

    def open(self) -> Opened:
        """Check that WAL is archived at all, then start the backup. Raises: ServerRefused, BackupInterrupted."""
        self._require_archiving()
        if self._checkpoint == "spread":
            LOG.info(
                "waiting for a checkpoint", "The server spreads it over minutes to spare the disks; --fast asks for an immediate one.", action="backup-push"
            )
        label = f"wal-e {datetime.now(UTC).isoformat(timespec='seconds')}"
        start = self._session.start_backup(label, checkpoint=self._checkpoint)
        self._opened = Opened(read_control(self._cluster.path).timeline, start, self._session.version_text, [])
        return self._opened

    def ping(self) -> None:
        """Raise BackupInterrupted when the session, and so the backup, is gone."""
        self._session.ping()

    def close(self) -> Closed:
        """Read pg_control as the last file, then stop the backup. Raises: BackupInterrupted, ServerRefused."""
        assert self._opened is not None
        databases = self._session.databases()
        control, _ = read_control_bytes(self._cluster.path)
        stopped = self._session.stop_backup()
        label = parse_backup_label(stopped.label.decode("utf-8", "surrogateescape"))
        if (label.start, label.timeline) != (self._opened.start, self._opened.timeline):
            raise BackupInterrupted(
                "the server moved to another timeline during the backup",
                f"It began at {self._opened.start} on timeline {self._opened.timeline}; its label says {label.start} on {label.timeline}.",
                "Push again.",
            )
        self._require_timeline(stopped.stop)
        files = [("backup_label", stopped.label)]
        if stopped.tablespace_map:
            files.append(("tablespace_map", stopped.tablespace_map))
        return Closed(True, stopped.stop, [*files, ("global/pg_control", control)], databases)

    def archiver_failure(self) -> str | None:
        """What pg_stat_archiver says about the last failure; on a standby, who else would have to archive."""
        failure = self._session.archiver_failure()
        return failure or (_OF_A_STANDBY if self._session.in_recovery else None)

    def _require_timeline(self, stop: Lsn) -> None:
        """See that a standby still follows the timeline on which the backup started; its label does not tell where it stopped."""
        assert self._opened is not None
        timeline = self._session.recovery_timeline() if self._session.in_recovery else self._opened.timeline
        if timeline != self._opened.timeline:
            raise BackupInterrupted(
                "the standby followed its primary to another timeline during the backup",
                f"It began at {self._opened.start} on timeline {self._opened.timeline} and ended at {stop} on timeline {timeline}.",
                "Push again when the new primary has made a checkpoint and the standby has replayed it.",
            )

    def configuration(self) -> dict[str, str]:
        """What the server says; nothing where our role may not know."""
        return self._session.configuration()

    def _require_archiving(self) -> None:
        archiving = self._session.archiving()
        is_archived = archiving.mode != "off" and (archiving.command or archiving.library)
        if self._session.in_recovery or is_archived or self._session.is_received():
            return
        raise ServerRefused(
            "the server does not archive its WAL",
            f"archive_mode is {archiving.mode}, archive_command is {archiving.command or 'empty'}, and nobody receives from a replication slot; "
            "a base backup is worth nothing without its WAL.",
            "Set archive_mode = on and archive_command = 'wal-e wal-push %p' (archive_mode needs a restart), or run wal-e wal-receive; then push again.",
        )


class OfflineWindow:
    """A stopped cluster. Its last segment is not in the archive, so it goes into the backup."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def open(self) -> Opened:
        """Check that the cluster is cleanly stopped. Raises: UsageError, LocalFileError."""
        self._require_stopped()
        control = self._cluster.control
        first, last = (segment_name(control.timeline, lsn, control.segment_size) for lsn in (control.redo, control.checkpoint))
        files = [self._wal_file(name) for name in sorted({first, last})]
        return Opened(control.timeline, control.redo, f"PostgreSQL {self._cluster.major}", files)

    def ping(self) -> None:
        """Raise BackupInterrupted when the cluster was started."""
        if self._cluster.postmaster() is not None or self._control() != self._cluster.control:
            raise BackupInterrupted(
                "the server was started during an offline backup", f"{self._cluster.path} has changed.", "Push again without --while-offline."
            )

    def close(self) -> Closed:
        """Check once more that nothing ran. Raises: BackupInterrupted."""
        data, _ = read_control_bytes(self._cluster.path)
        self.ping()
        return Closed(False, self._cluster.control.checkpoint, [("global/pg_control", data)], None)

    def archiver_failure(self) -> None:
        """There is no archiver."""
        return

    def configuration(self) -> dict[str, str]:
        """What can be told from the directory. Raises: UsageError."""
        return places_of_stopped(self._cluster.path)

    def _control(self) -> ControlFile:
        return read_control(self._cluster.path)

    def _require_stopped(self) -> None:
        running = self._cluster.postmaster()
        if running is not None:
            raise UsageError(
                "the server is running, and --while-offline was given",
                f"Process {running.pid} runs on {self._cluster.path}.",
                "Leave --while-offline out, or stop the server.",
            )
        if not self._cluster.is_cleanly_stopped():
            raise UsageError(
                "the cluster was not shut down cleanly",
                f"pg_control says: {self._cluster.control.state_words}.",
                "Start the server and stop it again (pg_ctl stop -m fast), or back it up while it runs.",
            )

    def _wal_file(self, name: str) -> FileEntry:
        path = os.path.join("pg_wal", name)
        try:
            status = os.stat(os.path.join(self._cluster.path, path))
        except OSError as error:
            raise local_error(error, f"reading {path}, which holds the cluster's last checkpoint,") from None
        return FileEntry(path, "file", status.st_size, 0o600, int(status.st_mtime), status.st_uid, status.st_gid)
