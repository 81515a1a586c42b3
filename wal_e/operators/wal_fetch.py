"""``wal-fetch``: one WAL file out of the store, or the truth about why not.

PostgreSQL calls this as ``restore_command``. Status 1 tells it that the archive ends here, upon
which a recovering server is promoted; so 1 is said only when the store itself answered that
there is no such key. A file appears at its destination whole and checked, or not at all:
PostgreSQL promotes on a segment with garbage in it, too.
"""

from __future__ import annotations

import os

from wal_e.archive import layout
from wal_e.errors import BlobNotFound, DamageError, StoreUnavailable, WaleError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.pids import is_running
from wal_e.postgres.recovery import requested_role
from wal_e.postgres.wal import wal_kind
from wal_e.postgres.wal_file import inspect, system_identifier_around
from wal_e.retry import once_more, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.archive.archive import Archive
    from wal_e.settings import Settings

LOG = Logger(__name__)

EXIT_ABSENT = 1
EXIT_TEMPORARY = 75
EXIT_FAILURE = 200

_MARK, _END = ".wal-e-", ".tmp"  # of a temporary file beside the destination, with the number of its process between them
_SERVERS_OWN = ("RECOVERYXLOG", "RECOVERYHISTORY")  # xlogarchive.c and timeline.c; then durable_rename()


def fetch(archive: Archive, name: str, destination: str) -> None:
    """Bring one WAL file to its destination, whole and checked.

    Raises: BlobNotFound only when the store answered so for every suffix the prefix holds, and holds
    WAL of this cluster: an empty directory may be a mount point whose file system is away;
    WrongCluster, DamageError, LocalFileError, DiskFull, WalRefused, and what the store raises.
    """
    if wal_kind(name) is None:
        raise WalRefused(f"{name!r} is not the name of a WAL file", "", "Use wal-fetch with %f and %p: restore_command = 'wal-e wal-fetch %f %p'.")
    temporary = f"{destination}{_MARK}{os.getpid()}{_END}"
    _remove_abandoned(destination)
    try:
        retrying(lambda: once_more(lambda: download(archive, name, temporary, destination)), archive.fetch_policy)
        _place(temporary, destination)
    except BlobNotFound:
        _require_own_wal(archive, name, destination)
        raise
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    LOG.info(f"fetched {name}", seg=name, action="wal-fetch", state="complete")


def _remove_abandoned(destination: str) -> None:
    """Remove what an earlier call for the same destination left that was killed outright: up to a segment, in pg_wal, for ever."""
    ours = os.path.basename(destination) + _MARK
    try:
        for entry in os.scandir(os.path.dirname(destination) or "."):
            pid = entry.name[len(ours) : -len(_END)] if entry.name.startswith(ours) and entry.name.endswith(_END) else ""
            if pid.isdecimal() and not is_running(int(pid)):
                os.unlink(entry.path)
    except OSError:  # whatever is wrong with the directory is told by who writes there
        pass


def _require_own_wal(archive: Archive, name: str, destination: str) -> None:
    """Refuse to speak of absence where another cluster's WAL is, or nothing at all; at once, for it may stay so."""
    system_identifier = system_identifier_around(destination)
    if system_identifier is not None:
        archive.require(system_identifier)
    if not archive.holds_wal():
        raise StoreUnavailable(
            "this prefix holds no WAL at all",
            f"{archive.store.url} is empty, so it cannot be said that {name} does not exist.",
            "Nothing was archived yet, or the prefix is wrong, or the store's file system is not mounted.",
        ) from None


def download(archive: Archive, name: str, temporary: str, destination: str) -> None:
    """Decode the stored file into a temporary one, and look at it; ``destination`` tells whose cluster it is for.

    Raises: BlobNotFound, DamageError, and what :func:`fetch` raises.
    """
    try:
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise local_error(error, f"writing {temporary}") from None
    try:
        _decode_first(archive, name, fd)
        _look_at(fd, name, destination)
    except OSError as error:
        raise local_error(error, f"writing {temporary}") from None
    finally:
        os.close(fd)


def _decode_first(archive: Archive, name: str, fd: int) -> None:
    """Decode the file under the first suffix that is there: our own, else one of those the prefix says it has."""
    own = archive.pipeline.suffix
    try:
        return archive.decode(layout.wal_key(name, own), fd)
    except BlobNotFound:
        pass
    for suffix in archive.wal_suffixes():
        if suffix != own:
            try:
                return archive.decode(layout.wal_key(name, suffix), fd)
            except BlobNotFound:
                pass
    raise BlobNotFound(f"the store has no {name}", f"{archive.store.url} was asked and holds no such WAL file.")


def _look_at(fd: int, name: str, destination: str) -> None:
    """Look closer than PostgreSQL does: size, header, position and cluster."""
    try:
        inspect(fd, name, destination)
    except WalRefused as refused:
        raise DamageError(
            f"what is stored as {name} is not that WAL file", str(refused), "Do not go on without this segment; look for another copy of it."
        ) from None


def _place(source: str, destination: str) -> None:
    """Move a checked file to its destination, durably.

    What the server names for itself it flushes itself before it gives it the name of a segment, and
    throws away after a crash.
    """
    try:
        if os.path.basename(destination) in _SERVERS_OWN:
            os.rename(source, destination)
            return
        flush(source)
        os.rename(source, destination)
        flush(os.path.dirname(os.path.abspath(destination)))
    except OSError as error:
        raise local_error(error, f"writing {destination}") from None


def flush(path: str) -> None:
    """Make a file or a directory durable. Raises: OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def exit_status(error: BaseException, destination: str, settings: Settings | None) -> int:
    """The exit status that tells PostgreSQL the truth about a failure.

    1 for confirmed absence; the temporary status when a standby asks and may ask again; the
    failure status, which stops the server, for everything else, our own mistakes included.
    """
    temporary, failure = EXIT_TEMPORARY, EXIT_FAILURE
    if settings is not None:
        try:
            temporary, failure = settings.fetch_status_temporary, settings.fetch_status_failure
        except WaleError:
            pass  # the setting itself is what is wrong
    if isinstance(error, BlobNotFound):
        return EXIT_ABSENT
    if isinstance(error, WaleError) and error.transient and _role(destination) == "standby":
        return temporary
    return failure


def _role(destination: str) -> str | None:
    """What the server is doing, by the signal files beside ``pg_wal``, else in the working directory."""
    try:
        return requested_role(os.path.dirname(os.path.dirname(os.path.abspath(destination)))) or requested_role(os.getcwd())
    except OSError:
        return None
