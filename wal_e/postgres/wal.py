"""Names, positions and first pages of WAL.

A segment's name is its timeline and its number in hexadecimal; how many bytes a segment has
is chosen when the cluster is created, so it is an argument of every function here. The first
page of a segment says which cluster, timeline and position it belongs to. A recycled, cut-off
or foreign file disagrees with its name there; PostgreSQL itself promotes on such a segment.

The formats are those of ``xlog_internal.h`` (``XLogLongPageHeaderData``), little-endian, and
are the same in PostgreSQL 10 to 18.
"""

from __future__ import annotations

import struct
from itertools import pairwise

from wal_e.errors import WalRefused
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_SEGMENT_SIZE = 1024 * 1024  # bytes; WalSegMinSize in xlog_internal.h
MAX_SEGMENT_SIZE = 1024 * 1024 * 1024  # bytes; WalSegMaxSize in xlog_internal.h

WAL_HEADER_SIZE = 40  # bytes; sizeof(XLogLongPageHeaderData)

_HEADER = struct.Struct("<HHIQI4xQII")  # magic, info, timeline, page address, remaining length, pad, system id, segment size, block size
_LONG_HEADER = 0x0002  # XLP_LONG_HEADER, one bit of xlp_info; 1, 4 and 8 are set beside it in real files
_MAGIC_10 = 0xD097  # XLOG_PAGE_MAGIC of PostgreSQL 10; 18 has 0xD118
_MAGIC_LIMIT = 0xD1FF  # room for the versions to come
_BLOCK_SIZES = (1024, 65536)  # bytes; --with-wal-blocksize takes 1 to 64 KiB

_SEGMENTS_SPAN = 2**32  # bytes of WAL under one middle part of a name
_HEX = frozenset("0123456789ABCDEF")


