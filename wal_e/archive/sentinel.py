"""The sentinel of a backup: the JSON document whose presence makes the backup exist.

The first four keys are WAL-E's, with the same types; old readers pass over the rest.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wal_e.archive import layout
from wal_e.errors import DamageError
from wal_e.postgres.wal import Lsn


class Tablespace(NamedTuple):
    """Where a tablespace was: object id, location, and its link below the data directory."""

    oid: str
    location: str

    @property
    def link(self) -> str:
        """Path of the link, relative to the data directory."""
        return f"pg_tblspc/{self.oid}"


class Facts(NamedTuple):
    """What this project's sentinels say beyond WAL-E's; absent from backups of the original.

    Times are aware and UTC; ``major`` is PostgreSQL's; sizes are in bytes.
    """

    started: datetime
    finished: datetime
    start_lsn: Lsn
    stop_lsn: Lsn
    timeline: int
    system_identifier: int
    major: int
    segment_size: int
    partitions: int
    stored_bytes: int
    manifest_key: str
    manifest_sha256: str
    online: bool
    wal_e_version: str


class Sentinel(NamedTuple):
    """One backup's sentinel; ``facts`` is None for a backup of the original WAL-E."""

    stop_segment: str
    stop_offset: int
    expanded_bytes: int
    base_prefix: str
    tablespaces: tuple[Tablespace, ...]
    facts: Facts | None


def render_sentinel(sentinel: Sentinel) -> bytes:
    """Write the document: WAL-E's keys, then ours."""
    document: dict[str, Any] = {
        "wal_segment_backup_stop": sentinel.stop_segment,
        "wal_segment_offset_backup_stop": f"{sentinel.stop_offset:08d}",
        "expanded_size_bytes": sentinel.expanded_bytes,
        "spec": {
            "base_prefix": sentinel.base_prefix.rstrip("/") + "/",
            "tablespaces": [tablespace.oid for tablespace in sentinel.tablespaces],
            **{tablespace.oid: {"loc": tablespace.location.rstrip("/") + "/", "link": tablespace.link} for tablespace in sentinel.tablespaces},
        },
    }
    if sentinel.facts is not None:
        facts = sentinel.facts._asdict()
        for field in ("started", "finished"):
            facts[field] = facts[field].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for field in ("start_lsn", "stop_lsn", "system_identifier"):
            facts[field] = str(facts[field])
        document["wal_e"] = facts
    return json.dumps(document, indent=1).encode() + b"\n"


def parse_sentinel(data: bytes, backup: str) -> Sentinel:
    """Read the document.

    Raises: DamageError naming the key when it is not JSON, or lacks what WAL-E always wrote.
    """
    try:
        document = json.loads(data)
        spec = document.get("spec") or document.get("Spec") or {}
        tablespaces = tuple(Tablespace(oid, spec[oid]["loc"]) for oid in spec.get("tablespaces", []))
        return Sentinel(
            str(document["wal_segment_backup_stop"]),
            int(document["wal_segment_offset_backup_stop"]),
            int(document["expanded_size_bytes"]),
            str(spec.get("base_prefix", "")),
            tablespaces,
            _facts(document["wal_e"]) if "wal_e" in document else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(
            f"{layout.sentinel_key(backup)} cannot be understood",
            f"It is not the JSON document of a backup ({type(error).__name__}: {error}).",
            "Restore that key from a copy of the store, or use another backup.",
        ) from None


def _facts(document: dict[str, Any]) -> Facts:
    known = {field: document[field] for field in Facts._fields}
    for field in ("started", "finished"):
        known[field] = datetime.fromisoformat(known[field]).astimezone(UTC)
    for field in ("start_lsn", "stop_lsn"):
        known[field] = Lsn.parse(known[field])
    known["system_identifier"] = int(known["system_identifier"])
    return Facts(**known)
