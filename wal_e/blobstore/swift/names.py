"""Names of objects in a Swift container: blobs, the segments of large ones, and announcements of writers.

Below the root of the prefix a blob's name is its key. Segments are ``.segments/KEY/WRITER/NUMBER`` and announcements
``.claims/KEY/WRITER``, in the same container, so that whoever may read a blob may read its segments: no key has a
part that begins with a dot, and WAL-E does not look there.
"""

from __future__ import annotations

import os
import time

from wal_e.record import NamedTuple

SEGMENTS, CLAIMS = ".segments/", ".claims/"
_DIGITS = 8


def writer_id() -> str:
    """A name for one write, unlike any other; it begins with the time, to the second, in UTC."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.urandom(8).hex()}"


class Names(NamedTuple):
    """Names below one root, which is empty or ends with a slash."""

    root: str

    def blob(self, key: str) -> str:
        """The object that is a blob, or its manifest."""
        return self.root + key

    def segments(self, key: str, writer: str) -> str:
        """What the names of one upload's segments begin with."""
        return f"{self.root}{SEGMENTS}{key}/{writer}/"

    def claims(self, key: str) -> str:
        """What the names of all announcements for a key begin with."""
        return f"{self.root}{CLAIMS}{key}/"

    def upload_of(self, segment: str) -> tuple[str, str]:
        """The key and the writer that a segment's name tells."""
        key, writer, _ = segment.removeprefix(self.root + SEGMENTS).rsplit("/", 2)
        return key, writer

    def claim_of(self, claim: str) -> tuple[str, str]:
        """The key and the writer that an announcement's name tells."""
        key, writer = claim.removeprefix(self.root + CLAIMS).rsplit("/", 1)
        return key, writer


def segment(place: str, number: int) -> str:
    """The name of one segment of an upload; ``place`` is what they begin with."""
    return f"{place}{number:0{_DIGITS}d}"
