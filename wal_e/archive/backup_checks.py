"""What the last verifications of a backup found, remembered beside it: ``verified.json``.

One entry for each way of looking, ``fast`` and ``full``: a quick look from cron does not hide what the last whole
reading found. Runs write the whole document; of two at once the last one wins. It goes with the backup when that is
deleted, and may itself be deleted at any time.
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
WAYS = ("fast", "full")
MAX_PROBLEMS = 20  # sentences that are remembered


class BackupCheck(NamedTuple):
    """One verification: when it ended (aware, UTC), whether all was well, bytes read from the store, pages looked at, and what was wrong.

    ``problems`` counts all of them, ``named`` has the first.
    """

    time: datetime
    ok: bool
    checked_bytes: int
    pages: int
    problems: int
    named: tuple[str, ...]


Checks = dict[str, BackupCheck]


def read_checks(store: BlobStore, backup: str) -> Checks:
    """The last verification in each way; empty where there was none, or none that can be understood."""
    try:
        return _parsed(b"".join(store.get(layout.verified_key(backup))))
    except BlobNotFound:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        LOG.warning(f"{layout.verified_key(backup)} cannot be understood", f"{type(error).__name__}: {error}. The backup itself does not need it.")
        return {}


def checks_of(store: BlobStore, backups: list[Backup]) -> dict[str, Checks]:
    """The same for many backups, by their names."""
    read = pool.run(lambda backup: read_checks(store, backup.name), backups, READ_LANES)
    return {outcome.item.name: outcome.value() for outcome in read}


def write_check(store: BlobStore, backup: str, way: str, check: BackupCheck) -> None:
    """Remember a verification in place of the last one in the same way."""
    checks = {**read_checks(store, backup), way: check}
    document = {"format": FORMAT, **{name: check_document(checks[name]) for name in WAYS if name in checks}}
    store.put(layout.verified_key(backup), [json.dumps(document, indent=1).encode() + b"\n"])


def check_document(check: BackupCheck) -> dict[str, Any]:
    """One verification as JSON."""
    time = check.time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {**check._asdict(), "time": time, "named": list(check.named)}


def _parsed(data: bytes) -> Checks:
    document = json.loads(data)
    if document["format"] != FORMAT:
        raise ValueError(f"its format is {document['format']!r}")
    return {way: _parsed_check(document[way]) for way in WAYS if way in document}


def _parsed_check(document: dict[str, Any]) -> BackupCheck:
    time = datetime.fromisoformat(document["time"]).astimezone(UTC)
    named = tuple(str(one) for one in document["named"])
    return BackupCheck(time, bool(document["ok"]), int(document["checked_bytes"]), int(document["pages"]), int(document["problems"]), named)
