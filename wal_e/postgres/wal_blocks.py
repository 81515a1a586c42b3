"""Which blocks of which relations a record of WAL touches.

A page that was copied while it was written may be half old and half new. Recovery replaces it, because the first
record after the start of a backup that touches a block has an image of it. So a bad page that WAL
refers to is of no account, and one that it does not is damage.

The formats are those of ``xlogrecord.h``, the same from PostgreSQL 10 to 18 but for the flags of a compressed image, which
changed in 15.
"""

from __future__ import annotations

import struct

from wal_e.errors import WalRefused
from wal_e.postgres.page import RELATION_FORKS
from wal_e.postgres.wal_records import HEADER_SIZE
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_BLOCK = struct.Struct("<BH")  # fork and flags, length of data
_IMAGE = struct.Struct("<HHB")  # length, offset of the hole, flags
_LOCATOR = struct.Struct("<III")
_NUMBER = struct.Struct("<I")
_MAX_BLOCK_ID = 32
_HAS_IMAGE, _SAME_RELATION, _FORK = 0x10, 0x80, 0x0F
_HAS_HOLE = 0x01
_COMPRESSED, _COMPRESSED_14 = 0x1C, 0x02
_MAIN_DATA = (254, 255)
_OTHERS = {253: 3, 252: 5}  # origin and top-level transaction: bytes, with their marks
_DEFAULT_TABLESPACE, _GLOBAL_TABLESPACE = 1663, 1664


class Fork(NamedTuple):
    """One fork of a relation, as WAL names it: tablespace, database, number, and which fork."""

    tablespace: int
    database: int
    number: int
    fork: int


def fork_of(relation: str) -> Fork:
    """How WAL names the relation of a path such as ``base/5/16404_fsm``."""
    *directories, name = relation.split("/")
    number, _, fork = name.partition("_")
    if directories[0] == "global":
        tablespace, database = _GLOBAL_TABLESPACE, 0
    else:
        tablespace = _DEFAULT_TABLESPACE if directories[0] == "base" else int(directories[1])
        database = int(directories[-1])
    return Fork(tablespace, database, int(number), RELATION_FORKS.index(fork))


def touched_blocks(record: bytes, major: int) -> Iterator[tuple[Fork, int]]:
    """Yield fork and number of each block that a whole record refers to, as written by this major version.

    Raises: WalRefused when its headers are not as PostgreSQL 10 to 18 write them.
    """
    at, data_bytes, fork = HEADER_SIZE, 0, None
    try:
        while at + data_bytes < len(record) and (mark := record[at]) not in _MAIN_DATA:
            if mark > _MAX_BLOCK_ID:
                at += _OTHERS[mark]
                continue
            at, block_bytes, fork = _block(record, at + 1, fork, major)
            data_bytes += block_bytes
            yield fork, _NUMBER.unpack_from(record, at - _NUMBER.size)[0]
    except (struct.error, LookupError):
        raise WalRefused("a record of WAL cannot be understood", "The headers in it are not as PostgreSQL 10 to 18 write them.") from None


def _block(record: bytes, at: int, before: Fork | None, major: int) -> tuple[int, int, Fork]:
    """Read one reference; return where the next header is, how many bytes of data belong to this one, and the fork."""
    flags, data_bytes = _BLOCK.unpack_from(record, at)
    at += _BLOCK.size
    if flags & _HAS_IMAGE:
        image_bytes, _, image = _IMAGE.unpack_from(record, at)
        compressed = image & (_COMPRESSED if major >= 15 else _COMPRESSED_14)
        at += _IMAGE.size + (2 if compressed and image & _HAS_HOLE else 0)
        data_bytes += image_bytes
    if not flags & _SAME_RELATION:
        tablespace, database, number = _LOCATOR.unpack_from(record, at)
        before = Fork(tablespace, database, number, 0)
        at += _LOCATOR.size
    elif before is None:
        raise LookupError
    return at + _NUMBER.size, data_bytes, before._replace(fork=flags & _FORK)
