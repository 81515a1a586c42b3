"""What a record of WAL says to a recovery that looks for its target: commits and aborts, restore points, checkpoints.

The formats are those of ``xlogrecord.h``, ``xact.h`` and ``pg_control.h``, little-endian. From PostgreSQL 10 to 18 the
header of a record is the same; other things differ, and the magic number of the page tells. None of
the kinds here refers to a block, so behind its header a record has an origin, the top-level transaction
and the main data, and each of them only if it is there.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta

from wal_e.errors import WalRefused
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

COMMIT = "commit"
ABORT = "abort"
RESTORE_POINT = "restore point"
CHECKPOINT = "checkpoint"
END_OF_RECOVERY = "end of recovery"
ENDINGS = (COMMIT, ABORT)  # of transactions; the times that a target is compared with are theirs

HEADER_SIZE = 24  # bytes; SizeOfXLogRecord
HIGHEST_RMID = 1  # RM_XACT_ID; RM_XLOG_ID is 0; other resource managers have nothing to say here

_HEADER = struct.Struct("<4xI8xB")  # of a record: transaction, info
_XLOG = {0x00: CHECKPOINT, 0x10: CHECKPOINT, 0x70: RESTORE_POINT, 0x90: END_OF_RECOVERY}
_SWITCH = 0x40
_XACT = {0x00: COMMIT, 0x20: ABORT, 0x30: COMMIT, 0x40: ABORT}
_PREPARED = (0x30, 0x40)
_HAS_PARTS = 0x80  # XLOG_XACT_HAS_INFO

_ORIGIN, _TOP_LEVEL, _LONG_DATA, _SHORT_DATA = 253, 252, 254, 255  # XLR_BLOCK_ID_*
_HAS_PREPARED_XID = 1 << 4

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAGIC_12 = 0xD101
_MAGIC_18 = 0xD118
_NAME_BYTES = 64  # MAXFNAMELEN


class Record(NamedTuple):
    """One record: where it begins and ends, what it is, its time (aware, UTC).

    ``xid`` is the transaction that ended, 0 for other kinds; of a prepared one it is its own, not that of COMMIT PREPARED, as a
    target is compared with it. ``name`` is that of a restore point.
    """

    lsn: Lsn
    end: Lsn
    kind: str
    xid: int
    time: datetime
    name: str


def is_switch(record: bytes) -> bool:
    """Whether nothing follows this record in its segment."""
    return record[17] == 0 and record[16] & 0xF0 == _SWITCH


def is_sound(record: bytes) -> bool:
    """Whether a record has the CRC that its header says."""
    import google_crc32c

    computed: int = google_crc32c.extend(google_crc32c.value(record[HEADER_SIZE:]), record[:20])
    return computed == int.from_bytes(record[20:24], "little")


def kind_of(record: bytes) -> str | None:
    """The kind of a record; None for one that has nothing to say here."""
    info, rmid = record[16], record[17]
    return _XACT.get(info & 0x70) if rmid == 1 else None if rmid else _XLOG.get(info & 0xF0)


def parse_record(record: bytes, kind: str, lsn: Lsn, end: Lsn, magic: int) -> Record:
    """Read a whole and sound record of a known kind; ``magic`` is that of its page.

    Raises: WalRefused when it is not as PostgreSQL 10 to 18 write it.
    """
    xid, info = _HEADER.unpack_from(record)
    try:
        main = _main_data(record)
        if kind in ENDINGS and info & 0x70 in _PREPARED:
            xid = _prepared_xid(main, info, magic)
        name = main[8 : 8 + _NAME_BYTES].partition(b"\0")[0].decode("utf-8", "surrogateescape") if kind == RESTORE_POINT else ""
        return Record(lsn, end, kind, xid if kind in ENDINGS else 0, _time(kind, main, magic), name)
    except (struct.error, LookupError, OverflowError):
        raise WalRefused(
            f"the record at {lsn} cannot be understood",
            f"Its checksum is right, but it is not a {kind} as PostgreSQL 10 to 18 write it.",
            "It may be of a later version, which needs a newer wal-e.",
        ) from None


def _main_data(record: bytes) -> bytes:
    at = HEADER_SIZE
    while (mark := record[at]) in (_ORIGIN, _TOP_LEVEL):
        at += 3 if mark == _ORIGIN else 5
    if mark not in (_SHORT_DATA, _LONG_DATA):
        raise LookupError
    return record[at + (2 if mark == _SHORT_DATA else 5) :]


def _time(kind: str, main: bytes, magic: int) -> datetime:
    """The time in the main data: microseconds since 2000 first of all; a checkpoint's is whole seconds since 1970, behind other things."""
    if kind != CHECKPOINT:
        return _EPOCH + timedelta(microseconds=_number("<q", main, 0))
    return _UNIX_EPOCH + timedelta(seconds=_number("<q", main, 64 if magic >= _MAGIC_12 else 56))


def _prepared_xid(main: bytes, info: int, magic: int) -> int:
    """The transaction that was prepared: behind other parts, of which flags say whether they are there (``xl_xact_xinfo``)."""
    flags = _number("<I", main, 8) if info & _HAS_PARTS else 0
    if not flags & _HAS_PREPARED_XID:
        raise LookupError
    at = 12 + (8 if flags & 1 else 0)  # database and its tablespace
    statistics = 16 if magic >= _MAGIC_18 else 12
    for flag, item_bytes in ((1 << 1, 4), (1 << 2, 12), (1 << 8, statistics), (1 << 3, 16)):  # subtransactions, dropped files and statistics, invalidations
        if flags & flag:
            at += 4 + item_bytes * _number("<I", main, at)
    return _number("<I", main, at)


def _number(form: str, data: bytes, at: int) -> int:
    number: int = struct.unpack_from(form, data, at)[0]
    return number
