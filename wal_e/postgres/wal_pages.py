"""A whole segment, looked through page by page as it streams by.

Every page of WAL begins with a header that says which version wrote it, on which timeline, and at which position
(``XLogPageHeaderData`` in ``xlog_internal.h``). After a switch of segments PostgreSQL 11 and later leave zeros to the
end; PostgreSQL 10 goes on with pages that have a header and nothing else. Records are not looked at.
"""

from __future__ import annotations

import struct

from wal_e.errors import WalRefused
from wal_e.postgres.wal import WAL_HEADER_SIZE, Lsn, WalHeader, check_segment, parse_wal_header
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from io import RawIOBase

_PAGE = struct.Struct("<HHIQ")  # magic, info, timeline, page address
_READ_BYTES = 256 * 1024  # a multiple of every block size that PostgreSQL has


class Expected(NamedTuple):
    """What a segment must be: its name, of one of these clusters (none for any), with pages that count up to a position.

    A server that follows another on to a new timeline archives the old timeline's last segment with whatever
    was in that file behind the switch, so there only pages before it can be judged; None for all.
    """

    name: str
    system_identifiers: tuple[int, ...] = ()
    judged_up_to: Lsn | None = None


def check_stream(stream: RawIOBase, expected: Expected) -> None:
    """Read a segment to its end, and check its header, its size and its pages.

    Raises: WalRefused, saying what is wrong and where.
    """
    buffer = bytearray(_READ_BYTES)
    filled = fill(stream, buffer)
    head = bytes(buffer[: min(filled, WAL_HEADER_SIZE)])
    pages = _Pages(expected, _checked_header(head, expected))
    total = 0
    while filled:
        pages.check(memoryview(buffer)[:filled], total)
        total += filled
        filled = fill(stream, buffer)
    check_segment(expected.name, head, total, None)


def _checked_header(head: bytes, expected: Expected) -> WalHeader:
    """Check what the first page says, but for the size, which is not known yet."""
    try:
        size_bytes = parse_wal_header(head).segment_size
    except WalRefused:
        size_bytes = 0  # check_segment says it again, with the name
    header = check_segment(expected.name, head, size_bytes, None)
    if expected.system_identifiers and header.system_identifier not in expected.system_identifiers:
        check_segment(expected.name, head, size_bytes, expected.system_identifiers[-1])
    return header


def fill(stream: RawIOBase, buffer: bytearray) -> int:
    """Fill the buffer, less than whole only at the end of the stream."""
    view = memoryview(buffer)
    filled = 0
    while filled < len(buffer) and (size := stream.readinto(view[filled:])):
        filled += size
    return filled


class _Pages:
    """The pages of one segment, in order."""

    def __init__(self, expected: Expected, header: WalHeader) -> None:
        self._name = expected.name
        self._header = header
        self._timeline = header.timeline
        self._highest_timeline = int(expected.name[:8], 16)
        self._ended = False
        self._judged_up_to = header.page_address + header.segment_size if expected.judged_up_to is None else expected.judged_up_to

    def check(self, data: memoryview, offset: int) -> None:
        """Check whole pages that begin at an offset of the segment. Raises: WalRefused."""
        start = self._header.page_address + offset
        data = data[: max(self._judged_up_to - start, 0)]
        for at in range(0, len(data) - _PAGE.size + 1, self._header.block_size):
            magic, _, timeline, address = _PAGE.unpack_from(data, at)
            if self._ended or not (magic or timeline or address):
                return self._require_zeros(bytes(data[at:]), Lsn(start + at))
            self._require_header(magic, timeline, address, Lsn(start + at))
        return None

    def _require_zeros(self, rest: bytes, position: Lsn) -> None:
        self._ended = True
        if rest != bytes(len(rest)):
            raise self._wrong(position, "It and what follows must be zeros, as everything behind a switch of segments, and are not.")

    def _require_header(self, magic: int, timeline: int, address: int, position: Lsn) -> None:
        if address != position:
            raise self._wrong(position, f"Its header says that it belongs at {Lsn(address)}.")
        if magic != self._header.magic:
            raise self._wrong(position, f"Its header begins with 0x{magic:04X}, and that of the segment with 0x{self._header.magic:04X}.")
        if not self._timeline <= timeline <= self._highest_timeline:
            raise self._wrong(position, f"Its header says timeline {timeline}, after a page of {self._timeline}, in a segment of {self._highest_timeline}.")
        self._timeline = timeline

    def _wrong(self, position: Lsn, detail: str) -> WalRefused:
        return WalRefused(f"{self._name} has a wrong page at {position}", detail, "Look for another copy of this segment.")
