"""``backup_label`` and ``tablespace_map``, the two files that make a copy a backup.

The label tells a restored server where to begin the replay. It is what ``pg_backup_stop()``
returned and is stored byte for byte; here it is only read. The map tells it which links to
make in ``pg_tblspc``, and is rewritten when a restore puts tablespaces elsewhere.

Formats: ``xlogbackup.c`` writes them, ``read_backup_label()`` and ``read_tablespace_map()``
read them. Seen on PostgreSQL 10, 13 and 15.
"""

from __future__ import annotations

import re

from wal_e.errors import DamageError, TargetRefused
from wal_e.postgres.wal import Lsn, segment_timeline, wal_kind
from wal_e.record import NamedTuple

_START = re.compile(r"([0-9A-F]{1,8}/[0-9A-F]{1,8}) \(file ([0-9A-F]{24})\)")
_POSITION = re.compile(r"[0-9A-F]{1,8}/[0-9A-F]{1,8}")
_NUMBER = re.compile(r"[0-9]+")

_DOUBLES_BACKSLASH = 14  # from this major on; before, a doubled one gives a wrong link
_SPECIAL = re.compile(rb"[\n\r]")
_SPECIAL_14 = re.compile(rb"[\\\n\r]")
_CHARACTER = re.compile(rb"\\[\n\r]|.", re.DOTALL)  # with the backslash before it
_CHARACTER_14 = re.compile(rb"\\.|.", re.DOTALL)


class BackupLabel(NamedTuple):
    """What a backup_label says.

    ``taken_from`` is "primary" or "standby"; ``start_time`` is text in the server's log_timezone.
    """

    start: Lsn
    start_segment: str
    checkpoint: Lsn
    timeline: int
    taken_from: str
    start_time: str
    label: str


def parse_backup_label(text: str) -> BackupLabel:
    """Read a backup_label of PostgreSQL 10 or later.

    Raises: DamageError when a line that the server needs is missing or wrong.
    """
    lines: dict[str, str] = {}
    for line in text.split("\n"):
        name, _, value = line.partition(": ")
        lines.setdefault(name, value)
    start = _field(lines, "START WAL LOCATION", _START)
    checkpoint = _field(lines, "CHECKPOINT LOCATION", _POSITION)
    segment = start[2]
    if wal_kind(segment) != "segment":
        raise _bad_label("START WAL LOCATION", lines["START WAL LOCATION"])
    timeline = segment_timeline(segment)
    if "START TIMELINE" in lines and int(_field(lines, "START TIMELINE", _NUMBER)[0]) != timeline:  # absent before 11
        raise _bad_label("START TIMELINE", lines["START TIMELINE"])
    return BackupLabel(
        start=Lsn.parse(start[1]),
        start_segment=segment,
        checkpoint=Lsn.parse(checkpoint[0]),
        timeline=timeline,
        taken_from="standby" if lines.get("BACKUP FROM") == "standby" else "primary",  # "master" before 14
        start_time=lines.get("START TIME", ""),
        label=lines.get("LABEL", ""),
    )


def parse_tablespace_map(data: bytes, major: int) -> dict[str, bytes]:
    """Read a tablespace_map, as a server of this major version does, into paths by OID, in order.

    Raises: DamageError when it has lines that are no "OID path", or no end of line at its end.
    """
    character = _CHARACTER_14 if major >= _DOUBLES_BACKSLASH else _CHARACTER
    mapping: dict[str, bytes] = {}
    line = b""
    for found in character.findall(data):
        if found not in (b"\n", b"\r"):
            line += found[-1:]
            continue
        oid, _, path = line.partition(b" ")
        if not (oid.isdigit() and path):
            raise _bad_map(line)
        mapping[oid.decode()] = path
        line = b""
    if line:
        raise _bad_map(line)
    return mapping


def render_tablespace_map(mapping: dict[str, bytes], major: int) -> bytes:
    """Write a tablespace_map that a server of this major version reads back as ``mapping``, paths by OID.

    Raises: TargetRefused for a path that this version cannot read back.
    """
    special = _SPECIAL_14 if major >= _DOUBLES_BACKSLASH else _SPECIAL
    lines = []
    for oid, path in mapping.items():
        if major < _DOUBLES_BACKSLASH and path.endswith(b"\\"):
            raise TargetRefused(
                f"tablespace {oid} cannot be restored to a path that ends in a backslash",
                f"PostgreSQL {major} would misread {path!r} in tablespace_map.",
                "Choose another directory for this tablespace.",
            )
        lines.append(oid.encode() + b" " + special.sub(rb"\\\g<0>", path) + b"\n")
    return b"".join(lines)


def _field(lines: dict[str, str], name: str, pattern: re.Pattern[str]) -> re.Match[str]:
    found = pattern.fullmatch(lines.get(name, ""))
    if not found:
        raise _bad_label(name, lines.get(name))
    return found


def _bad_label(name: str, value: str | None) -> DamageError:
    detail = f"It has no line {name}." if value is None else f"Its line {name} says {value!r}."
    return DamageError("backup_label is not what a server writes", detail, "Take it unchanged from pg_backup_stop(); do not remove it to make a server start.")


def _bad_map(line: bytes) -> DamageError:
    return DamageError("tablespace_map is not what a server writes", f"It has the line {line!r}.", "Each line is a tablespace's OID, one space, and its path.")
