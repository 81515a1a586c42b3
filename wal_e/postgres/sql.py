"""The session of a backup with PostgreSQL.

A backup lives and dies with its session, so the session is protected against every timeout
the server knows, and whatever ends it is told as one error. psycopg's errors are translated
here, in one place.
"""

from __future__ import annotations

import os
import time

import psycopg

from wal_e.errors import BackupInterrupted, ServerRefused
from wal_e.postgres.config_files import PLACES
from wal_e.postgres.connection import INSUFFICIENT_PRIVILEGE, PASSING, Questions, connection_to, said, wrong_cluster, wrong_instance
from wal_e.postgres.control import read_control
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Literal

    from wal_e.errors import WaleError
    from wal_e.postgres.cluster import Cluster

_IN_PRODUCTION = 6  # DB_IN_PRODUCTION in catalog/pg_control.h
_LOOKS = 5  # a checkpoint or a promotion may come between two looks at pg_control
_LOOK_PAUSE_S = 0.1

_NOT_IN_PREREQUISITE_STATE = "55000"  # when stopping: promoted meanwhile, or full_page_writes was off


class StoppedBackup(NamedTuple):
    """What the server returns at the end of a backup; the two files byte for byte."""

    stop: Lsn
    label: bytes
    tablespace_map: bytes


def connect(cluster: Cluster, environ: Mapping[str, str], *, sleep: Callable[[float], None] = time.sleep) -> Session:
    """Open a session with the server that runs on the cluster's data directory.

    libpq's variables decide where; without PGHOST or PGSERVICE the server is found through
    postmaster.pid, without PGDATABASE the database is "postgres".

    Raises: ServerUnavailable; WrongCluster when the server is not the one of the directory; ServerRefused.
    """
    connection = connection_to(environ, cluster)
    try:
        session = Session(connection, cluster)
        session._prepare()
        session._check_cluster(sleep)
    except BaseException:
        connection.close()
        raise
    return session


