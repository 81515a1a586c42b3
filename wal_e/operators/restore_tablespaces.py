"""Where the tablespaces of a restored cluster go: where the user says, where they were, or where links lead already."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from wal_e.archive.sentinel import Sentinel
from wal_e.errors import TargetRefused, UsageError

TABLESPACES = "pg_tblspc"


def planned_locations(path: str, sentinel: Sentinel, spec: Mapping[str, Any] | None) -> dict[str, str]:
    """The location of every tablespace, by OID: from the spec, else where links point already. Raises: TargetRefused, UsageError."""
    recorded = {tablespace.oid: tablespace.location for tablespace in sentinel.tablespaces}
    if spec is None:
        return _linked(path, list(recorded))
    strangers = [name for name in spec if name.isascii() and name.isdigit() and name not in recorded]
    if strangers:
        raise UsageError(
            f"the backup has no tablespace {', '.join(strangers)}",
            f"It has the tablespaces {', '.join(recorded) or 'none'}.",
            "See the list with wal-e backup-list --json; the server knows them in pg_tablespace.",
        )
    listed = spec.get("tablespaces", list(recorded))
    if not (isinstance(listed, list) and all(isinstance(oid, str) for oid in listed)):
        raise UsageError("the restore spec does not list tablespaces", f'Its "tablespaces" is {listed!r}.', 'Write {"tablespaces": ["OID", ...], ...}.')
    locations = {}
    for oid in listed:
        given = spec.get(oid, {})
        location = given.get("loc") if isinstance(given, dict) else None
        location = location or recorded.get(oid)
        if oid not in recorded or not isinstance(location, str) or not os.path.isabs(location):
            raise UsageError(
                f"the restore spec does not say where tablespace {oid} goes",
                f"The backup has the tablespaces {', '.join(recorded) or 'none'}.",
                'Write {"tablespaces": ["OID"], "OID": {"loc": "/absolute/path/", "link": "pg_tblspc/OID"}}.',
            )
        locations[oid] = location.rstrip("/") or "/"
    missing = set(recorded) - set(locations)
    if missing:
        raise UsageError(
            f"the restore spec leaves out tablespace {', '.join(sorted(missing))}", "The backup has files in it.", "Name every tablespace of the backup."
        )
    return locations


def _linked(path: str, oids: list[str]) -> dict[str, str]:
    links = {oid: os.path.join(path, TABLESPACES, oid) for oid in oids}
    bad = [link for link in links.values() if not (os.path.islink(link) and os.path.isdir(link))]
    if bad:
        raise TargetRefused(
            "the backup has tablespaces, and the target has no place for them",
            f"Not a symbolic link to a directory: {', '.join(bad)}.",
            "Make these links to empty directories, or use --restore-spec SOURCE (the original locations), --restore-spec FILE, or --blind-restore.",
        )
    return {oid: os.path.realpath(link) for oid, link in links.items()}


def require_apart(path: str, locations: Mapping[str, str]) -> None:
    """Refuse one place for two purposes: their files would overwrite each other. Raises: TargetRefused."""
    taken = {os.path.realpath(path): "the data directory"}
    for oid, location in locations.items():
        top = os.path.relpath(os.path.realpath(location), os.path.realpath(path)).split("/")[0]
        if top in ("base", "global") or top.startswith("pg_"):
            raise TargetRefused(
                f"{location} lies among PostgreSQL's own files",
                f"Tablespace {oid} would be in {top} of the data directory.",
                "Give it a directory outside the data directory.",
            )
        other = taken.setdefault(os.path.realpath(location), f"tablespace {oid}")
        if other != f"tablespace {oid}":
            raise TargetRefused(
                f"{location} is the place of two things", f"It is that of {other} and of tablespace {oid}.", "Give each tablespace a directory of its own."
            )
