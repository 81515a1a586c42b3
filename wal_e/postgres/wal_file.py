"""A WAL file on disk, beside the cluster it belongs to."""

from __future__ import annotations

import os

from wal_e.postgres.control import read_system_identifier
from wal_e.postgres.wal import WAL_HEADER_SIZE, check_segment, wal_kind


def system_identifier_around(wal_path: str) -> int | None:
    """The system identifier of the cluster whose ``pg_wal`` a path lies in; None when it lies elsewhere.

    Raises: LocalFileError, DamageError.
    """
    data_directory = os.path.dirname(os.path.dirname(os.path.abspath(wal_path)))
    if not os.path.exists(os.path.join(data_directory, "global", "pg_control")):
        return None
    return read_system_identifier(data_directory)


def inspect(fd: int, name: str, wal_path: str) -> int | None:
    """Check that an open file is the WAL file of this name, for the cluster around a path.

    Return the system identifier, from the file or from the cluster; None when nothing tells it.

    Raises: WalRefused, OSError.
    """
    system_identifier = system_identifier_around(wal_path)
    if wal_kind(name) not in ("segment", "partial"):
        return system_identifier
    header = check_segment(name, os.pread(fd, WAL_HEADER_SIZE, 0), os.fstat(fd).st_size, system_identifier)
    return header.system_identifier
