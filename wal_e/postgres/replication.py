"""The replication protocol, as far as it answers questions: which cluster, which timeline, how far, and where timelines were left.

A standby and ``pg_receivewal`` ask the same ("Streaming Replication Protocol" in PostgreSQL's
manual: ``IDENTIFY_SYSTEM``, ``SHOW``, ``TIMELINE_HISTORY``). On a standby the answers are exact at
once after a promotion, while SQL knows the new timeline only from the next checkpoint on.
"""

from __future__ import annotations

import time
from contextlib import closing

import psycopg

from wal_e import log
from wal_e.errors import ServerUnavailable, WalRefused
from wal_e.postgres.connection import parameters, said
from wal_e.postgres.wal import Lsn, Switch, parse_history, segment_name
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_WAL_DATA = b"w"  # XLogData, the message that has WAL in it
_PATIENCE_S = 30.0
_POLL_S = 0.05

_UNITS = {"MB": 1024**2, "GB": 1024**3}


class Lineage(NamedTuple):
    """A server's timeline, and the ancestors that led to it, oldest first; sizes in bytes."""

    timeline: int
    switches: tuple[Switch, ...]
    segment_size: int

    def segment_at(self, lsn: int) -> str:
        """Name the segment with this position as this server has it: the one in which a timeline ends belongs to the next."""
        end = (lsn // self.segment_size + 1) * self.segment_size
        timeline = next((switch.timeline for switch in self.switches if end <= switch.end), self.timeline)
        return segment_name(timeline, lsn, self.segment_size)


class Upstream(NamedTuple):
    """Whom we receive from: system identifier, how far its WAL is, and its lineage."""

    system_identifier: int
    lsn: Lsn
    lineage: Lineage


def identify(environ: Mapping[str, str]) -> Upstream:
    """Ask the server that libpq's variables name who it is. Raises: ServerUnavailable, WalRefused."""
    log.hide(environ.get("PGPASSWORD", ""))
    try:
        with psycopg.connect(autocommit=True, prepare_threshold=None, replication="true", **parameters(environ, None)) as connection:
            identifier, timeline, lsn = _answer(connection, "IDENTIFY_SYSTEM")[:3]
            size = _answer(connection, "SHOW wal_segment_size")[0].decode()
            number = int(timeline)
            switches = parse_history(_answer(connection, f"TIMELINE_HISTORY {number}")[1], number) if number > 1 else ()
    except psycopg.Error as error:
        raise ServerUnavailable(
            "the server does not answer for replication",
            said(error),
            "Is it running? Does pg_hba.conf let this role connect for replication, has the role the attribute REPLICATION, is max_wal_senders high enough?",
        ) from error
    return Upstream(int(identifier) % 2**64, Lsn.parse(lsn.decode()), Lineage(number, switches, _bytes(size)))


def still_sends(environ: Mapping[str, str], timeline: int, start: Lsn) -> bool:
    """Whether the server still has the WAL that begins here, by asking it to stream without a slot.

    Asking through the slot would set the slot back to where its WAL is gone, and so spoil it.

    Raises: ServerUnavailable.
    """
    deadline = time.monotonic() + _PATIENCE_S
    try:
        with closing(psycopg.connect(autocommit=True, prepare_threshold=None, replication="true", **parameters(environ, None))) as connection:
            channel = connection.pgconn
            if channel.exec_(f"START_REPLICATION PHYSICAL {start} TIMELINE {timeline}".encode()).status != psycopg.pq.ExecStatus.COPY_BOTH:
                return False
            while time.monotonic() < deadline:
                length, message = channel.get_copy_data(1)
                if length < 0 or bytes(message[:1]) == _WAL_DATA:
                    return length > 0
                if length == 0:
                    time.sleep(_POLL_S)
                    channel.consume_input()
    except psycopg.Error as error:
        raise ServerUnavailable("the server does not answer for replication", said(error)) from error
    raise ServerUnavailable("the server does not answer for replication", f"It was asked for WAL from {start} on, and sent nothing for {_PATIENCE_S:.0f} s.")


def _answer(connection: psycopg.Connection[Any], command: str) -> list[bytes]:
    """The one row that a command returns; bytes, for a history has no particular encoding."""
    result = connection.execute(command.encode()).pgresult
    assert result is not None
    return [result.get_value(0, column) or b"" for column in range(result.nfields)]


def _bytes(size: str) -> int:
    number, unit = size[:-2], size[-2:]
    if not number.isdigit() or unit not in _UNITS:
        raise WalRefused(f"the server's segment size {size!r} is not understood")
    return int(number) * _UNITS[unit]
