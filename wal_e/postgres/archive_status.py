"""The server's list of WAL waiting to be archived: ``pg_wal/archive_status``.

``NAME.ready`` says that NAME waits for ``archive_command``, ``NAME.done`` that it was stored
and may be recycled. A helper may rename one to the other for a file that is stored durably:
PostgreSQL 10 to 18 then pass over it without a word.
"""

from __future__ import annotations

import os

from wal_e.errors import local_error
from wal_e.postgres.wal import wal_kind
from wal_e.record import NamedTuple

_STATUS_DIRECTORY = "archive_status"
_READY = ".ready"
_DONE = ".done"


class Marked(NamedTuple):
    """The status of a file, "ready" or "done", and when the file was finished, in seconds since the epoch: the server makes ``.ready`` then."""

    state: str
    since_s: float


def ready_names(pg_wal: str) -> list[str]:
    """Name the WAL files that wait and are there, history files first, then ascending, as the server takes them.

    Files of other kinds are left out; without the directory nothing waits.

    Raises: LocalFileError.
    """
    directory = os.path.join(pg_wal, _STATUS_DIRECTORY)
    try:
        waiting = [entry.removesuffix(_READY) for entry in os.listdir(directory) if entry.endswith(_READY)]
        present = set(os.listdir(pg_wal))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise local_error(error, f"reading {directory}") from error
    names = [name for name in waiting if name in present and wal_kind(name)]
    return sorted(names, key=lambda name: (wal_kind(name) != "history", name))


def waiting_since(pg_wal: str, name: str) -> float | None:
    """When a file was marked ready, in seconds since the epoch; None when it does not wait any more."""
    try:
        return os.stat(os.path.join(pg_wal, _STATUS_DIRECTORY, name + _READY)).st_mtime
    except OSError:
        return None


def statuses(pg_wal: str) -> dict[str, Marked]:
    """All WAL files that have a status, by name, whether or not the file itself is there; without the directory none.

    Raises: LocalFileError.
    """
    directory = os.path.join(pg_wal, _STATUS_DIRECTORY)
    found: dict[str, Marked] = {}
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name, dot, state = entry.name.rpartition(".")
                if dot + state in (_READY, _DONE) and wal_kind(name) and not (name in found and state == "done"):
                    since_s = _modified(entry)
                    if since_s is not None:
                        found[name] = Marked(state, since_s)
    except FileNotFoundError:
        return found
    except OSError as error:
        raise local_error(error, f"reading {directory}") from error
    return found


def _modified(entry: os.DirEntry[str]) -> float | None:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        return None  # the server renamed or removed it meanwhile


def is_done(pg_wal: str, name: str) -> bool:
    """Whether the server takes this file for archived."""
    return os.path.exists(os.path.join(pg_wal, _STATUS_DIRECTORY, name + _DONE))


def mark_done(pg_wal: str, name: str) -> None:
    """Tell the server that this file is archived; nothing to do if it no longer waits.

    Should a crash of the machine undo it, the server asks once more and hears that the file is stored.

    Raises: LocalFileError.
    """
    directory = os.path.join(pg_wal, _STATUS_DIRECTORY)
    ready = os.path.join(directory, name + _READY)
    try:
        os.rename(ready, os.path.join(directory, name + _DONE))
    except FileNotFoundError:
        pass  # the server was faster
    except OSError as error:
        raise local_error(error, f"renaming {ready}") from error
