"""``global/pg_control``: what a cluster says about itself, running or not.

The file is 8192 bytes: a structure (``ControlFileData`` in ``catalog/pg_control.h``) that ends
with a CRC-32C of all before it, then zeros. The structure depends on the version it begins
with; the offsets below were compared with ``pg_control_system()`` and its sisters on
PostgreSQL 10 to 18, little-endian. A running server rewrites the file in place, so a reader may see half
of the old and half of the new one: the CRC tells, and the reader tries again.
"""

from __future__ import annotations

import os
import struct
import time

from wal_e.errors import DamageError, NotACluster, local_error
from wal_e.postgres.wal import Lsn
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONTROL_FILE = "global/pg_control"
CONTROL_FILE_SIZE = 8192  # bytes; PG_CONTROL_FILE_SIZE

STATE_WORDS = ("starting up", "shut down", "shut down in recovery", "shutting down", "in crash recovery", "in archive recovery", "in production")

_READ_ATTEMPTS = 10
_READ_PAUSE_S = 0.02  # a write of one page is over much sooner


class ControlFile(NamedTuple):
    """The facts read from pg_control; sizes in bytes, ``data_checksum_version`` 0 means no page checksums."""

    system_identifier: int
    control_version: int
    catalog_version: int
    state: int
    checkpoint: Lsn
    redo: Lsn
    timeline: int
    min_recovery_point: Lsn
    wal_level: int
    block_size: int
    segment_size: int
    data_checksum_version: int

    @property
    def state_words(self) -> str:
        """The state as pg_controldata prints it."""
        return STATE_WORDS[self.state] if self.state < len(STATE_WORDS) else f"unknown ({self.state})"

    @property
    def major(self) -> int | None:
        """PostgreSQL's major version, 10 to 18; None when these version numbers are not known here."""
        if self.control_version == 1300:
            return _MAJORS_OF_1300.get(self.catalog_version)
        return _MAJORS.get(self.control_version)


class _Layout(NamedTuple):
    """Offsets in bytes of what differs between versions."""

    redo: int
    timeline: int
    min_recovery_point: int
    wal_level: int
    block_size: int
    segment_size: int
    data_checksum_version: int
    crc: int


_LAYOUT_10 = _Layout(48, 56, 136, 172, 216, 228, 252, 288)
_LAYOUT_11 = _Layout(40, 48, 128, 164, 208, 220, 244, 280)
_LAYOUT_12 = _Layout(40, 48, 136, 172, 216, 228, 252, 288)  # to 17
_LAYOUT_18 = _Layout(40, 48, 136, 172, 216, 228, 252, 292)

_LAYOUTS = {1002: _LAYOUT_10, 1100: _LAYOUT_11, 1201: _LAYOUT_12, 1300: _LAYOUT_12, 1700: _LAYOUT_12, 1800: _LAYOUT_18}
_LAYOUTS_TO_TRY = (_LAYOUT_18, _LAYOUT_12, _LAYOUT_11)  # for versions not in the table; only the right one has the right CRC

_MAJORS = {1002: 10, 1100: 11, 1201: 12, 1700: 17, 1800: 18}
_MAJORS_OF_1300 = {202007201: 13, 202107181: 14, 202209061: 15, 202307071: 16}

_START = struct.Struct("<QIII")  # system identifier, control version, catalog version, state
_CHECKPOINT = 32  # offset in bytes, the same in all versions


def read_control(data_directory: str, *, sleep: Callable[[float], None] = time.sleep) -> ControlFile:
    """Read and check pg_control of a data directory, running or stopped.

    Raises: NotACluster, DamageError, LocalFileError.
    """
    return read_control_bytes(data_directory, sleep=sleep)[1]


def read_control_bytes(data_directory: str, *, sleep: Callable[[float], None] = time.sleep) -> tuple[bytes, ControlFile]:
    """Read pg_control and return its bytes, whole and consistent, with what they say.

    Raises: NotACluster, LocalFileError, and DamageError when ten attempts met a wrong CRC.
    """
    for _ in range(_READ_ATTEMPTS - 1):
        data = _read_start(data_directory, CONTROL_FILE_SIZE)
        try:
            return data, parse_control(data)
        except DamageError:
            sleep(_READ_PAUSE_S)  # the server was writing it
    data = _read_start(data_directory, CONTROL_FILE_SIZE)
    return data, parse_control(data)


def read_system_identifier(data_directory: str) -> int:
    """Read the cluster's system identifier; it is written once, so no CRC is needed to trust it.

    Raises: NotACluster, DamageError, LocalFileError.
    """
    data = _read_start(data_directory, 8)
    if len(data) < 8:
        raise _too_short(data)
    return int.from_bytes(data, "little")


def parse_control(data: bytes) -> ControlFile:
    """Read the bytes of pg_control of PostgreSQL 10 to 18, and of later ones that kept a known layout.

    Raises: DamageError when the CRC does not fit.
    """
    if len(data) < _LAYOUT_18.crc + 4:
        raise _too_short(data)
    system_identifier, control_version, catalog_version, state = _START.unpack_from(data)
    layout = _checked_layout(data, control_version)
    return ControlFile(
        system_identifier=system_identifier,
        control_version=control_version,
        catalog_version=catalog_version,
        state=state,
        checkpoint=_lsn(data, _CHECKPOINT),
        redo=_lsn(data, layout.redo),
        timeline=_u32(data, layout.timeline),
        min_recovery_point=_lsn(data, layout.min_recovery_point),
        wal_level=_u32(data, layout.wal_level),
        block_size=_u32(data, layout.block_size),
        segment_size=_u32(data, layout.segment_size),
        data_checksum_version=_u32(data, layout.data_checksum_version),
    )


def _checked_layout(data: bytes, control_version: int) -> _Layout:
    known = _LAYOUTS.get(control_version)
    for layout in (known,) if known else _LAYOUTS_TO_TRY:
        if _crc32c(data[: layout.crc]) == _u32(data, layout.crc):
            return layout
    if known:
        detail = f"It has version {control_version}; the CRC stored in it is not the CRC of its bytes."
    else:
        detail = f"It has version {control_version}, which this wal-e does not know, and no known layout fits its CRC."
    raise DamageError(
        "pg_control is damaged or of an unknown kind",
        detail,
        "Look at it with the pg_controldata of the server's own version. If that is content, the server may need a newer wal-e.",
    )


def _read_start(data_directory: str, size_bytes: int) -> bytes:
    path = os.path.join(data_directory, CONTROL_FILE)
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(size_bytes)
    except (FileNotFoundError, NotADirectoryError):
        raise NotACluster(
            f"{data_directory} is not a PostgreSQL data directory",
            f"There is no {path}.",
            "Give the directory that SHOW data_directory prints, the one that holds PG_VERSION.",
        ) from None
    except OSError as error:
        raise local_error(error, f"reading {path}") from error


def _too_short(data: bytes) -> DamageError:
    return DamageError(
        "pg_control is too short", f"It has {len(data)} bytes of {CONTROL_FILE_SIZE}.", "The data directory is damaged, or was copied only in part."
    )


def _crc32c(data: bytes) -> int:
    import google_crc32c

    value: int = google_crc32c.value(data)
    return value


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _lsn(data: bytes, offset: int) -> Lsn:
    return Lsn(int.from_bytes(data[offset : offset + 8], "little"))
