"""WAL with records in it, built as a server writes it: records over pages and segments, switches, times.

Written from ``xlogrecord.h`` and ``xlog_internal.h`` and not with ``wal_e``.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

import build_wal
import google_crc32c

SIZE, PAGE = build_wal.SEGMENT_SIZE, 8192
XLOG, XACT, HEAP = 0, 1, 10  # resource managers
CHECKPOINT, SWITCH, RESTORE_POINT = 0x10, 0x40, 0x70
COMMIT, COMMIT_PREPARED = 0x00, 0x30
MOMENT = datetime(2026, 3, 9, 3, 0, 0, 123456, tzinfo=UTC)


def stamp(moment):
    """A time as records have it."""
    return struct.pack("<q", (moment - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))


class Builder:
    """Writes records into pages as a server does."""

    def __init__(self, start, timeline=1, magic=0xD110):
        self.start, self.timeline, self.magic = start, timeline, magic
        self.data = bytearray()
        self.previous = 0

    @property
    def at(self):
        """Where the next record begins; behind a page's header, too."""
        at = self.start + len(self.data)
        return at + (40 if at % SIZE == 0 else 24 if at % PAGE == 0 else 0)

    def _put(self, piece, left=0, flags=0):
        at = self.start + len(self.data)
        if at % PAGE == 0:
            info = flags | (1 if left else 0) | (2 if at % SIZE == 0 else 0)
            self.data += struct.pack("<HHIQIxxxx", self.magic, info, self.timeline, at, left)
            self.data += struct.pack("<QII", build_wal.SYSTEM_IDENTIFIER, SIZE, PAGE) if info & 2 else b""
        room = PAGE - len(self.data) % PAGE
        self.data += piece[:room]
        return piece[room:]

    def add(self, rmid, info, main, xid=0, between=b"", flags=0):
        """Append a record; return where it begins."""
        body = between + (struct.pack("<BB", 255, len(main)) if len(main) < 256 else struct.pack("<BI", 254, len(main))) + main
        head = struct.pack("<IIQBBxx", 24 + len(body), xid, self.previous, info, rmid)
        record = head + struct.pack("<I", google_crc32c.extend(google_crc32c.value(body), head)) + body
        self.previous = lsn = self.at
        rest = self._put(record, flags=flags)
        while rest:
            rest = self._put(rest, left=len(rest))
        self.data += bytes(-len(self.data) % 8)
        return lsn

    def commit(self, xid, moment=None, **more):
        """Append a commit, by default so many microseconds after MOMENT."""
        return self.add(XACT, COMMIT, stamp(moment or MOMENT + timedelta(microseconds=xid)), xid, **more)

    def restore_point(self, name, moment=MOMENT):
        return self.add(XLOG, RESTORE_POINT, stamp(moment) + name.encode().ljust(64, b"\0"))

    def checkpoint(self, moment=MOMENT):
        return self.add(XLOG, CHECKPOINT, bytes(64) + struct.pack("<qI", int(moment.timestamp()), 0))

    def next_segment(self):
        """Switch, and leave the rest of the segment empty."""
        self.add(XLOG, SWITCH, b"")
        self.data += bytes(-len(self.data) % SIZE)

    def fill(self, left):
        """Append a record that leaves so many bytes of the segment."""
        self.add(HEAP, 0, b"")
        while (room := SIZE - len(self.data) % SIZE - left) > PAGE * 2:
            self.add(HEAP, 0, bytes(min(room - PAGE, 200_000)))
        if len(self.data) // PAGE < (len(self.data) + room) // PAGE and (len(self.data) + room) % PAGE:
            room -= 24
        if room:
            self.add(HEAP, 0, bytes(room - 24 - (5 if room - 24 > 257 else 2)))
        assert -len(self.data) % SIZE == left, (len(self.data), left)

    def segments(self):
        """All of it, the last segment filled with zeros."""
        data = bytes(self.data) + bytes(-len(self.data) % SIZE)
        return [data[at : at + SIZE] for at in range(0, len(data), SIZE)]