class Session(Questions):
    """One protected session; a context manager. ``in_recovery`` is as it was when it began, ``segment_size`` in bytes."""

    version_text: str
    in_recovery: bool

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]], cluster: Cluster) -> None:
        super().__init__(connection)
        self._cluster = cluster
        self.segment_size = cluster.control.segment_size

    def is_received(self) -> bool:
        """Ask whether somebody receives the WAL through a replication slot at this moment. Raises: BackupInterrupted, ServerRefused."""
        query = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical' AND active)"
        [(is_received,)] = self._rows("asking who receives its WAL", query)
        return bool(is_received)

    def role(self) -> str:
        """Ask what the server is now: "primary" or "standby". Raises: BackupInterrupted, ServerRefused."""
        [(in_recovery,)] = self._rows("asking for the server's role", "SELECT pg_is_in_recovery()")
        return "standby" if in_recovery else "primary"

    def start_backup(self, label: str, *, checkpoint: Literal["spread", "fast"] = "spread") -> Lsn:
        """Begin a non-exclusive backup and return its start; a spread checkpoint may take minutes.

        Raises: BackupInterrupted, ServerRefused.
        """
        query = "SELECT pg_backup_start(%s, %s)::text" if self.version_num >= 150000 else "SELECT pg_start_backup(%s, %s, false)::text"
        [(start,)] = self._rows("starting the backup", query, (label, checkpoint == "fast"))
        return Lsn.parse(start)

    def stop_backup(self) -> StoppedBackup:
        """End the backup without waiting for the archive; after an error nothing is left but to close.

        Raises: BackupInterrupted when the session, or a condition of the backup, was lost; ServerRefused.
        """
        call = "pg_backup_stop(false)" if self.version_num >= 150000 else "pg_stop_backup(false, false)"
        with self._explained("stopping the backup"):
            # Paths of tablespaces are bytes in no particular encoding: have none converted.
            self._connection.execute("SET client_encoding = 'SQL_ASCII'")
            result = self._connection.execute(f"SELECT lsn, labelfile, spcmapfile FROM {call}").pgresult
            assert result is not None
            stop, label, tablespace_map = (result.get_value(0, column) or b"" for column in range(3))
            self._connection.execute("SET client_encoding = 'UTF8'")
        return StoppedBackup(Lsn.parse(stop.decode("ascii")), label, tablespace_map)

    def databases(self) -> dict[str, int]:
        """Ask which databases there are: their object ids by name. Raises: BackupInterrupted, ServerRefused."""
        # As bytes, for a name may have been given in any encoding.
        rows = self._rows("asking for the databases", "SELECT textsend(datname::text), oid::bigint FROM pg_database ORDER BY oid")
        return {bytes(name).decode("utf-8", "backslashreplace"): oid for name, oid in rows}

    def configuration(self) -> dict[str, str]:
        """Ask where the files of the configuration are; without those that this role may not know. Raises: BackupInterrupted, ServerRefused."""
        # As bytes, for a path is in no particular encoding.
        query = """SELECT name, convert_to(setting, current_setting('server_encoding')) FROM pg_settings
            WHERE name = ANY (%s) AND setting <> '' ORDER BY name"""
        rows = self._rows("asking for the configuration's files", query, (list(PLACES),))
        return {name: os.fsdecode(bytes(place)) for name, place in rows}

    def recovery_timeline(self) -> int:
        """Ask a standby on which timeline a backup that just stopped ends. Raises: BackupInterrupted, ServerRefused."""
        [(timeline,)] = self._rows("asking for the timeline", "SELECT min_recovery_end_timeline FROM pg_control_recovery()")
        return int(timeline)

    def ping(self) -> None:
        """Prove that the session is alive, and keep it so. Raises: BackupInterrupted."""
        self._rows("keeping the session alive", "SELECT 1")

    def archiver_failure(self) -> str | None:
        """Tell in a sentence what the archiver fails at, or None if its last attempt was a success.

        Raises: BackupInterrupted, ServerRefused.
        """
        query = """SELECT last_failed_wal, to_char(last_failed_time AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), failed_count
            FROM pg_stat_archiver WHERE last_failed_time > coalesce(last_archived_time, '-infinity')"""
        for wal, moment, count in self._rows("asking for the state of the archiver", query):
            return f"The server's last attempt to archive failed: {wal} at {moment} UTC, {count} failures in all."
        return None

    def _prepare(self) -> None:
        settings = ["search_path = pg_catalog", "statement_timeout = 0", "lock_timeout = 0", "idle_in_transaction_session_timeout = 0"]
        if self.version_num >= 140000:  # without the check, a server that waits for a checkpoint stays with a dead client
            settings += ["idle_session_timeout = 0", "client_connection_check_interval = '5s'"]
        if self.version_num >= 170000:
            settings.append("transaction_timeout = 0")
        with self._explained("preparing the session"):
            self._connection.execute("; ".join(f"SET {setting}" for setting in settings))
        [(self.version_text, self.in_recovery)] = self._rows("preparing the session", "SELECT version(), pg_is_in_recovery()")

    def _check_cluster(self, sleep: Callable[[float], None]) -> None:
        """Compare the server's pg_control with the one in the directory: first the cluster, then the instance.

        A standby or a copy has the same identifier, but another last checkpoint or another state.
        """
        query = """SELECT system_identifier::text, redo_lsn::text, timeline_id, pg_is_in_recovery() FROM pg_control_system(), pg_control_checkpoint()"""
        for look in range(_LOOKS):
            sleep(_LOOK_PAUSE_S if look else 0)
            [(text, redo, timeline, in_recovery)] = self._rows("asking which cluster the server has", query)
            identifier = int(text) % 2**64
            here = read_control(self._cluster.path)
            if identifier != here.system_identifier:
                raise wrong_cluster(identifier, self._cluster.path, here.system_identifier)
            if (Lsn.parse(redo), timeline, in_recovery) == (here.redo, here.timeline, here.state != _IN_PRODUCTION):
                return
        raise wrong_instance(
            f"Both have system identifier {identifier}, but the server's last checkpoint is {redo} on timeline {timeline} and it is "
            f"{'in recovery' if in_recovery else 'in production'}, while {self._cluster.path} has {here.redo} on timeline {here.timeline} and is "
            f"{here.state_words}: one is a standby or a copy of the other."
        )

    def _translated(self, error: psycopg.Error, doing: str) -> WaleError:
        state = error.sqlstate or ""
        if self._is_lost(error):
            return BackupInterrupted(
                f"the session with PostgreSQL was lost while {doing}", said(error), "See the server's log for the reason, then run it again."
            )
        if state.startswith(PASSING) or (state == _NOT_IN_PREREQUISITE_STATE and doing == "stopping the backup"):
            return BackupInterrupted(f"PostgreSQL gave up while {doing}", said(error), error.diag.message_hint or "Run it again.")
        hint = self._privilege_hint() if state == INSUFFICIENT_PRIVILEGE else error.diag.message_hint or ""
        return ServerRefused(f"PostgreSQL refused while {doing}", said(error), hint)

    def _privilege_hint(self) -> str:
        functions = (
            "pg_backup_start(text, boolean), pg_backup_stop(boolean)"
            if self.version_num >= 150000
            else "pg_start_backup(text, boolean, boolean), pg_stop_backup(boolean, boolean)"
        )
        info = self._connection.info
        return (
            f'Connect as a superuser (PGUSER), or let one run, in database "{info.dbname}": GRANT EXECUTE ON FUNCTION {functions} TO "{info.user}"; '
            f'GRANT pg_read_all_settings TO "{info.user}";'
        )
