"""To which point a restore should come, and which backups lead there. Nothing here reads or writes.

A backup leads to a timeline if that is its own, or left its own no earlier than where the backup is
consistent. Recovery from it reads the segments of ``wal_reach`` in order, and stops at the first record
that the target is about; what lies behind a gap is out of reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from wal_e.archive.recovery_window import Way, stored_way
from wal_e.archive.wal_index import WalIndex
from wal_e.archive.wal_reach import Lines, Need, reach_of
from wal_e.errors import UsageError
from wal_e.postgres.wal import Lsn

END = "end"
IMMEDIATE = "immediate"
TIME = "time"
LSN = "lsn"
XID = "xid"
NAME = "name"

LATEST = "latest"
CURRENT = "current"

MAX_NAME_BYTES = 63  # MAXFNAMELEN - 1 in xlog_internal.h

_MAX_XID_DIGITS = 20  # of 2**64
_ZONE_NAME = re.compile(r"(.+) ([A-Za-z][\w+/-]*)")
_MICROSECOND = timedelta(microseconds=1)


class Goal(NamedTuple):
    """A point to come to: its kind, the value as the server's setting takes it, and what that means.

    ``inclusive`` is whether the transaction, record or restore point that is named is part of the result.
    """

    kind: str = END
    value: str = ""
    inclusive: bool = True
    moment: datetime | None = None
    lsn: Lsn | None = None
    xid: int | None = None

    @property
    def begins_after(self) -> datetime:
        """The time after which the first commit is the one to stop at."""
        assert self.moment is not None
        return self.moment if self.inclusive else self.moment - _MICROSECOND

    def __str__(self) -> str:
        if self.kind == END:
            return "the end of the archived WAL"
        if self.kind == IMMEDIATE:
            return "the end of the backup"
        words = {TIME: "time", LSN: "LSN", XID: "transaction", NAME: "restore point"}[self.kind]
        return f"{words} {self.value}" + ("" if self.inclusive else ", exclusive")


class Course(NamedTuple):
    """A backup, the timeline it is to be brought to, and the way there as far as it has no gap.

    ``missing`` is the segment that is missing behind the way, None when it goes to the end of the
    timeline; ``unusable_without`` the one without which the backup is of no use.
    """

    need: Need
    timeline: int
    way: Way
    missing: str | None
    unusable_without: str | None


def goal_at_time(text: str, inclusive: bool) -> Goal:
    """Read a point in time; without an offset or a zone it is in the local zone. Raises: UsageError."""
    moment = parse_time(text)
    return Goal(TIME, shown_moment(moment), inclusive, moment=moment)


def goal_at_lsn(text: str, inclusive: bool) -> Goal:
    """Read a position. Raises: UsageError."""
    try:
        lsn = Lsn.parse(text)
    except ValueError:
        raise UsageError(f"{text!r} is not an LSN", "A position in the WAL looks like 16/B374D848.", "See pg_current_wal_lsn().") from None
    return Goal(LSN, str(lsn), inclusive, lsn=lsn)


def goal_at_xid(text: str, inclusive: bool) -> Goal:
    """Read a transaction's number, with or without its epoch. Raises: UsageError."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_XID_DIGITS and int(text) < 2**64
    if not is_number:
        raise UsageError(f"{text!r} is not the number of a transaction", "It is decimal, as txid_current() tells it.")
    xid = int(text) % 2**32  # the WAL has no epochs
    return Goal(XID, str(xid), inclusive, xid=xid)


def goal_at_name(text: str) -> Goal:
    """Take the name of a restore point. Raises: UsageError."""
    if not 0 < len(text.encode("utf-8", "surrogateescape")) <= MAX_NAME_BYTES:
        raise UsageError("this cannot be the name of a restore point", f"PostgreSQL takes 1 to {MAX_NAME_BYTES} bytes.")
    return Goal(NAME, text)


def parse_time(text: str) -> datetime:
    """Read ISO 8601 as PostgreSQL prints it, with an offset, the name of a zone, or none for the local zone; the result is in UTC. Raises: UsageError."""
    stripped = text.strip()
    try:
        named = _ZONE_NAME.fullmatch(stripped)
        moment = datetime.fromisoformat(named[1] if named else stripped)
        if named and moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(named[2]))
        elif named:
            raise ValueError(stripped)
        return moment.astimezone(UTC)
    except (ValueError, KeyError, OSError, OverflowError):
        raise UsageError(
            f"{text!r} is not a point in time",
            "It looks like '2001-02-03 04:05:06+00', '2001-02-03T04:05:06.789Z', '2001-02-03 04:05:06 Europe/Berlin', or without a zone in the local one.",
            "Without a target, all WAL that is stored is recovered.",
        ) from None


def shown_moment(moment: datetime) -> str:
    """A time as PostgreSQL prints and reads it, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f").rstrip("0").rstrip(".") + "+00"


def courses(needs: Iterable[Need], index: WalIndex, lines: Lines, wanted: str) -> list[Course]:
    """The backups that lead to a timeline, and how, the one that ends last first.

    ``wanted`` is a number, "current" for each backup's own timeline, or "latest": the newest one to which a backup leads.
    """
    everything = list(needs)
    targets = {need: _target(need, lines, wanted) for need in everything}
    if wanted == LATEST:
        newest = max((target for target in targets.values() if target), default=None)
        targets = {need: newest if newest and lines.descends(newest, need.timeline, need.stop) else None for need in everything}
    found = [_course(need, index, lines, target) for need, target in targets.items() if target is not None]
    return sorted(found, key=lambda course: (course.need.timeline, course.need.stop, course.need.finished), reverse=True)


def _target(need: Need, lines: Lines, wanted: str) -> int | None:
    if wanted == CURRENT:
        return need.timeline
    if wanted == LATEST:
        return max((one for one in lines.timelines if lines.descends(one, need.timeline, need.stop)), default=need.timeline)
    return int(wanted) if lines.descends(int(wanted), need.timeline, need.stop) else None


def _course(need: Need, index: WalIndex, lines: Lines, timeline: int) -> Course:
    reach = reach_of(need, index, lines, timeline)
    return Course(need, timeline, stored_way(index, reach.way), reach.missing, reach.unusable_without)


def recovery_targets(goal: Goal, course: Course, action: str, major: int) -> dict[str, str]:
    """The server's settings that bring it to the goal, by name.

    The timeline is the one that the plan was made for: "latest" may be another by then. Before 12 a
    backup's own is the default and cannot be named.
    """
    own = course.timeline == course.need.timeline
    settings = {}
    if goal.kind == IMMEDIATE:
        settings["recovery_target"] = "immediate"
    elif goal.kind != END:
        settings[f"recovery_target_{goal.kind}"] = goal.value
    if goal.kind in (TIME, LSN, XID):
        settings["recovery_target_inclusive"] = "on" if goal.inclusive else "off"
    if goal.kind != END:
        settings["recovery_target_action"] = action
    if major >= 12 or not own:
        settings["recovery_target_timeline"] = CURRENT if own else str(course.timeline)
    return settings
