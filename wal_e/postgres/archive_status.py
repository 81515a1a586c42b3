"""The server's list of WAL waiting to be archived: ``pg_wal/archive_status``.

``NAME.ready`` says that NAME waits for ``archive_command``, ``NAME.done`` that it was stored
and may be recycled. A helper may rename one to the other for a file that is stored durably:
PostgreSQL 10 to 18 then pass over it without a word.
"""

from __future__ import annotations

import os

from wal_e.errors import local_error
from wal_e.postgres.wal import wal_kind

_STATUS_DIRECTORY = "archive_status"
_READY = ".ready"
_DONE = ".done"


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


def is_done(pg_wal: str, name: str) -> bool:
    """Whether the server takes this file for archived."""
    return os.path.exists(os.path.join(pg_wal, _STATUS_DIRECTORY, name + _DONE))


def mark_done(pg_wal: str, name: str) -> None:
    """Tell the server that this file is archived, durably; nothing to do if it no longer waits.

    Raises: LocalFileError.
    """
    directory = os.path.join(pg_wal, _STATUS_DIRECTORY)
    ready = os.path.join(directory, name + _READY)
    try:
        os.rename(ready, os.path.join(directory, name + _DONE))
        _fsync_directory(directory)
    except FileNotFoundError:
        pass  # the server was faster
    except OSError as error:
        raise local_error(error, f"renaming {ready}") from error


def _fsync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
