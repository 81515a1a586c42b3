"""Records out of segments, in their order, as the segments stream by.

A record begins at a multiple of eight bytes and goes on over pages and segments; each page that begins inside one says so, and
how much of it is left (``xlp_rem_len`` in ``xlog_internal.h``). A record names the one before it. Where any of that does
not fit, WAL ends for a recovery, and so it does here. Most records are only stepped over: a segment of 16 MiB takes a
fraction of a second. After a crash the rest of a record that was never finished is marked as overwritten
(``XLP_FIRST_IS_OVERWRITE_CONTRECORD``, in the releases since November 2021).
"""

from __future__ import annotations

import struct

from wal_e.postgres.wal import WAL_HEADER_SIZE, Lsn, parse_wal_header
from wal_e.postgres.wal_pages import fill
from wal_e.postgres.wal_records import HEADER_SIZE, HIGHEST_RMID, Record, is_sound, is_switch, kind_of, parse_record
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import RawIOBase

READ_BYTES = 256 * 1024  # a multiple of every block size that PostgreSQL has

_PAGE = struct.Struct("<HHIQI")  # magic, info, timeline, page address, bytes left of the record that goes on here
_STEP = struct.Struct("<I4xQxB")  # of a record: length, previous record, resource manager
_SHORT_HEADER_SIZE = 24
_CONTINUED, _LONG_HEADER, _OVERWRITTEN = 1, 2, 8


class Taken(NamedTuple):
    """One whole record: where it begins and ends, and its bytes, header and all."""

    lsn: Lsn
    end: Lsn
    data: bytes


