"""What came of a backup's last drill, remembered beside it: ``drill.json``.

Each drill replaces the document. It goes with the backup when that is deleted, and may itself be deleted at any time.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, NamedTuple

from wal_e.archive import layout
from wal_e.archive.catalog import READ_LANES, Backup
from wal_e.blobstore.base import BlobStore
from wal_e.errors import BlobNotFound
from wal_e.log import Logger
from wal_e.pipeline import pool

LOG = Logger(__name__)

FORMAT = 1
PROVEN, FAILED = "proven", "failed"
MAX_REASON = 2000  # characters

_TIMES = ("finished", "last_commit")


class DrillRecord(NamedTuple):
    """One drill: when it ended, its outcome, and, when that is "failed", the reason.

    ``target`` says in words what was recovered to; ``lsn``, ``last_commit`` and ``timeline`` where that was. ``checked_with`` is
    "pg_amcheck", "amcheck" or "" for nothing, ``statements`` the number of assertions that held. What a failed drill did not come
    to is None. Times are aware and UTC, durations in seconds.
    """

    finished: datetime
    outcome: str
    reason: str
    target: str
    server_version: str
    restored_bytes: int
    lsn: str | None = None
    last_commit: datetime | None = None
    timeline: int | None = None
    checked_with: str | None = None
    statements: int | None = None
    fetch_s: float | None = None
    recovery_s: float | None = None
    check_s: float | None = None


def write_drill(store: BlobStore, backup: str, record: DrillRecord) -> None:
    """Remember a drill in place of the last one."""
    document = {"format": FORMAT, **drill_document(record)}
    store.put(layout.drill_key(backup), [json.dumps(document, indent=1).encode() + b"\n"])


def read_drill(store: BlobStore, backup: str) -> DrillRecord | None:
    """The last drill of a backup; None where there was none, or none that can be understood."""
    try:
        return _parsed(b"".join(store.get(layout.drill_key(backup))))
    except BlobNotFound:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        LOG.warning(f"{layout.drill_key(backup)} cannot be understood", f"{type(error).__name__}: {error}. The backup itself does not need it.")
        return None


def drills_of(store: BlobStore, backups: list[Backup]) -> dict[str, DrillRecord | None]:
    """The same for many backups, by their names."""
    read = pool.run(lambda backup: read_drill(store, backup.name), backups, READ_LANES)
    return {outcome.item.name: outcome.value() for outcome in read}


def drill_document(record: DrillRecord) -> dict[str, Any]:
    """One drill as JSON."""
    document = record._asdict()
    for field in _TIMES:
        if document[field] is not None:
            document[field] = document[field].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return document


def _parsed(data: bytes) -> DrillRecord:
    document = json.loads(data)
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']!r}")
    known = {field: document[field] for field in DrillRecord._fields}
    for field in _TIMES:
        if known[field] is not None:
            known[field] = datetime.fromisoformat(known[field]).astimezone(UTC)
    return DrillRecord(**known)
