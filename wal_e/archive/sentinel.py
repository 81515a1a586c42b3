"""The sentinel of a backup: the JSON document whose presence makes the backup exist.

The first four keys are WAL-E's, with the same types; old readers pass over the rest. The last key is a seal, the
SHA-256 of all bytes before it, so that no other byte can change unnoticed. Sentinels of the original have none.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wal_e.archive import layout
from wal_e.errors import DamageError
from wal_e.postgres.page import DamagedPages
from wal_e.postgres.wal import Lsn

_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}\n\Z')


class Tablespace(NamedTuple):
    """Where a tablespace was: object id, location, and its link below the data directory."""

    oid: str
    location: str

    @property
    def link(self) -> str:
        """Path of the link, relative to the data directory."""
        return f"pg_tblspc/{self.oid}"


class PageChecks(NamedTuple):
    """What a push that looked at page checksums found: how many pages it saw, and which are damaged in the cluster itself."""

    pages: int
    damaged: tuple[DamagedPages, ...]

    def document(self) -> dict[str, Any]:
        """The same, as it is stored."""
        return {"pages": self.pages, "damaged": [one._asdict() for one in self.damaged]}

    @classmethod
    def parse(cls, document: dict[str, Any]) -> PageChecks:
        """Read what was stored. Raises: KeyError, TypeError, ValueError."""
        damaged = (DamagedPages(str(one["relation"]), tuple((int(first), int(last)) for first, last in one["blocks"])) for one in document["damaged"])
        return cls(int(document["pages"]), tuple(damaged))


class StoredConfiguration(NamedTuple):
    """Configuration files from outside the data directory: the object they are in, its size in bytes and SHA-256 (hex), and their absolute paths.

    ``places`` has where ``config_file``, ``hba_file`` and ``ident_file`` are; a relative path is one in the data directory.
    """

    key: str
    size: int
    sha256: str
    files: tuple[str, ...]
    places: Mapping[str, str]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> StoredConfiguration:
        """Read what was stored. Raises: KeyError, TypeError, ValueError."""
        places = {str(name): str(place) for name, place in dict(document["places"]).items()}
        return cls(str(document["key"]), int(document["size"]), str(document["sha256"]), tuple(map(str, document["files"])), places)


class Facts(NamedTuple):
    """What this project's sentinels say beyond WAL-E's; absent from backups of the original.

    Times are aware and UTC; ``major`` is PostgreSQL's; sizes are in bytes; ``databases`` has object ids by name.
    What is None was not asked for, and is left out.
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
    page_checksums: PageChecks | None = None
    databases: Mapping[str, int] | None = None
    configuration: StoredConfiguration | None = None


class Sentinel(NamedTuple):
    """One backup's sentinel; ``facts`` is None for a backup of the original WAL-E."""

    stop_segment: str
    stop_offset: int
    expanded_bytes: int
    base_prefix: str
    tablespaces: tuple[Tablespace, ...]
    facts: Facts | None


def render_sentinel(sentinel: Sentinel) -> bytes:
    """Write the document: WAL-E's keys, then ours, then the seal."""
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
        facts = {field: value for field, value in sentinel.facts._asdict().items() if value is not None}
        for field in ("started", "finished"):
            facts[field] = facts[field].isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for field in ("start_lsn", "stop_lsn", "system_identifier"):
            facts[field] = str(facts[field])
        if sentinel.facts.page_checksums is not None:
            facts["page_checksums"] = sentinel.facts.page_checksums.document()
        if sentinel.facts.configuration is not None:
            facts["configuration"] = sentinel.facts.configuration._asdict()
        document["wal_e"] = facts
    return sealed(document)


def sealed(document: Mapping[str, Any]) -> bytes:
    """Write a document with its hash as the last key."""
    unsealed = json.dumps(document, indent=1).encode().removesuffix(b"\n}")
    return unsealed + f',\n "sha256": "{hashlib.sha256(unsealed).hexdigest()}"\n}}\n'.encode()


def parse_sentinel(data: bytes, backup: str) -> Sentinel:
    """Read the document.

    Raises: DamageError naming the key when it is not JSON, lacks what WAL-E always wrote, or is not what was sealed.
    """
    seal = _SEAL.search(data)
    is_whole = seal is not None and hashlib.sha256(data[: seal.start()]).hexdigest() == seal[1].decode()
    try:
        document = json.loads(data)
        if not is_whole and (seal or "wal_e" in document):
            raise ValueError("its hash is not the one in its last line")
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
    known = {field: document[field] for field in Facts._fields if field in document or field not in Facts._field_defaults}
    for field in ("started", "finished"):
        known[field] = datetime.fromisoformat(known[field]).astimezone(UTC)
    for field in ("start_lsn", "stop_lsn"):
        known[field] = Lsn.parse(known[field])
    known["system_identifier"] = int(known["system_identifier"])
    if "page_checksums" in known:
        known["page_checksums"] = PageChecks.parse(known["page_checksums"])
    if "configuration" in known:
        known["configuration"] = StoredConfiguration.parse(known["configuration"])
    return Facts(**known)
