"""Which files of a data directory belong into a backup.

The rules are those of the server's own ``BASE_BACKUP`` (``sendDir`` and its lists in
``basebackup.c``, versions 10 to 18), so that a restored copy holds what ``pg_basebackup``
would have brought. Three things differ, on purpose: files that give a copy a role
(``standby.signal`` and its kind) and what other tools leave behind (``.wal-e``,
``lost+found``) stay out, and symbolic links outside of PostgreSQL's own directories come
along as links, where the server passes over them with a warning.

``global/pg_control`` is not listed: it is copied last, by whoever makes the backup.
"""

from __future__ import annotations

import os
import re
import stat

from wal_e.errors import UsageError, local_error
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Notice = Callable[[str], None]

# Kept as empty directories, links to them too: the server empties or rebuilds them.
_EMPTIED = frozenset({"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"})

# Where a symbolic link would silently take data out of the backup.
_OWN = frozenset({"PG_VERSION", "base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_stat", "pg_tblspc", "pg_twophase", "pg_xact"})

# Left out in every directory, whatever they are.
_NAMES = frozenset(
    {
        ".DS_Store",
        "backup_label",
        "current_logfiles.tmp",
        "lost+found",
        "postgresql.auto.conf.tmp",
        "postmaster.opts",
        "postmaster.pid",
        "tablespace_map",
    }
)

_RELATION = re.compile(r"([0-9]+)(?:_(fsm|vm|init))?(?:\.[0-9]+)?")
_TEMPORARY_RELATION = re.compile(r"t[0-9]+_[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?")


class FileEntry(NamedTuple):
    """One file, directory or link of a cluster.

    ``path`` is relative to the data directory ("" is the directory itself) and decoded as by
    ``os.fsdecode``; ``kind`` is "directory", "file" or "symlink"; ``size`` is in bytes, 0
    unless a file; ``mode`` has the permission bits; ``mtime`` is in seconds since 1970;
    ``target`` is where a symlink points, else "".
    """

    path: str
    kind: str
    size: int
    mode: int
    mtime: int
    uid: int
    gid: int
    target: str = ""


def walk(data_directory: str, major: int, catalog_version: int, notice: Notice) -> Iterator[FileEntry]:
    """Yield what a backup of this cluster contains: directories before their contents, names sorted.

    The first is the data directory itself. Tablespaces appear below ``pg_tblspc/OID``. Memory
    is bounded by the largest single directory. What vanishes meanwhile is passed over;
    ``notice`` is told in a sentence what is there and does not come along.

    Raises: UsageError for a symbolic link that would take data out of the backup;
    LocalFileError for what cannot be read.
    """
    yield from _Walk(data_directory, major, catalog_version, notice).entries()


def tablespaces(data_directory: str) -> dict[str, str]:
    """Map the OID of each tablespace that lies elsewhere to its location, in order of OID.

    Raises: LocalFileError when ``pg_tblspc`` cannot be read.
    """
    directory = os.path.join(data_directory, "pg_tblspc")
    found = {}
    try:
        for name in sorted(filter(_is_oid, os.listdir(directory)), key=int):
            link = os.path.join(directory, name)
            if os.path.islink(link):
                found[name] = os.readlink(link)
    except OSError as error:
        raise local_error(error, f"reading {directory}") from error
    return found


