"""``wal-push``: one WAL file into the store, for good, or a reason why not.

PostgreSQL calls this as ``archive_command`` and removes the file after status 0, so status 0
means: stored, whole, durable, under a name that held nothing else before. The named file
alone decides the status; neighbours that are also ready go up beside it.
"""

from __future__ import annotations

import os

from wal_e.archive import layout
from wal_e.errors import BlobExists, BlobNotFound, DamageError, LocalFileError, StoreError, WalConflict, WaleError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.pipeline.process import Blocking
from wal_e.postgres import archive_status
from wal_e.postgres.postmaster import is_stopping
from wal_e.postgres.wal import wal_kind
from wal_e.postgres.wal_file import inspect
from wal_e.retry import Policy, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from wal_e.archive.archive import Archive
    from wal_e.settings import Settings

LOG = Logger(__name__)

COMPARE_BYTES = 1024 * 1024
ONCE = Policy(attempts=1, deadline_s=0)


def neighbours(path: str, pool_size: int) -> list[str]:
    """Paths of up to ``pool_size - 1`` further files that PostgreSQL has marked ready, history files first."""
    directory, name = os.path.split(path)
    return [os.path.join(directory, ready) for ready in archive_status.ready_names(directory or ".") if ready != name][: max(pool_size - 1, 0)]


def patience(settings: Settings, path: str) -> Policy:
    """How long to wait for a store that is away: not once the server is shutting down, for it waits for us."""
    pg_wal = os.path.dirname(os.path.abspath(path))
    return Policy(settings.retries, settings.push_deadline_s, is_over=lambda: is_stopping(pg_wal))


def push(archive: Archive, path: str, patience: Policy | None = None) -> None:
    """Store one WAL file; success also when the store holds the same content already.

    Trouble that may pass is waited for with this patience, the archive's if none is given.

    Raises: WalRefused, WrongCluster, WalConflict, LocalFileError, and what the store raises.
    """
    name = os.path.basename(path)
    if wal_kind(name) is None:
        raise WalRefused(
            f"{name!r} is not the name of a WAL file",
            "WAL files are segments (24 hex digits), .history, .backup and .partial files.",
            "Use wal-push with %p: archive_command = 'wal-e wal-push %p'.",
        )
    fd = _opened(path)
    try:
        system_identifier = _inspected(fd, name, path)
        retrying(lambda: _store(archive, name, fd, system_identifier), patience or archive.push_policy)
    finally:
        os.close(fd)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LocalFileError(
            f"there is no WAL file {path}", f"The working directory is {os.getcwd()}.", "PostgreSQL passes a path below its data directory as %p."
        ) from None
    except OSError as error:
        raise local_error(error, f"reading {path}") from None


def _inspected(fd: int, name: str, path: str) -> int | None:
    try:
        return inspect(fd, name, path)
    except OSError as error:
        raise local_error(error, f"reading {path}") from None


def _store(archive: Archive, name: str, fd: int, system_identifier: int | None) -> None:
    store, pipeline = archive.store, archive.pipeline
    suffixes = archive.wal_suffixes() if system_identifier is None else archive.claim(system_identifier).wal_suffixes
    for suffix in suffixes:
        if suffix != pipeline.suffix and _is_stored(archive, name, suffix):
            _compare(archive, name, layout.wal_key(name, suffix), fd)
            return
    key = layout.wal_key(name, pipeline.suffix)
    os.lseek(fd, 0, os.SEEK_SET)
    try:
        store.create(key, pipeline.encode_file(fd))
    except BlobExists:
        _compare(archive, name, key, fd)
        return
    LOG.info(f"pushed {name}", key=store.url_of(key), seg=name, action="push-wal", state="complete")


def _is_stored(archive: Archive, name: str, suffix: str) -> bool:
    try:
        archive.store.stat(layout.wal_key(name, suffix))
    except BlobNotFound:
        return False
    return True


