"""Which stored WAL was read and found good, so that the next check reads only what is new: one small key, ``checked_005.json``.

The document has ranges of segments per timeline, the names of other files, and ``as_of``: the time, by the store's
own clock, of the newest object that the check had seen when it began. What was stored later than that is not covered,
even within a range. A damaged file is never in it. Runs write the whole document; of two at once the last one
wins, and what it forgets is checked again.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from wal_e.archive import layout
from wal_e.archive.ranges import Ranges
from wal_e.archive.wal_index import WalIndex
from wal_e.blobstore.base import Blob, BlobStore
from wal_e.errors import BlobNotFound, WalRefused
from wal_e.log import Logger
from wal_e.postgres.wal import wal_kind

LOG = Logger(__name__)

FORMAT = 1
NEVER = datetime.min.replace(tzinfo=UTC)


class CheckedWal:
    """What was found good of what was stored up to ``as_of``; its memory is that of the gaps, and of files that are no segments."""

    def __init__(self, as_of: datetime = NEVER) -> None:
        self.as_of = as_of
        self._segments: dict[int, Ranges] = {}
        self._others: set[str] = set()

    def covers(self, name: str, blob: Blob, index: WalIndex) -> bool:
        """Whether this object was read and found good, and is still the same one."""
        if blob.modified > self.as_of:
            return False
        if wal_kind(name) != "segment":
            return name in self._others
        segments, number = self._segments.get(int(name[:8], 16)), _number(name, index)
        return segments is not None and number is not None and number in segments

    def add(self, name: str, index: WalIndex) -> None:
        """Take note of a file that was found good."""
        number = _number(name, index)
        if wal_kind(name) != "segment":
            self._others.add(name)
        elif number is not None:
            self._segments.setdefault(int(name[:8], 16), Ranges()).add(number)

    def render(self, index: WalIndex) -> bytes:
        """Write the document."""
        timelines = {f"{timeline:08X}": [names[:2] for names in index.names(timeline, ranges)] for timeline, ranges in sorted(self._segments.items())}
        document = {"format": FORMAT, "as_of": self.as_of.isoformat(), "segments": timelines, "others": sorted(self._others)}
        return json.dumps(document, indent=1).encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, index: WalIndex) -> CheckedWal:
        """Read the document. Raises: ValueError when it is none, or does not fit the segments of the index."""
        try:
            document: dict[str, Any] = json.loads(data)
            if document["format"] != FORMAT:
                raise ValueError(f"its format is {document['format']!r}")
            checked = cls(datetime.fromisoformat(document["as_of"]).astimezone(UTC))
            for timeline, ranges in document["segments"].items():
                numbers = ((index.number(first), index.number(last)) for first, last in ranges)
                checked._segments[int(timeline, 16)] = Ranges(numbers)
            checked._others = {str(name) for name in document["others"]}
        except (KeyError, TypeError, AttributeError, OverflowError, WalRefused) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        return checked


def _number(name: str, index: WalIndex) -> int | None:
    """The number of a segment; None for other files, and for a name that segments of this size cannot have."""
    try:
        return index.number(name)
    except WalRefused:
        return None


def read_checked(store: BlobStore, index: WalIndex) -> CheckedWal:
    """What earlier runs found good; nothing where there is no such document, or none that can be understood."""
    try:
        return CheckedWal.parse(b"".join(store.get(layout.CHECKED)), index)
    except BlobNotFound:
        return CheckedWal()
    except ValueError as error:
        LOG.warning(f"{layout.CHECKED} cannot be understood", f"{error}. All WAL is checked anew.", "", action="wal-verify")
        return CheckedWal()


def write_checked(store: BlobStore, checked: CheckedWal, index: WalIndex) -> None:
    """Remember what was found good."""
    store.put(layout.CHECKED, [checked.render(index)])