class WalReader:
    """Reads one or more segments that follow each other.

    ``highest_rmid`` says which records are taken out: those of resource managers up to it; the others are only stepped over.
    ``stopped`` says why what follows is no WAL, None as long as it is.
    """

    def __init__(self, highest_rmid: int = HIGHEST_RMID) -> None:
        self.stopped: str | None = None
        self._highest_rmid = highest_rmid
        self._magic = 0
        self._position: int | None = None  # of the next page
        self._segment_end = 0
        self._switched = False
        self._last: int | None = None  # where the last whole record began
        self._last_end: int | None = None
        self._open_at: int | None = None  # where the record began that goes on
        self._kept: bytes | None = None  # what is there of it, None when nobody needs it
        self._left = 0

    @property
    def begin(self) -> Lsn | None:
        """Where the last whole record begins; None before there was one."""
        return None if self._last is None else Lsn(self._last)

    @property
    def end(self) -> Lsn | None:
        """Where that record ends."""
        return None if self._last_end is None else Lsn(self._last_end)

    @property
    def open_at(self) -> Lsn | None:
        """Where a record begins that goes on in the next segment and may say something."""
        return Lsn(self._open_at) if self._open_at is not None and self._left > 0 and self._kept is not None and self.stopped is None else None

    def read(self, stream: RawIOBase) -> Iterator[Record]:
        """Yield the records of a segment that say something to a recovery; the stream is at its end when all were taken.

        Raises: WalRefused when this is no segment, or a record is of an unknown form.
        """
        for taken in self.take(stream):
            kind = kind_of(taken.data)
            if kind is not None:
                yield parse_record(taken.data, kind, taken.lsn, taken.end, self._magic)

    def take(self, stream: RawIOBase) -> Iterator[Taken]:
        """Yield the records of a segment as they are. Of those that say something to a recovery the CRC was checked, of others it was not.

        Raises: WalRefused when this is no segment.
        """
        data = _filled(stream)
        header = parse_wal_header(data[:WAL_HEADER_SIZE])
        self._segment_end = header.page_address + header.segment_size
        if self._position is None:
            self._position, self._magic = header.page_address, header.magic
        while data:
            found: list[Taken] = []
            for at in range(0, len(data) - _SHORT_HEADER_SIZE, header.block_size):
                if self.stopped is not None or self._switched:
                    break
                self._page(data, at, min(at + header.block_size, len(data)), found)
            yield from found
            data = _filled(stream)
        if self._switched:
            self._position, self._switched = self._segment_end, False
        elif self._position != self._segment_end:
            self._stop(f"The segment ends at {Lsn(self._position)}.")

    def _page(self, data: bytes, at: int, stop: int, found: list[Taken]) -> None:
        magic, info, _, address, left = _PAGE.unpack_from(data, at)
        if (magic, address) != (self._magic, self._position):
            return self._stop(f"The page at {Lsn(self._position or 0)} is not the one that belongs there.")
        is_first = self._last_end is None and not self._left
        self._position = address + stop - at
        base = address - at
        at += WAL_HEADER_SIZE if info & _LONG_HEADER else _SHORT_HEADER_SIZE
        if info & _OVERWRITTEN:
            self._kept, self._left = None, 0
        elif info & _CONTINUED or self._left:
            if not is_first and (not info & _CONTINUED or left != self._left):
                return self._stop(f"The record at {Lsn(self._open_at or 0)} does not go on at {Lsn(address)}.")
            at = self._go_on(data, at, min(at + left, stop), left, base, found)
        if self.stopped is None:
            self._step(data, at, stop, base, found)
        return None

    def _go_on(self, data: bytes, at: int, stop: int, left: int, base: int, found: list[Taken]) -> int:
        """Take what this page has of a record that began before; return where the next one begins."""
        self._left = left - (stop - at)
        after = stop + 7 & -8
        if self._kept is not None:
            self._kept += data[at:stop]
            self._weigh()
        if self._left or self.stopped is not None:
            return after
        if self._open_at is not None:
            kept, self._kept = self._kept, None
            self._accept(self._open_at, base + after, kept, found)
        return after

    def _step(self, data: bytes, at: int, stop: int, base: int, found: list[Taken]) -> None:
        """Step over the records that begin on this page."""
        last, highest_rmid = self._last, self._highest_rmid
        while at + HEADER_SIZE <= stop and not self._switched:
            length, previous, rmid = _STEP.unpack_from(data, at)
            if length < HEADER_SIZE or (previous != last and last is not None):
                return self._stop(f"There is no record at {Lsn(base + at)}.")
            if at + length > stop:
                break
            after, last = at + length + 7 & -8, base + at
            if rmid <= highest_rmid:
                self._accept(last, base + after, data[at : at + length], found)
                if self.stopped is not None:
                    return None
            else:
                self._last, self._last_end = last, base + after
            at = after
        if at < stop and not self._switched:
            self._open_at, self._kept = base + at, data[at:stop]
            length = int.from_bytes(data[at : at + 4], "little")
            self._left = length - (stop - at)
            self._weigh()
            if length < HEADER_SIZE:
                self._stop(f"There is no record at {Lsn(base + at)}.")
        return None

    def _weigh(self) -> None:
        """Forget what is kept of a record as soon as its header tells that it is of no use."""
        if self._kept is not None and len(self._kept) >= HEADER_SIZE:
            _, previous, rmid = _STEP.unpack_from(self._kept)
            if self._last is not None and previous != self._last:
                self._stop(f"There is no record at {Lsn(self._open_at or 0)}.")
            elif rmid > self._highest_rmid:
                self._kept = None

    def _accept(self, lsn: int, end: int, record: bytes | None, found: list[Taken]) -> None:
        """Take a whole record, of which nothing is kept unless it may say something."""
        if record is not None and is_switch(record):
            self._switched, end = True, self._segment_end
        elif record is not None and kind_of(record) is not None and not is_sound(record):
            return self._stop(f"The record at {Lsn(lsn)} has a wrong checksum.")
        if record is not None:
            found.append(Taken(Lsn(lsn), Lsn(end), record))
        self._last, self._last_end = lsn, end
        return None

    def _stop(self, reason: str) -> None:
        self.stopped = self.stopped or reason


def _filled(stream: RawIOBase) -> bytes:
    """Read a whole buffer, less only at the end of the stream."""
    buffer = bytearray(READ_BYTES)
    return bytes(memoryview(buffer)[: fill(stream, buffer)])