def _compare(archive: Archive, name: str, key: str, fd: int) -> None:
    """Accept what is stored if it is the same; PostgreSQL pushes a segment again after a crash."""
    from tempfile import TemporaryFile

    try:
        spool = TemporaryFile()
    except OSError as error:
        raise local_error(error, f"making a temporary file to compare {name} with what is stored") from None
    with spool as stored:
        try:
            archive.decode(key, stored.fileno())
        except DamageError as damage:
            raise DamageError(
                f"the store holds {name} already, damaged",
                str(damage),
                f"Move {archive.store.url_of(key)} away by hand; the server still has the segment and will push it again.",
            ) from None
        if not _same_content(stored.fileno(), fd):
            raise WalConflict(
                f"the store holds another {name}",
                f"{archive.store.url_of(key)} was not made from this file: two servers write the same timeline under this prefix (split brain), "
                "or a restored copy of the server runs without having been promoted.",
                "Nothing was overwritten. Find the other server; give a copy that shall live on a prefix of its own.",
            )
    LOG.info(f"{name} was stored before, with the same content", key=archive.store.url_of(key), seg=name, action="push-wal", state="skip")


def _same_content(one: int, other: int) -> bool:
    if os.fstat(one).st_size != os.fstat(other).st_size:
        return False
    offset = 0
    while data := os.pread(one, COMPARE_BYTES, offset):
        if data != os.pread(other, len(data), offset):
            return False
        offset += len(data)
    return True


def push_with_neighbours(archive: Archive, path: str, others: list[str]) -> None:
    """Store the named file and, beside it, others that are ready; only the named one decides.

    An other that is stored is marked done; one that is not stays ready, for PostgreSQL to ask. Others are tried
    once, and when the store goes away no more of them are taken.
    """
    batch = _Batch(archive, path)
    groups: dict[str, list[str]] = {}
    for one in sorted([path, *others], key=lambda one: os.path.basename(one)):
        groups.setdefault("" if _is_history(one) else _timeline(one), []).append(one)
    for _, paths in sorted(groups.items()):
        batch.push(paths)


class _Batch:
    """Pushes history files, then one timeline after the other, each in order.

    A timeline's WAL does not go ahead of the file that says where it comes from. And its segments go up side by side
    only while the store has none of them: of two servers that write the same timeline, one is refused at its first
    segment, and its later ones must not have taken the places of the other's.
    """

    def __init__(self, archive: Archive, path: str) -> None:
        self._archive = archive
        self._path = path
        self._is_away = False
        self._blocked: dict[str, WaleError] = {}  # by timeline

    def push(self, paths: list[str]) -> None:
        """Push files of one timeline, or history files. Raises: what the named file meets."""
        for item, error in self._archive.waits.run(self._push, self._wanted(paths)):
            self._note(item, error)

    def _wanted(self, paths: list[str]) -> Iterator[str]:
        goes_alone = True
        for one in paths:
            blocked = self._blocked.get(_timeline(one))
            if one == self._path and isinstance(blocked, WalConflict):
                raise blocked
            if one != self._path and (blocked or self._is_away):
                continue
            if goes_alone and self._is_stored(one):
                self._note(*next(Blocking().run(self._push, [one])))
            else:
                goes_alone = False
                yield one

    def _is_stored(self, one: str) -> bool:
        try:
            return self._archive.has_wal(os.path.basename(one))
        except StoreError:
            return False  # the push will meet the same trouble, and tell it

    def _push(self, one: str) -> None:
        push(self._archive, one, None if one == self._path else ONCE)

    def _note(self, one: str, error: Exception | None) -> None:
        if isinstance(error, WalConflict) or (isinstance(error, WaleError) and _is_history(one)):
            self._blocked[_timeline(one)] = error
        if one == self._path:
            if error is not None:
                raise error
        elif error is None:
            _mark_done(one)
        elif isinstance(error, WaleError):
            self._is_away = self._is_away or error.transient
            LOG.warning(f"{os.path.basename(one)} was not pushed yet: {error.message}", error.detail, action="push-wal")
        else:
            raise error


def _is_history(path: str) -> bool:
    return wal_kind(os.path.basename(path)) == "history"


def _timeline(path: str) -> str:
    return os.path.basename(path)[:8]


def _mark_done(path: str) -> None:
    directory, name = os.path.split(path)
    try:
        archive_status.mark_done(directory or ".", name)
    except WaleError as error:
        LOG.warning(f"{name} is stored but could not be marked done", str(error), "PostgreSQL will push it once more.")