class _Walk:
    """One walk: the rules of a version, and where the files are."""

    def __init__(self, root: str, major: int, catalog_version: int, notice: Notice) -> None:
        self._root = root
        self._notice = notice
        self._version_directory = f"PG_{major}_{catalog_version}"
        self._names = _NAMES | ({"backup_manifest"} if major >= 13 else set())
        self._prefixes = ("pgsql_tmp", "pg_internal.init") if major >= 11 else ("pgsql_tmp",)
        self._top_names = {".wal-e"} | ({"recovery.signal", "standby.signal"} if major >= 12 else {"recovery.conf", "recovery.done"})
        self._wal_directories = ("archive_status", "summaries") if major >= 17 else ("archive_status",)
        # Version 10 copies temporary and unlogged relations; its start removes them.
        self._relations = re.compile(rf"(?:base|pg_tblspc/[0-9]+/{self._version_directory})/[0-9]+") if major >= 11 else None
        self._elsewhere = _inside(root, tablespaces(root))

    def entries(self) -> Iterator[FileEntry]:
        try:
            status = os.stat(self._root)
        except OSError as error:
            raise local_error(error, f"reading {self._root}") from error
        self._root_mode = stat.S_IMODE(status.st_mode)
        yield _entry("", "directory", status)
        yield from self._contents("")

    def _contents(self, directory: str) -> Iterator[FileEntry]:
        """Yield everything below one directory."""
        names = self._list(directory)
        relations = self._relations is not None and self._relations.fullmatch(directory) is not None
        unlogged = {name[:-5] for name in names if name.endswith("_init")} if relations else set()
        for name in names:
            if name in self._names or name.startswith(self._prefixes) or (not directory and name in self._top_names):
                continue
            if relations and (_TEMPORARY_RELATION.fullmatch(name) or _is_lost_at_a_crash(name, unlogged)):
                continue
            path = f"{directory}/{name}" if directory else name
            status = self._lstat(path)
            if status is None or path == "global/pg_control":
                continue
            if directory == "pg_tblspc":
                yield from self._tablespace(path, status)
            else:
                yield from self._one(path, name, status)

    def _one(self, path: str, name: str, status: os.stat_result) -> Iterator[FileEntry]:
        """Yield one member of a directory, and what is below it."""
        if name in _EMPTIED and _is_directory_or_link(status):
            yield self._emptied(path, status)
        elif path == "pg_wal" and _is_directory_or_link(status):
            empty = self._emptied(path, status)
            yield empty
            for below in self._wal_directories:
                yield empty._replace(path=f"pg_wal/{below}")
        elif stat.S_ISDIR(status.st_mode):
            yield _entry(path, "directory", status)
            if path not in self._elsewhere:
                yield from self._contents(path)
        elif stat.S_ISREG(status.st_mode):
            yield _entry(path, "file", status)
        elif stat.S_ISLNK(status.st_mode):
            yield from self._link(path, status)
        else:
            self._notice(f"{path} is a socket, pipe or device; it is not in the backup")

    def _tablespace(self, path: str, status: os.stat_result) -> Iterator[FileEntry]:
        """Yield a member of ``pg_tblspc``: a link is followed to our version's directory, nothing else there is ours."""
        if not _is_oid(os.path.basename(path)):
            self._notice(f"{path} is not a tablespace; it is not in the backup")
        elif stat.S_ISLNK(status.st_mode):
            below = f"{path}/{self._version_directory}"
            inner = self._lstat(below)
            if inner is None:
                if self._lstat(path) is not None:
                    self._notice(f"{path} leads to {self._target(path)}, where there is no {self._version_directory}; nothing of it is in the backup")
            elif stat.S_ISLNK(inner.st_mode):
                raise self._refusal(below)
            else:
                yield from self._one(below, self._version_directory, inner)
        else:
            yield from self._one(path, os.path.basename(path), status)

    def _link(self, path: str, status: os.stat_result) -> Iterator[FileEntry]:
        if path.split("/", 1)[0] in _OWN:
            raise self._refusal(path)
        target = self._target(path)
        if target:
            self._notice(f"{path} is a symbolic link to {target}; the link is in the backup, what it leads to is not")
            yield _entry(path, "symlink", status, target)

    def _emptied(self, path: str, status: os.stat_result) -> FileEntry:
        """Make the entry of a directory whose contents stay behind; a link to one becomes one, as in pg_basebackup."""
        entry = _entry(path, "directory", status)
        if not stat.S_ISLNK(status.st_mode):
            return entry
        self._notice(f"{path} is a symbolic link to {self._target(path)}; it comes back as an empty directory")
        return entry._replace(mode=self._root_mode)

    def _refusal(self, path: str) -> UsageError:
        return UsageError(
            f"{path} is a symbolic link",
            f"In {self._root} it leads to {self._target(path)}; what is there would be missing from every restored copy.",
            "Put the real file or directory in its place, or move the data into a tablespace, whose link is followed.",
        )

    def _list(self, directory: str) -> list[str]:
        try:
            return sorted(os.listdir(self._full(directory)))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise local_error(error, f"reading {self._full(directory)}") from error

    def _lstat(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(self._full(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise local_error(error, f"reading {self._full(path)}") from error

    def _target(self, path: str) -> str:
        try:
            return os.readlink(self._full(path))
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise local_error(error, f"reading {self._full(path)}") from error

    def _full(self, path: str) -> str:
        return os.path.join(self._root, path)


def _entry(path: str, kind: str, status: os.stat_result, target: str = "") -> FileEntry:
    size = status.st_size if kind == "file" else 0
    return FileEntry(path, kind, size, stat.S_IMODE(status.st_mode), int(status.st_mtime), status.st_uid, status.st_gid, target)


def _inside(root: str, locations: dict[str, str]) -> set[str]:
    """The tablespace locations inside the data directory, relative to it; they are walked once, below ``pg_tblspc``."""
    top = os.path.realpath(root)
    targets = (os.path.realpath(os.path.join(root, "pg_tblspc", target)) for target in locations.values())
    return {os.path.relpath(target, top) for target in targets if target.startswith(f"{top}/")}


def _is_lost_at_a_crash(name: str, unlogged: set[str]) -> bool:
    """Whether this is a fork, other than the initial one, of an unlogged relation."""
    relation = _RELATION.fullmatch(name)
    return relation is not None and relation[2] != "init" and relation[1] in unlogged


def _is_oid(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _is_directory_or_link(status: os.stat_result) -> bool:
    return stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
