"""Short questions to a server: what its archiver did, where its WAL is, and slots for WAL that is still needed.

A plain session, nothing protected: each question has a few seconds, and a session that is lost
is opened again by whoever asks. Most of it needs no privilege; what does says which.
"""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg

from wal_e.errors import ServerRefused, ServerUnavailable
from wal_e.postgres.connection import INSUFFICIENT_PRIVILEGE, PASSING, Questions, connection_to, said, wrong_cluster
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from wal_e.errors import WaleError
    from wal_e.postgres.cluster import Cluster

STATEMENT_TIMEOUT_S = 10

_DUPLICATE_OBJECT = "42710"
_UNDEFINED_OBJECT = "42704"
_CONFIGURATION_LIMIT = "53400"  # all replication slots are in use

_ARCHIVER_QUERY = """SELECT last_archived_wal, extract(epoch FROM last_archived_time)::float8, last_failed_wal, extract(epoch FROM last_failed_time)::float8,
    archived_count, failed_count, extract(epoch FROM stats_reset)::float8 FROM pg_stat_archiver"""

# After a promotion pg_control may name the old timeline until the next checkpoint; the name of a segment does not.
# In recovery a segment cannot be named: there the newest that was received, replayed or checkpointed counts.
_POSITION_QUERY = """SELECT pg_is_in_recovery(),
    CASE WHEN pg_is_in_recovery() THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_flush_lsn() END::text,
    CASE WHEN pg_is_in_recovery() THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) END,
    greatest((SELECT timeline_id FROM pg_control_checkpoint()), (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
             (SELECT received_tli FROM pg_stat_wal_receiver))"""


class ArchiverStats(NamedTuple):
    """``pg_stat_archiver``: names and aware UTC times, None for what has not happened."""

    last_archived_wal: str | None
    last_archived_time: datetime | None
    last_failed_wal: str | None
    last_failed_time: datetime | None
    archived_count: int
    failed_count: int
    stats_reset: datetime | None

    @property
    def is_failing(self) -> bool:
        """Whether the last attempt was a failure."""
        if self.last_failed_time is None:
            return False
        return self.last_archived_time is None or self.last_failed_time > self.last_archived_time


class Position(NamedTuple):
    """How far a server's WAL is: flushed on a "primary"; received or replayed, whichever is more, on a "standby"."""

    lsn: Lsn
    timeline: int
    role: str


class Slot(NamedTuple):
    """A physical replication slot: from where it keeps WAL, whether somebody reads, and whether that WAL is there ("lost"); None for unknown."""

    name: str
    restart_lsn: Lsn | None
    active: bool
    wal_status: str | None


def connect(environ: Mapping[str, str], cluster: Cluster | None = None) -> Monitor:
    """Open a session: where libpq's variables say, else with the server that runs on the cluster's data directory.

    Raises: ServerUnavailable; ServerRefused; WrongCluster when the server has another system identifier than the cluster.
    """
    connection = connection_to(environ, cluster)
    try:
        monitor = Monitor(connection)
        monitor._prepare()
        if cluster is not None and (identifier := monitor.system_identifier()) != cluster.control.system_identifier:
            raise wrong_cluster(identifier, cluster.path, cluster.control.system_identifier)
    except BaseException:
        connection.close()
        raise
    return monitor