class Lsn(int):
    """A position in the WAL, in bytes since its beginning; prints as PostgreSQL does, ``0/A000028``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``X/X``, two hexadecimal numbers of at most eight digits in either case. Raises: ValueError."""
        high, slash, low = text.upper().partition("/")
        if not (slash and _is_hex(high) and _is_hex(low) and 1 <= len(high) <= 8 and 1 <= len(low) <= 8):
            raise ValueError(f"not an LSN: {text!r}")
        return cls((int(high, 16) << 32) + int(low, 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __repr__(self) -> str:
        return f"Lsn('{self}')"


class WalHeader(NamedTuple):
    """The first page header of a segment; sizes in bytes."""

    magic: int
    info: int
    timeline: int
    page_address: Lsn
    system_identifier: int
    segment_size: int
    block_size: int


class Switch(NamedTuple):
    """A timeline, and the position at which the next one left it."""

    timeline: int
    end: Lsn


def wal_kind(name: str) -> str | None:
    """Tell what the server would archive under this name.

    Returns "segment", "partial" (``SEGMENT.partial``), "history" (``TIMELINE.history``),
    "backup" (``SEGMENT.OFFSET.backup``) or None; the whole name must match.
    """
    stem, dot, rest = name.partition(".")
    if not _is_hex(stem):
        return None
    if len(stem) == 8:
        return "history" if rest == "history" else None
    if len(stem) != 24 or int(stem[16:], 16) >= _SEGMENTS_SPAN // MIN_SEGMENT_SIZE:
        return None
    if not dot:
        return "segment"
    if rest == "partial":
        return "partial"
    offset, _, ending = rest.partition(".")
    return "backup" if ending == "backup" and len(offset) == 8 and _is_hex(offset) else None


def segment_name(timeline: int, lsn: int, segment_size: int) -> str:
    """Name the segment of ``segment_size`` bytes that contains the byte at ``lsn``."""
    number = lsn // segment_size
    per_span = _SEGMENTS_SPAN // segment_size
    return f"{timeline:08X}{number // per_span:08X}{number % per_span:08X}"


def segment_timeline(name: str) -> int:
    """Return the timeline that a segment's name begins with. Raises: WalRefused."""
    _require_segment(name)
    return int(name[:8], 16)


def segment_start(name: str, segment_size: int) -> Lsn:
    """Return the position of the first byte of a segment.

    Raises: WalRefused when this is no segment's name, or not one for segments of this size.
    """
    _require_segment(name)
    per_span = _SEGMENTS_SPAN // segment_size
    low = int(name[16:], 16)
    if low >= per_span:
        raise WalRefused(
            f"{name} cannot be a segment of {segment_size} bytes",
            f"With that size the last eight digits of a name end at {per_span - 1:08X}.",
            "Names from clusters with different WAL segment sizes were mixed up.",
        )
    return Lsn((int(name[8:16], 16) * per_span + low) * segment_size)


def next_segment(name: str, segment_size: int) -> str:
    """Name the segment that follows on the same timeline. Raises: WalRefused."""
    return segment_name(segment_timeline(name), segment_start(name, segment_size) + segment_size, segment_size)


def segments_needed(timeline: int, start: Lsn, stop: Lsn, segment_size: int) -> Iterator[str]:
    """Yield the segments from the one containing ``start`` to the last with bytes before ``stop``, in order; at least one.

    A stop position on a segment boundary does not need the segment that begins there.
    """
    first = start // segment_size
    last = max(first, (stop - 1) // segment_size)
    for number in range(first, last + 1):
        yield segment_name(timeline, number * segment_size, segment_size)


def parse_wal_header(data: bytes) -> WalHeader:
    """Read the header at the start of a segment, of which the first 40 bytes are enough.

    Raises: WalRefused when these bytes are too few or cannot be the start of a segment.
    """
    if len(data) < WAL_HEADER_SIZE:
        raise _no_header(f"It has only {len(data)} bytes, fewer than the {WAL_HEADER_SIZE} of a segment's header.")
    magic, info, timeline, address, _, system_identifier, segment_size, block_size = _HEADER.unpack_from(data)
    if not _MAGIC_10 <= magic <= _MAGIC_LIMIT:
        raise _no_header(f"It begins with 0x{magic:04X}, which no PostgreSQL from 10 on writes there.")
    if not info & _LONG_HEADER:
        raise _no_header(f"Its flags 0x{info:04X} say that this is a page from the middle of a segment.")
    if not _is_power_of_two(segment_size, MIN_SEGMENT_SIZE, MAX_SEGMENT_SIZE):
        raise _no_header(f"It names a segment size of {segment_size} bytes, which PostgreSQL does not have.")
    if not _is_power_of_two(block_size, *_BLOCK_SIZES):
        raise _no_header(f"It names a WAL block size of {block_size} bytes, which PostgreSQL does not have.")
    if not timeline:
        raise _no_header("It names timeline 0, and the first one is 1.")
    return WalHeader(magic, info, timeline, Lsn(address), system_identifier, segment_size, block_size)


def check_segment(name: str, header_bytes: bytes, size_bytes: int, system_identifier: int | None) -> WalHeader:
    """Check that a file is the segment its name says, and of this cluster unless ``system_identifier`` is None.

    Takes a segment or a ``.partial`` one, the file's first 40 bytes or more, and its size.

    Raises: WalRefused, saying what disagrees.
    """
    segment = name.removesuffix(".partial")
    named_timeline = segment_timeline(segment)
    try:
        header = parse_wal_header(header_bytes)
    except WalRefused as error:
        raise WalRefused(f"{name} is {error.message}", error.detail, error.hint) from None
    if size_bytes != header.segment_size:
        raise WalRefused(
            f"{name} has the wrong size",
            f"The file has {size_bytes} bytes; its header says that a segment has {header.segment_size}.",
            "It was cut off, or something was added to it. Look for another copy of this segment.",
        )
    start = segment_start(segment, header.segment_size)
    if header.page_address != start:
        raise WalRefused(
            f"{name} holds another segment's WAL",
            f"By its name it begins at {start}; its header says {header.page_address}.",
            "It was renamed or copied under the wrong name, or is a recycled file that the server has not written yet.",
        )
    if header.timeline > named_timeline:  # lower is right: a promoted server goes on in a copy of the old timeline's last segment
        raise WalRefused(
            f"{name} holds WAL of a later timeline",
            f"Its name says timeline {named_timeline}; its header says {header.timeline}.",
            "It was renamed or copied under the wrong name.",
        )
    if system_identifier is not None and header.system_identifier != system_identifier:
        raise WalRefused(
            f"{name} comes from another cluster",
            f"Its system identifier is {header.system_identifier}; this cluster's is {system_identifier}.",
            "Two clusters share this directory or this storage prefix. Give each cluster a prefix of its own.",
        )
    return header


def parse_history(data: bytes, timeline: int) -> tuple[Switch, ...]:
    """Read the content of a timeline's history file: its ancestors, oldest first, and where each was left.

    The format is that of ``timeline.c``: per line a timeline, a position and a reason; ``#`` begins a comment.

    Raises: WalRefused when it is not the history of this timeline.
    """
    switches: list[Switch] = []
    for line in data.decode("utf-8", "replace").splitlines():
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        try:
            number, text = words[:2]
            switches.append(Switch(int(number), Lsn.parse(text)))
        except ValueError:
            raise _no_history(timeline, f"It has the line {line[:80]!r}.") from None
    numbers = [0, *(switch.timeline for switch in switches), timeline]
    if not switches or any(later <= earlier for earlier, later in pairwise(numbers)):
        raise _no_history(timeline, f"It names the ancestors {numbers[1:-1]}, which must be some, ascending, and below {timeline}.")
    return tuple(switches)


def _no_history(timeline: int, detail: str) -> WalRefused:
    return WalRefused(f"{timeline:08X}.history is not the history of timeline {timeline}", detail, "Look for another copy of this file.")


def _require_segment(name: str) -> None:
    if wal_kind(name) != "segment":
        raise WalRefused(
            f"{name!r} is not the name of a WAL segment",
            "A segment's name has 24 hexadecimal digits in upper case: timeline, and number in two parts.",
            "Pass the file that PostgreSQL names with %p or %f, unchanged.",
        )


def _no_header(detail: str) -> WalRefused:
    return WalRefused(
        "not a WAL segment", detail, "The file is empty, damaged, compressed, encrypted, or something else. Look for another copy of this segment."
    )


def _is_hex(text: str) -> bool:
    return bool(text) and _HEX.issuperset(text)


def _is_power_of_two(number: int, low: int, high: int) -> bool:
    return low <= number <= high and number & (number - 1) == 0
