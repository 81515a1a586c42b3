"""A directory that holds a copy already, as the target of a restore.

It is accepted when it is of the same cluster, as ``global/pg_control`` says, or what a restore of
ours left when it was killed, and when nobody uses it: no server of its own, and no other
server here that shares a tablespace or ``pg_wal`` with it, as one does whose data directory was
copied with its links.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from wal_e.archive.sentinel import Facts, Sentinel
from wal_e.errors import TargetRefused, local_error
from wal_e.operators.restore_local_wal import PG_WAL
from wal_e.operators.restore_tablespaces import TABLESPACES, planned_locations, require_apart
from wal_e.operators.restore_target import TablespaceChoice, Target, absolute, require_place
from wal_e.postgres.cluster import read_postmaster
from wal_e.postgres.control import CONTROL_FILE
from wal_e.tar.destination import HELD_CONTROL

_IDENTIFIER_BYTES = 8


def held_target(path: str, sentinel: Sentinel, facts: Facts, choice: TablespaceChoice) -> Target:
    """Check a directory that is not empty as a target.

    Raises: TargetRefused, UsageError, LocalFileError.
    """
    path = absolute(path)
    require_stopped(path)
    _require_same_cluster(path, facts)
    locations = {} if choice.blind else _locations(path, sentinel, choice)
    require_apart(path, locations)
    for oid, location in locations.items():
        if os.path.realpath(location) != linked_location(path, f"{TABLESPACES}/{oid}"):
            require_place(oid, location)
    _require_unshared(path, {os.path.realpath(place) for place in (*locations.values(), os.path.join(path, PG_WAL))})
    return Target(path, locations, choice)


def is_held(path: str) -> bool:
    """Whether a directory holds a cluster, or part of one."""
    return any(os.path.lexists(os.path.join(path, name)) for name in (CONTROL_FILE, HELD_CONTROL, "PG_VERSION"))


def require_stopped(path: str) -> None:
    """Refuse a directory that a server runs on; a file that a dead one left does not count. Raises: TargetRefused, LocalFileError."""
    running = read_postmaster(path)
    if running is not None:
        raise TargetRefused(
            f"a server runs on {path}",
            f"Its postmaster.pid names process {running.pid}, which lives.",
            "Stop it first. If that process is none of PostgreSQL's, remove postmaster.pid. Nothing was touched.",
        )


def followed_links(target: Target) -> frozenset[str]:
    """The links in a target that lead where they should: those of tablespaces, and that of ``pg_wal``."""
    locations = target.locations
    links = {link for link, location in locations.items() if linked_location(target.path, link) == os.path.realpath(location)}
    return frozenset(links | ({PG_WAL} if linked_location(target.path, PG_WAL) else set()))


def linked_location(path: str, link: str) -> str | None:
    """The directory that a link in a directory leads to; None when it is no such link."""
    place = os.path.join(path, link)
    return os.path.realpath(place) if os.path.islink(place) and os.path.isdir(place) else None


def _require_same_cluster(path: str, facts: Facts) -> None:
    for name in (CONTROL_FILE, HELD_CONTROL):
        try:
            with open(os.path.join(path, name), "rb") as stream:
                identifier = stream.read(_IDENTIFIER_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise local_error(error, f"reading {os.path.join(path, name)}") from None
        found = int.from_bytes(identifier, "little")
        if found == facts.system_identifier or (name == HELD_CONTROL and len(identifier) < _IDENTIFIER_BYTES):
            return
        raise TargetRefused(
            f"{path} belongs to another cluster",
            f"Its {name} has system identifier {found}, the backup {facts.system_identifier}.",
            "Restore into a new directory; nothing in this one was touched.",
        )
    raise TargetRefused(
        f"{path} is not known to be a copy of this cluster",
        f"It is not empty, and there is no {CONTROL_FILE} in it to tell.",
        "Restore into a new directory; nothing in this one was touched.",
    )


def _locations(path: str, sentinel: Sentinel, choice: TablespaceChoice) -> dict[str, str]:
    """The location of every tablespace: as chosen, else as linked now, else as recorded where that is asked for."""
    if choice.spec is None:
        return planned_locations(path, sentinel, None)
    linked = {oid: linked_location(path, f"{TABLESPACES}/{oid}") for oid in (tablespace.oid for tablespace in sentinel.tablespaces)}
    spec = {oid: {"loc": location} for oid, location in linked.items() if location} | dict(choice.spec)
    return planned_locations(path, sentinel, spec)


def _require_unshared(path: str, places: set[str]) -> None:
    own = os.path.realpath(path)
    for other in _served_directories():
        if other == own:
            continue
        used = {os.path.realpath(os.path.join(other, PG_WAL))}
        with contextlib.suppress(OSError):
            used |= {os.path.realpath(os.path.join(other, TABLESPACES, name)) for name in os.listdir(os.path.join(other, TABLESPACES))}
        for place in sorted(places & used):
            raise TargetRefused(
                f"{place} is in use by another server",
                f"The server that runs on {other} keeps files there, and a link in {path} leads there too.",
                "Make the link lead to a directory of its own, or choose a place with --tablespace. Nothing was touched.",
            )


def _served_directories() -> Iterator[str]:
    """The data directories of the servers that can be seen from here; a server works in its own."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            directory = os.readlink(f"/proc/{pid}/cwd")
            if os.path.exists(os.path.join(directory, "postmaster.pid")):
                yield directory