class Monitor(Questions):
    """One plain session; a context manager. Each method raises ServerUnavailable when the session is lost, ServerRefused when the server refuses."""

    def archiver(self) -> ArchiverStats:
        """Ask what the archiver did, and what it failed at last."""
        [row] = self._rows("asking for the state of the archiver", _ARCHIVER_QUERY)
        archived_wal, archived_s, failed_wal, failed_s, archived_count, failed_count, reset_s = row
        return ArchiverStats(archived_wal, _moment(archived_s), failed_wal, _moment(failed_s), archived_count, failed_count, _moment(reset_s))

    def position(self) -> Position:
        """Ask how far the server's WAL is, on which timeline, and whether the server is a standby."""
        [(in_recovery, lsn, named_timeline, known_timeline)] = self._rows("asking for the position in the WAL", _POSITION_QUERY)
        return Position(Lsn.parse(lsn), int(named_timeline, 16) if named_timeline else known_timeline, "standby" if in_recovery else "primary")

    def system_identifier(self) -> int:
        """Ask which cluster this is."""
        [(text,)] = self._rows("asking which cluster the server has", "SELECT system_identifier::text FROM pg_control_system()")
        return int(text) % 2**64

    def segment_size(self) -> int:
        """Ask for the size of a WAL segment in bytes."""
        [(size_bytes,)] = self._rows("asking for the size of a segment", "SELECT bytes_per_wal_segment FROM pg_control_init()")
        return int(size_bytes)

    def slot(self, name: str) -> Slot | None:
        """Look at a physical replication slot; None when there is none of this name."""
        wal_status = "wal_status" if self.version_num >= 130000 else "NULL"
        query = f"SELECT slot_name::text, restart_lsn::text, active, {wal_status} FROM pg_replication_slots WHERE slot_name = %s AND slot_type = 'physical'"
        for found, lsn, active, status in self._rows("looking for the replication slot", query, (name,)):
            return Slot(found, Lsn.parse(lsn) if lsn else None, active, status)
        return None

    def create_slot(self, name: str) -> None:
        """Make a physical replication slot that keeps WAL from now on; one that exists stays as it is. Needs the attribute REPLICATION."""
        doing = "creating the replication slot"
        with self._explained(doing):
            try:
                self._connection.execute("SELECT pg_create_physical_replication_slot(%s, true)", (name,))
            except psycopg.Error as error:
                if error.sqlstate != _DUPLICATE_OBJECT:
                    raise
        if self.slot(name) is None:
            raise ServerRefused(
                f"PostgreSQL refused while {doing}", f"{name} exists, and is a slot for logical replication.", "Choose another name for the slot."
            )

    def drop_slot(self, name: str) -> None:
        """Remove a replication slot, and with it the reason to keep WAL for it; an absent one is no error."""
        with self._explained("dropping the replication slot"):
            try:
                self._connection.execute("SELECT pg_drop_replication_slot(%s)", (name,))
            except psycopg.Error as error:
                if error.sqlstate != _UNDEFINED_OBJECT:
                    raise

    def _prepare(self) -> None:
        with self._explained("preparing the session"):
            self._connection.execute(f"SET search_path = pg_catalog; SET statement_timeout = '{STATEMENT_TIMEOUT_S}s'; SET lock_timeout = 0")

    def _translated(self, error: psycopg.Error, doing: str) -> WaleError:
        state = error.sqlstate or ""
        if self._is_lost(error):
            return ServerUnavailable(f"the session with PostgreSQL was lost while {doing}", said(error), "See the server's log for the reason.")
        if state == _CONFIGURATION_LIMIT:
            return ServerRefused(
                f"PostgreSQL refused while {doing}", said(error), "Drop a slot that nobody uses (see pg_replication_slots), or raise max_replication_slots."
            )
        if state.startswith(PASSING):
            return ServerUnavailable(f"PostgreSQL gave up while {doing}", said(error), error.diag.message_hint or "Run it again.")
        hint = self._privilege_hint(doing) if state == INSUFFICIENT_PRIVILEGE else error.diag.message_hint or ""
        return ServerRefused(f"PostgreSQL refused while {doing}", said(error), hint)

    def _privilege_hint(self, doing: str) -> str:
        user = self._connection.info.user
        if "slot" in doing:
            return f'Connect as a role that may replicate (PGUSER), or let a superuser run: ALTER ROLE "{user}" REPLICATION;'
        return f'Connect as a superuser (PGUSER), or let one grant this right to "{user}".'


def _moment(epoch_s: float | None) -> datetime | None:
    return None if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC)
