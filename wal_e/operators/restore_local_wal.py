"""WAL in the ``pg_wal`` of a target that neither the store nor the backup has: a restore over the target would throw it away.

The last segment of a server that crashed is unfinished, so no archive has it, and nothing marks it as ready. Kept, it is
read when the store has no more, and recovery comes to the last transaction that was written. What a copy wrote that has gone its
own way (a primary that was replaced, a copy to test with) is better removed. Which it is, somebody has to say.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.manifest import Manifest
from wal_e.archive.sentinel import Facts
from wal_e.errors import TargetRefused, WaleError, WalRefused, local_error
from wal_e.postgres.control import read_control
from wal_e.postgres.wal import WAL_HEADER_SIZE, Lsn, check_segment, segment_start, wal_kind
from wal_e.tar.comparison import crc32c_of

KEEP, REMOVE, ASK = "keep", "remove", "ask"
PG_WAL = "pg_wal"

_STATUS = "archive_status"
_READY = ".ready"
_CLEANLY_STOPPED = 1  # DB_SHUTDOWNED in catalog/pg_control.h
_SHOWN = 5


class LocalWal(NamedTuple):
    """Names of such WAL files, in order, and what of it stays: paths relative to the data directory."""

    names: tuple[str, ...]
    stays: frozenset[str]

    def sentence(self) -> str:
        """Say what becomes of it."""
        fate = "stays, and recovery to the end goes on with it" if self.stays else "is removed"
        return f"WAL in pg_wal that is not in the archive {fate}: {_shown(self.names)}."


NO_WAL = LocalWal((), frozenset())


def decided(archive: Archive, path: str, facts: Facts, manifest: Manifest, fate: str) -> LocalWal:
    """Look for WAL that is nowhere else, and decide: "keep" it, "remove" it, or refuse to lose it ("ask").

    Raises: TargetRefused, LocalFileError, DamageError of the manifest, StoreError.
    """
    names = _only_here(archive, path, facts, manifest)
    if names and fate == ASK:
        raise TargetRefused(
            f"{path} holds WAL that is not in the archive",
            f"In pg_wal: {_shown(names)}. As a rule that is what the server wrote last.",
            f"--unarchived-wal {KEEP} leaves it there, and recovery to the end goes on with it. --unarchived-wal {REMOVE} throws it away, which is "
            "right for a copy that has gone its own way, as a primary that was replaced. Nothing was touched.",
        )
    return LocalWal(names, _paths_of(path, names) if fate == KEEP else frozenset())


def _only_here(archive: Archive, path: str, facts: Facts, manifest: Manifest) -> tuple[str, ...]:
    """Name the WAL files that are nowhere else and belong to what follows the backup."""
    there = sorted(name for name in _entries(path, PG_WAL) if wal_kind(name) in ("segment", "partial", "history"))
    ready = {name.removesuffix(_READY) for name in _entries(path, PG_WAL, _STATUS) if name.endswith(_READY)}
    found = [name for name in there if name in ready or _holds_wal(path, name, facts)]
    stored = archive.wal_keys_of(found)
    found = [name for name in found if name not in stored]
    if not found:
        return ()
    sums = {member.path: member.crc32c for _, members in manifest.partitions() for member in members if member.path.startswith(f"{PG_WAL}/")}
    return tuple(name for name in found if not _is_in_backup(path, name, sums))


def _shown(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:_SHOWN])}{' and more' if len(names) > _SHOWN else ''}"


def _paths_of(path: str, names: tuple[str, ...]) -> frozenset[str]:
    """These WAL files, and the marks that they are ready."""
    marks = (f"{PG_WAL}/{_STATUS}/{name}{_READY}" for name in names)
    return frozenset([f"{PG_WAL}/{name}" for name in names] + [mark for mark in marks if os.path.lexists(os.path.join(path, mark))])


def _entries(*parts: str) -> list[str]:
    place = os.path.join(*parts)
    try:
        return os.listdir(place)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise local_error(error, f"reading {place}") from None


def _holds_wal(path: str, name: str, facts: Facts) -> bool:
    """Whether a file is a segment of this cluster that the server began to write, at or after the segment in which the backup begins."""
    if wal_kind(name) == "history":
        return False  # the timeline means nothing without WAL on it
    try:
        with open(os.path.join(path, PG_WAL, name), "rb") as stream:
            header = check_segment(name, stream.read(WAL_HEADER_SIZE), os.fstat(stream.fileno()).st_size, facts.system_identifier)
    except WalRefused:
        return False
    except OSError as error:
        raise local_error(error, f"reading {os.path.join(path, PG_WAL, name)}") from None
    start = segment_start(name.removesuffix(".partial"), header.segment_size)
    return start + header.segment_size > facts.start_lsn and not _is_only_a_shutdown(path, start)


def _is_only_a_shutdown(path: str, start: Lsn) -> bool:
    """Whether a segment has one record, the checkpoint of a shutdown: a server that archives switches to a new segment before it."""
    try:
        control = read_control(path)
    except WaleError:
        return False
    return control.state == _CLEANLY_STOPPED and control.checkpoint == start + WAL_HEADER_SIZE


def _is_in_backup(path: str, name: str, sums: dict[str, int]) -> bool:
    """Whether the backup, one of a stopped server, has the same file."""
    expected = sums.get(f"{PG_WAL}/{name}")
    return expected is not None and crc32c_of(os.path.join(path, PG_WAL, name)) == expected
