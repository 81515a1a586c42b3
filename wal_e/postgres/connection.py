"""Connecting to PostgreSQL: where the server is, whether its version will do, and how its refusals are told.

libpq reads its variables itself; here is added what they leave open. Without PGHOST and
PGSERVICE, the server of a data directory is found through its postmaster.pid.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod

import psycopg

from wal_e import log
from wal_e.errors import ServerRefused, ServerUnavailable, WrongCluster
from wal_e.postgres.cluster import NEWEST_MAJOR, OLDEST_MAJOR
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Any, Self

    from wal_e.errors import WaleError
    from wal_e.postgres.cluster import Cluster

PASSING = ("08", "53", "57")  # SQLSTATE classes: connection, resources, operator intervention
INSUFFICIENT_PRIVILEGE = "42501"

_ARCHIVING_QUERY = "SELECT current_setting('archive_mode'), current_setting('archive_command'), coalesce(current_setting('archive_library', true), '')"

_CONNECT_TIMEOUT_S = 10
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}  # s, s, and ms

_WHERE_HINT = (
    "Check PGHOST, PGPORT and PGSERVICE, and the directory on the command line. With none of the three set, the server is found through postmaster.pid."
)


class ArchivingSettings(NamedTuple):
    """How the server archives: mode is "off", "on" or "always"; empty strings for what is not set."""

    mode: str
    command: str
    library: str


def connection_to(environ: Mapping[str, str], cluster: Cluster | None) -> psycopg.Connection[tuple[Any, ...]]:
    """Open a connection in autocommit mode: where libpq's variables say, else to the server of the cluster, if one is given.

    Raises: ServerUnavailable; ServerRefused when the server is too old.
    """
    log.hide(environ.get("PGPASSWORD", ""))
    try:
        connection = psycopg.connect(autocommit=True, prepare_threshold=None, **parameters(environ, cluster))
    except psycopg.Error as error:
        raise ServerUnavailable("cannot connect to PostgreSQL", said(error), _connect_hint(error)) from error
    try:
        check_version(connection.info.server_version)
    except ServerRefused:
        connection.close()
        raise
    return connection


class Questions(ABC):
    """What all sessions have in common; a context manager. How a refusal is told, each kind of session knows for itself."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection
        self.version_num = connection.info.server_version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the session, and with it a backup that was not stopped."""
        self._connection.close()

    def archiving(self) -> ArchivingSettings:
        """Ask how the server archives."""
        [(mode, command, library)] = self._rows("reading the settings for archiving", _ARCHIVING_QUERY)
        return ArchivingSettings(mode, "" if mode == "off" else command, library)  # it shows "(disabled)" when the mode is off

    def _rows(self, doing: str, query: str, parameters: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._explained(doing):
            return self._connection.execute(query, parameters).fetchall()

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise self._translated(error, doing) from error

    @abstractmethod
    def _translated(self, error: psycopg.Error, doing: str) -> WaleError:
        """What an error of psycopg means."""

    def _is_lost(self, error: psycopg.Error) -> bool:
        return self._connection.closed or error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def wrong_cluster(server: int, path: str, directory: int) -> WrongCluster:
    """The error for a server and a directory with different system identifiers."""
    return WrongCluster(
        "the server and the data directory belong to different clusters", f"The server has system identifier {server}, {path} has {directory}.", _WHERE_HINT
    )


def wrong_instance(detail: str) -> WrongCluster:
    """The error for a server of the same cluster that runs on another directory."""
    return WrongCluster("the server does not run on this data directory", detail, _WHERE_HINT)


def parameters(environ: Mapping[str, str], cluster: Cluster | None) -> dict[str, Any]:
    """What to tell libpq beyond what it reads from the process's own environment."""
    found: dict[str, Any] = {"client_encoding": "UTF8", "fallback_application_name": "wal-e", **_KEEPALIVES}
    for option in psycopg.pq.Conninfo.get_defaults():
        variable = (option.envvar or b"").decode()
        if environ.get(variable) and environ[variable] != os.environ.get(variable):
            found.setdefault(option.keyword.decode(), environ[variable])
    if not environ.get("PGCONNECT_TIMEOUT"):
        found["connect_timeout"] = _CONNECT_TIMEOUT_S
    if environ.get("PGSERVICE"):
        return found
    if not environ.get("PGDATABASE"):
        found["dbname"] = "postgres"
    if cluster is not None and not environ.get("PGHOST") and not environ.get("PGHOSTADDR"):
        host, port = _local_address(cluster)
        found["host"] = host
        if not environ.get("PGPORT"):
            found["port"] = port
    return found


def _local_address(cluster: Cluster) -> tuple[str, int]:
    """Where the server of this directory listens: a directory of sockets or a host, and a port."""
    postmaster = cluster.postmaster()
    if postmaster is None:
        raise ServerUnavailable(
            f"no PostgreSQL server runs on {cluster.path}",
            "Its postmaster.pid is absent or left over, and neither PGHOST nor PGSERVICE is set.",
            "Start the server, or set PGHOST if it runs in another container. For a backup of a stopped cluster there is --while-offline.",
        )
    host = {"*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(postmaster.listen_address, postmaster.listen_address)
    if postmaster.socket_directory:
        host = postmaster.socket_directory
        if not host.startswith("@"):  # those live in Linux's abstract namespace
            host = os.path.join(cluster.path, host)
    if not host or not postmaster.port:
        raise ServerUnavailable(
            "postmaster.pid does not say where the server listens",
            f"Process {postmaster.pid} runs on {cluster.path}; it may be starting, or be a standalone backend.",
            "Run it again when the server accepts connections, or set PGHOST and PGPORT.",
        )
    return host, postmaster.port


def check_version(version_num: int) -> None:
    """Refuse a server that is too old. Raises: ServerRefused."""
    if version_num < OLDEST_MAJOR * 10000:
        raise ServerRefused(
            f"PostgreSQL {version_num // 10000}.{version_num // 100 % 100} is not supported",
            f"wal-e works with {OLDEST_MAJOR} to {NEWEST_MAJOR}.",
            "Use the old WAL-E for it, or upgrade the server.",
        )


def said(error: psycopg.Error) -> str:
    """The server's own words, in one line, as the detail of an error of ours."""
    lines = (error.diag.message_primary or str(error), error.diag.message_detail or "")
    text = " ".join(" ".join(lines).split()).rstrip(".")
    return log.masked(f"The answer was: {text}." if text else "")


def _connect_hint(error: psycopg.Error) -> str:
    if error.pgconn is not None and error.pgconn.needs_password:
        return "The server asks for a password: put it into ~/.pgpass, or set PGPASSWORD."
    text = str(error)
    if "authentication" in text or "pg_hba.conf" in text or 'role "' in text:
        return "Check PGUSER, the password (~/.pgpass or PGPASSWORD) and pg_hba.conf. With peer authentication, run as the system user of that name."
    return "Is the server running and accepting connections there? Check PGHOST, PGPORT and PGUSER."
