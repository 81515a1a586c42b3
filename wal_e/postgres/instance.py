"""A server that we start ourselves on a data directory, to see how far its recovery gets.

The server is a child, run in the foreground, its log in a file of ours. How far it is, is first read in ``postmaster.pid``, whose
line 8 is its state (``pidfile.h``, from version 10 on): before it says "ready" a connection is refused, and a server without hot
standby says "standby" until its recovery has ended. Then the server is asked. Its exit status tells little and is often taken by
the event loop; whether it was shut down as ``recovery_target_action`` wants it is in ``pg_control``.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import product

import psycopg

from wal_e.errors import ConfigurationError, ServerRefused, ServerUnavailable, WaleError
from wal_e.log import Logger
from wal_e.postgres import tied
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.connection import said
from wal_e.postgres.control import read_control, read_control_bytes
from wal_e.postgres.monitor import Monitor
from wal_e.postgres.programs import Programs
from wal_e.postgres.server_log import explained, open_log, said_in
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

LOG = Logger(__name__)

TIED, FREE = "tied", "free"  # lives: ended with this process, or with it only until leave() is called
ENDED, CONSISTENT = "ended", "consistent"  # what to wait for: the end of recovery, or that the data are consistent
PRIMARY, PAUSED, SHUT_DOWN, RECOVERING = "primary", "paused", "shut down", "recovering"  # what a wait may find

POLL_S = 0.05
LINE_EVERY_S = 60.0
REFUSED_FOR_S = 30.0  # a server that is ready and lets nobody in for so long will not
_STOPS = {
    "fast": ((signal.SIGINT, 60.0), (signal.SIGQUIT, 15.0), (signal.SIGKILL, 15.0)),
    "immediate": ((signal.SIGQUIT, 15.0), (signal.SIGKILL, 15.0)),
}

_STATE_LINE = 8
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_USUAL = "postgres"  # the name of a role and of a database that initdb makes, as a rule
_CLOSED_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_CLEANLY_STOPPED, _IN_PRODUCTION = (1, 2), 6  # DBState in catalog/pg_control.h


class Launch(NamedTuple):
    """What to start: a data directory, with these programs, settings for its command line and environment; the log is appended to.

    A server whose life is "tied" never outlives this process; a "free" one goes on after ``leave()``. ``hint`` is what to do when
    it fails, by default to look into the log.
    """

    data_directory: str
    programs: Programs
    log_path: str
    settings: Mapping[str, str]
    environ: Mapping[str, str]
    life: str = TIED
    hint: str = ""


class Reached(NamedTuple):
    """Where a server is: a "primary", "paused" in recovery, "shut down" at the target, or still "recovering".

    ``lsn`` is the end of what was replayed, ``last_commit`` the aware time of the last transaction in it; None where
    there was none, or the server could not be asked.
    """

    state: str
    lsn: Lsn | None
    last_commit: datetime | None
    timeline: int


def start(launch: Launch) -> Instance:
    """Start a server; as root, as the owner of its data directory. Use the result as a context manager.

    Raises: ConfigurationError, LocalFileError, NotACluster, DamageError.
    """
    owner = os.stat(launch.data_directory)
    if os.geteuid() == 0 and owner.st_uid == 0:
        raise ConfigurationError(
            "PostgreSQL does not run as root",
            f"{launch.data_directory} belongs to root, and so would its server.",
            "Run this as the user that PostgreSQL has here, usually postgres.",
        )
    cluster = Cluster.open(launch.data_directory)
    before = read_control_bytes(cluster.path)[0]
    settings = tuple(word for name, value in launch.settings.items() for word in ("-c", f"{name}={value}"))
    end_signal = int(signal.SIGQUIT) if launch.life == TIED else tied.FREE
    argv = tied.command((launch.programs.server, "-D", cluster.path, *settings), end_signal, owner.st_uid, owner.st_gid)
    log = open_log(launch.log_path)
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    try:
        pid = os.posix_spawn(argv[0], argv, launch.environ, file_actions=actions, setsigdef=_CLOSED_SIGNALS)
    finally:
        os.close(log)
    return Instance(launch, cluster, pid, before)


class Instance:
    """A server that was started; a context manager, which stops it unless :meth:`leave` was called."""

    def __init__(self, launch: Launch, cluster: Cluster, pid: int, control_before: bytes) -> None:
        self.cluster = cluster
        self.pid = pid
        self._launch = launch
        self._control_before = control_before
        self._gone = False
        self._left = False
        self._refused_since: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self._left or kind is not None:
            self.stop("immediate" if kind is not None and self._launch.life == TIED else "fast")

    def leave(self) -> None:
        """Let a free server go on when this process ends."""
        self._left = True

    def is_gone(self) -> bool:
        """Whether the server has ended."""
        if not self._gone:
            try:
                self._gone = os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
            except ChildProcessError:  # the event loop was first
                self._gone = True
        return self._gone

    def stop(self, mode: str) -> None:
        """End the server, "fast" or "immediate"; harder when it does not obey."""
        for number, patience_s in _STOPS[mode]:
            if self.is_gone():
                return
            os.kill(self.pid, number)
            deadline = time.monotonic() + patience_s
            while not self.is_gone() and time.monotonic() < deadline:
                time.sleep(POLL_S)

    def wait(self, until: str) -> Reached:
        """Wait for the end of recovery, which is a promotion, a pause or a shutdown; or only until the data are consistent.

        Raises: ServerRefused when the server ends before that, ServerUnavailable when that or its silence may pass; the log is quoted.
        """
        line_due = time.monotonic() + LINE_EVERY_S
        while True:
            reached = self._look()
            if reached is not None and (reached.state != RECOVERING or until == CONSISTENT):
                return reached
            if time.monotonic() >= line_due:
                line_due += LINE_EVERY_S
                position = reached.lsn if reached and reached.lsn else read_control(self.cluster.path).checkpoint
                LOG.info("recovery goes on", f"The server on {self.cluster.path} is past {position}.", state="progress")
            time.sleep(POLL_S)

    def connect(self, database: str | None = None, user: str | None = None) -> psycopg.Connection[tuple[Any, ...]]:
        """Open a session in autocommit mode, whatever libpq's variables say about other servers; to any database, as any role that may, by default.

        Raises: ServerUnavailable.
        """
        where = self.address()
        owner = os.stat(self.cluster.path).st_uid
        users = [user] if user else dict.fromkeys([self._launch.environ.get("PGUSER") or _USUAL, _USUAL, _login(owner)])
        databases = [database] if database else [_USUAL, "template1"]
        refusal: psycopg.Error | None = None
        for one, place in product(users, databases):
            try:
                with _acting_as(owner):
                    return psycopg.connect(dbname=place, user=one, autocommit=True, prepare_threshold=None, **where)
            except psycopg.Error as error:
                refusal = refusal or error
        assert refusal is not None
        raise ServerUnavailable(
            "cannot connect to the server that was started", said(refusal), "Set PGUSER to a role of the cluster that may log in."
        ) from refusal

    def address(self) -> dict[str, Any]:
        """What to tell libpq about where the server listens, in place of all that its variables say. Raises: ServerUnavailable."""
        postmaster = self.cluster.postmaster()
        if postmaster is None or not (postmaster.socket_directory or postmaster.listen_address):
            raise ServerUnavailable("the server that was started listens nowhere", said_in(self.cluster.path, self._launch.log_path))
        host = postmaster.socket_directory or {"*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(postmaster.listen_address, postmaster.listen_address)
        if postmaster.socket_directory and not host.startswith("@"):
            host = os.path.join(self.cluster.path, host)
        others = {"hostaddr": "", "options": "", "target_session_attrs": "any", "connect_timeout": 10, "client_encoding": "UTF8"}
        return {"host": host, "port": postmaster.port, "fallback_application_name": "wal-e", **others}

    def _look(self) -> Reached | None:
        """Look once; None when the server is not as far as to be asked."""
        if self.is_gone():
            return self._ended()
        state = self._state()
        if state == "standby":
            return Reached(RECOVERING, None, None, read_control(self.cluster.path).timeline)
        if state != "ready":
            return None
        try:
            with _Recovery(self.connect()) as recovery:
                reached = recovery.reached()
        except (ServerUnavailable, ServerRefused) as refused:
            return self._unasked(refused)
        self._refused_since = None
        return reached

    def _state(self) -> str:
        """Line 8 of postmaster.pid, "" while there is none of ours."""
        try:
            with open(os.path.join(self.cluster.path, "postmaster.pid")) as stream:
                lines = stream.read(8192).split("\n")
        except (OSError, ValueError):
            return ""
        return lines[_STATE_LINE - 1].strip() if len(lines) >= _STATE_LINE and lines[0].strip() == str(self.pid) else ""

    def _ended(self) -> Reached:
        """A server that was shut down at its target; any other ending is an error."""
        data, control = read_control_bytes(self.cluster.path)
        if control.state in _CLEANLY_STOPPED and data != self._control_before:
            return Reached(SHUT_DOWN, control.min_recovery_point or control.checkpoint, None, control.timeline)
        hint = self._launch.hint or f"Its log is {self._launch.log_path}."
        raise explained("the server ended before its recovery did", self.cluster.path, self._launch.log_path, hint)

    def _unasked(self, refused: WaleError) -> Reached | None:
        """What can be told of a server that is ready and lets us not in: its rules for logins are its own."""
        control = read_control(self.cluster.path)
        if control.state == _IN_PRODUCTION:
            return Reached(PRIMARY, None, None, control.timeline)
        now = time.monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > REFUSED_FOR_S:
            raise refused
        return None


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return _USUAL


@contextlib.contextmanager
def _acting_as(uid: int) -> Iterator[None]:
    """Be another user meanwhile, if we are root: with the rule "peer", as on Debian, a server lets in by whom the kernel says is connecting."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(uid)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


class _Recovery(Monitor):
    """A session that asks how far recovery is."""

    def reached(self) -> Reached:
        """Ask once."""
        pause = "pg_get_wal_replay_pause_state() = 'paused'" if self.version_num >= 140000 else "pg_is_wal_replay_paused()"
        query = f"""SELECT pg_is_in_recovery(), CASE WHEN pg_is_in_recovery() THEN {pause} ELSE false END,
            pg_last_wal_replay_lsn()::text, (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000000)::bigint"""
        [(in_recovery, paused, lsn, committed_us)] = self._rows("asking how far recovery is", query)
        state = (PAUSED if paused else RECOVERING) if in_recovery else PRIMARY
        last_commit = _UNIX_EPOCH + timedelta(microseconds=committed_us) if committed_us is not None else None
        return Reached(state, Lsn.parse(lsn) if lsn else None, last_commit, self.position().timeline)
