"""The place of a drill: a scratch directory with a data directory in it, and a server there that does no harm to anybody.

The server has a configuration of its own. That of the backup may name other directories, libraries that are
not on this host, or other servers; and above all it archives, into the store that the drill reads from. What the
backup's says in ``postgresql.auto.conf`` is put out of the way, and what must never happen is forbidden on the command line, too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from wal_e.errors import LocalFileError, local_error
from wal_e.log import Logger
from wal_e.operators.prefetch_directory import PrefetchDirectory
from wal_e.postgres.cluster import read_postmaster
from wal_e.postgres.instance import Launch
from wal_e.postgres.programs import Programs
from wal_e.postgres.recovery import AUTO_CONF, RECOVERY_CONF, RECOVERY_SIGNAL, STANDBY_SIGNAL, setting_line

LOG = Logger(__name__)

REMOVE, KEEP = "remove", "keep"  # what becomes of the directory afterwards

PREFIX = "wal-e-drill-"
LOCK = "lock"  # a file in the directory, locked by the drill that works there
MAX_SOCKET_BYTES = 100  # a socket's path is limited to 107, in sun_path of unix(7)
PATIENCE_S = 10.0  # for a prefetch that has not noticed yet that its server has ended

# Never archive, listen, subscribe, or run what the cluster's own server runs beside its sessions.
_FORBIDDEN = {
    "archive_mode": "off",
    "listen_addresses": "",
    "max_logical_replication_workers": "0",
    "max_wal_senders": "0",
    "shared_preload_libraries": "",
}
# Nothing here has to survive a crash. Without hot standby, the sizes of the original's shared memory need not be known.
_ORDINARY = {
    "hot_standby": "off",
    "shared_buffers": "64MB",
    "huge_pages": "off",
    "max_connections": "20",
    "max_prepared_transactions": "1000",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "restart_after_crash": "off",
    "ssl": "off",
    "logging_collector": "off",
    "log_destination": "stderr",
    "lc_messages": "C",
    "unix_socket_permissions": "0700",
    "unix_socket_group": "",
}

_HINT = "With --keep, the directory and its server.log are left to look into."


class Configuration(NamedTuple):
    """How the server of a drill is to recover: ``restore_command``, the recovery target's settings, more settings, and its port."""

    restore_command: str
    targets: Mapping[str, str]
    settings: Mapping[str, str]
    port: int


class Scratch:
    """A scratch directory; ``data`` is where the backup goes."""

    def __init__(self, path: str, sockets: str) -> None:
        self.path = path
        self.data = os.path.join(path, "data")
        self.log = os.path.join(path, "server.log")
        self._sockets = sockets

    def launch(self, programs: Programs, configuration: Configuration, environ: Mapping[str, str]) -> Launch:
        """Configure the restored directory; say how its server is started. Raises: LocalFileError, DiskFull."""
        forbidden = {**_FORBIDDEN, **{name: value for name, value in configuration.settings.items() if name == "shared_preload_libraries"}}
        try:
            self._configure(programs, configuration)
        except OSError as error:
            raise local_error(error, f"configuring the server in {self.path}") from None
        settings = {"config_file": self._file("postgresql.conf"), **forbidden}
        return Launch(self.data, programs, self.log, settings, {**environ, "WALE_LOG_DESTINATION": "stderr"}, hint=_HINT)

    def _configure(self, programs: Programs, configuration: Configuration) -> None:
        for name in (STANDBY_SIGNAL, RECOVERY_CONF, RECOVERY_SIGNAL):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.data, name))
        recovery = {"restore_command": configuration.restore_command, **configuration.targets}
        settings = {**_ORDINARY, **programs.in_place_settings, "unix_socket_directories": self._sockets, "port": str(configuration.port)}
        settings |= {"hba_file": self._file("pg_hba.conf"), "ident_file": self._file("pg_ident.conf"), **configuration.settings}
        if programs.major >= 12:
            settings |= recovery
            self._write(os.path.join(self.data, RECOVERY_SIGNAL), "")
        else:
            self._write(os.path.join(self.data, RECOVERY_CONF), _lines_of(recovery))
        self._write(os.path.join(self.data, AUTO_CONF), "")
        self._write(self._file("postgresql.conf"), _lines_of(settings))
        self._write(self._file("pg_hba.conf"), "local all all trust\n")
        self._write(self._file("pg_ident.conf"), "")
        owner = os.stat(self.data)
        if os.geteuid() == 0:
            for path in {self.path, self._sockets}:
                os.chown(path, owner.st_uid, owner.st_gid)

    def _file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _write(self, path: str, text: str) -> None:
        with open(path, "w", opener=_private) as stream:
            stream.write(text)
        if os.geteuid() == 0:
            owner = os.stat(self.data)
            os.chown(path, owner.st_uid, owner.st_gid)


