"""Whole segments with a header on every page, as a server leaves them; what is in the pages is no WAL.

Written from ``xlog_internal.h`` and not with ``wal_e``.
"""

from __future__ import annotations

import random
import struct

import build_wal

PAGE = 8192
SIZE = build_wal.SEGMENT_SIZE


def build_pages(
    name: str, *, used: int = SIZE // PAGE, switch: str = "zeros", segment_size: int = SIZE, system_identifier: int = build_wal.SYSTEM_IDENTIFIER
) -> bytes:
    """Build a segment of which so many pages are used; behind them are "zeros", or "headers" as PostgreSQL 10 has them."""
    timeline, high, low = (int(name[at : at + 8], 16) for at in (0, 8, 16))
    start = (high << 32) + low * segment_size
    noise = random.Random(name).randbytes(PAGE)
    pages = []
    for number in range(segment_size // PAGE):
        header = page_header(start + number * PAGE, timeline)
        if number == 0:
            header = build_wal.build_header(name, segment_size, system_identifier)
        if number < used:
            pages.append(header + noise[len(header) :])
        else:
            pages.append((header if switch == "headers" else b"").ljust(PAGE, b"\0"))
    return b"".join(pages)


def page_header(position: int, timeline: int, magic: int = 0xD110, info: int = 1) -> bytes:
    return struct.pack("<HHIQIxxxx", magic, info, timeline, position, 0)


def replaced(data: bytes, at: int, piece: bytes) -> bytes:
    """The data with a piece of it replaced."""
    return data[:at] + piece + data[at + len(piece) :]
