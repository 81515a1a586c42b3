"""WAL segments and pg_control files, built byte by byte as a server would write them.

Written from the server's headers and not with ``wal_e``, so that a test which uses them
compares two opinions. What follows a segment's first page header is no WAL.
"""

from __future__ import annotations

import random
import struct

import google_crc32c

SYSTEM_IDENTIFIER = 7710235014459963137
SEGMENT_SIZE = 1024 * 1024

IN_PRODUCTION = 6
SHUT_DOWN = 1


def build_segment(
    name: str,
    segment_size: int = SEGMENT_SIZE,
    system_identifier: int = SYSTEM_IDENTIFIER,
    *,
    magic: int = 0xD110,
    info: int = 0x0006,
    timeline: int | None = None,
    fill: str = "random",
) -> bytes:
    """Build a whole segment (or ``.partial`` one) that fits its name; ``fill`` is "random" (by name, repeatable) or "zero"."""
    header = build_header(name, segment_size, system_identifier, magic=magic, info=info, timeline=timeline)
    rest = segment_size - len(header)
    return header + (random.Random(name).randbytes(rest) if fill == "random" else bytes(rest))


def build_header(
    name: str,
    segment_size: int = SEGMENT_SIZE,
    system_identifier: int = SYSTEM_IDENTIFIER,
    *,
    magic: int = 0xD110,
    info: int = 0x0006,
    timeline: int | None = None,
) -> bytes:
    """Build the 40 bytes at the start of a segment."""
    named_timeline, high, low = (int(name[at : at + 8], 16) for at in (0, 8, 16))
    address = (high << 32) + low * segment_size
    return struct.pack("<HHIQIxxxxQII", magic, info, named_timeline if timeline is None else timeline, address, 0, system_identifier, segment_size, 8192)


def build_control(
    system_identifier: int = SYSTEM_IDENTIFIER,
    *,
    version: int = 1300,
    catalog: int = 202209061,
    state: int = IN_PRODUCTION,
    redo: int = 0x1000028,
    checkpoint: int | None = None,
    timeline: int = 1,
    min_recovery_point: int = 0,
    wal_level: int = 1,
    segment_size: int = SEGMENT_SIZE,
    block_size: int = 8192,
    checksums: int = 1,
) -> bytes:
    """Build the 8192 bytes of a pg_control of PostgreSQL 10 to 18, by default of 15, with the right CRC."""
    after_state = 8 if version == 1002 else 0  # 10 still had prevCheckPoint
    tail = -8 if version == 1100 else 0
    crc_at = {1100: 280, 1800: 292}.get(version, 288)
    data = bytearray(8192)
    struct.pack_into("<QIII", data, 0, system_identifier, version, catalog, state)
    struct.pack_into("<Q", data, 32, redo + 0x38 if checkpoint is None else checkpoint)
    struct.pack_into("<QII", data, 40 + after_state, redo, timeline, timeline)
    struct.pack_into("<QI", data, 136 + tail, min_recovery_point, timeline if min_recovery_point else 0)
    struct.pack_into("<I", data, 172 + tail, wal_level)
    struct.pack_into("<IIII", data, 216 + tail, block_size, 131072, 8192, segment_size)
    struct.pack_into("<I", data, 252 + tail, checksums)
    struct.pack_into("<I", data, crc_at, google_crc32c.value(bytes(data[:crc_at])))
    return bytes(data)