@contextlib.contextmanager
def scratch(parent: str | None, afterwards: str) -> Iterator[Scratch]:
    """Make a scratch directory below a directory, by default that for temporary files; afterwards "remove" or "keep" it.

    What an earlier drill left there that was killed is removed first.

    Raises: LocalFileError, DiskFull.
    """
    parent = os.path.abspath(parent or tempfile.gettempdir())
    with contextlib.ExitStack() as locks:
        try:
            path = sockets = _made(parent, locks)
            if len(os.fsencode(path)) > MAX_SOCKET_BYTES - len(".s.PGSQL.65535"):
                sockets = _made("/tmp", locks)
        except OSError as error:
            raise local_error(error, f"making a scratch directory in {parent}") from None
        try:
            yield Scratch(path, sockets)
        finally:
            if afterwards == REMOVE:
                for place in {path, sockets}:
                    _remove(place)
            else:
                os.unlink(os.path.join(path, LOCK))
                LOG.info(f"{path} is kept", f"Start its server with: postgres -D {path}/data -c config_file={path}/postgresql.conf", action="drill")


def _made(parent: str, locks: contextlib.ExitStack) -> str:
    """Make a directory that is locked as long as we live."""
    _remove_abandoned(parent)
    path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    new = os.path.join(path, f"{LOCK}.new")
    descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    locks.callback(os.close, descriptor)
    with contextlib.suppress(OSError):  # where nothing can be locked, there is nothing that another drill could remove
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(new, os.path.join(path, LOCK))
    return path


def _remove_abandoned(parent: str) -> None:
    """Remove the directories of drills that were killed: ours, with a lock that nobody holds. One that is kept has none."""
    for name in sorted(name for name in os.listdir(parent) if name.startswith(PREFIX)):
        path = os.path.join(parent, name)
        try:
            descriptor = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_uid == os.geteuid():
                _remove_or_tell(path)
        except (OSError, LocalFileError):
            continue
        finally:
            os.close(descriptor)


def _remove_or_tell(path: str) -> None:
    running = read_postmaster(os.path.join(path, "data"))
    if running is not None:
        LOG.warning(f"the server of an earlier drill runs in {path}", f"Its drill has ended; it is process {running.pid}.", "Stop it.", action="drill")
        return
    LOG.warning(f"removing {path}", "A drill that was killed left it.", action="drill")
    _remove(path)


def _remove(path: str) -> None:
    _outlast_prefetch(os.path.join(path, "data", "pg_wal"))
    deadline = time.monotonic() + PATIENCE_S
    shutil.rmtree(path, ignore_errors=True)
    while os.path.lexists(path) and time.monotonic() < deadline:  # a wal-fetch that is just ending writes there
        time.sleep(0.1)
        shutil.rmtree(path, ignore_errors=True)
    if os.path.lexists(path):
        LOG.warning(f"{path} could not be removed", "Something still writes there, or its files belong to somebody else.", "Remove it.", action="drill")


def _outlast_prefetch(pg_wal: str) -> None:
    """Wait for the end of the process that prefetches for a server that has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while PrefetchDirectory(pg_wal).is_attended() and time.monotonic() < deadline:
        time.sleep(0.05)


def _lines_of(settings: Mapping[str, str]) -> str:
    return "".join(setting_line(name, value) for name, value in settings.items())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
