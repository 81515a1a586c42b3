"""Which backups go and which stay, and which WAL the ones that stay need. Nothing here reads or writes.

Backups are ordered by the time they were finished, never by their names: after a recovery to an earlier
point, or an upgrade of the cluster, the newest backup has the lower position. WAL is judged by timeline and
position, in the terms of PostgreSQL's own ``timeline.c``: from a backup, recovery reads its timeline from the
start of the backup on, and may follow any timeline that left it later. What cannot be judged stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from wal_e.errors import UsageError
from wal_e.postgres.wal import Lsn, Switch, segment_name

CLOCK_SLACK = timedelta(hours=1)  # between the clocks of the store and of the database's machine
DEFAULT_SEGMENT_SIZE = 16 * 1024 * 1024  # bytes; for backups of the original, which do not tell
FIRST_TIMELINE = 1  # of every new cluster; it has no history file


class Before(NamedTuple):
    """Keep this backup and all that were finished after it."""

    backup: str


class BeforeSegment(NamedTuple):
    """Keep what starts in this segment or later, and what is not in its past."""

    segment: str


class Retain(NamedTuple):
    """Keep so many of the newest backups, at least one."""

    backups: int


Policy = Before | BeforeSegment | Retain


class Held(NamedTuple):
    """A complete backup: its start, its times (aware, UTC), and of which cluster where that is known.

    ``usable`` is false when its sentinel cannot be understood.
    """

    name: str
    segment: str
    started: datetime
    finished: datetime
    system_identifier: int | None
    segment_size: int | None
    usable: bool


class Remnant(NamedTuple):
    """What lies below a backup's name without a sentinel: when its first and its last object were stored, and its state.

    The state is "alive" when a push may still write there, "dead" when none does, "deleted" when a deletion did not end.
    """

    name: str
    segment: str
    oldest: datetime
    newest: datetime
    state: str


class Start(NamedTuple):
    """From which segment on something that stays needs WAL, and since when it exists; None for a mere position."""

    segment: str
    since: datetime | None


class Holdings(NamedTuple):
    """All that a plan is made from.

    ``held`` is oldest first. ``foreign`` are the starts of other programs' backups. ``histories`` has the
    history of each timeline whose file could be read. ``system_identifiers`` are those that may push here.
    """

    held: Sequence[Held]
    remnants: Sequence[Remnant] = ()
    foreign: Sequence[Start] = ()
    histories: Mapping[int, Sequence[Switch]] = {}
    system_identifiers: frozenset[int] = frozenset()


class Plan(NamedTuple):
    """What goes and what stays; ``starts`` are those of all that stays."""

    going: tuple[Held, ...]
    kept: tuple[Held, ...]
    remnants_going: tuple[Remnant, ...]
    remnants_kept: tuple[Remnant, ...]
    starts: tuple[Start, ...]


def plan(holdings: Holdings, policy: Policy) -> Plan:
    """Decide which backups go; one that cannot be understood stays, and so does one that is being pushed.

    Raises: UsageError when a bare position is given and the prefix holds more than one cluster.
    """
    going = frozenset(backup.name for backup in _chosen(holdings, policy) if backup.usable)
    kept = tuple(backup for backup in holdings.held if backup.name not in going)
    oldest = min((backup.started for backup in kept), default=None)
    remnants_going = tuple(remnant for remnant in holdings.remnants if _is_past(remnant, oldest))
    remnants_kept = tuple(remnant for remnant in holdings.remnants if remnant not in remnants_going)
    starts = [start_of(backup) for backup in kept] + [Start(one.segment, one.oldest) for one in remnants_kept if one.state == "alive"]
    if isinstance(policy, BeforeSegment):
        starts.append(Start(policy.segment, None))
    return Plan(tuple(backup for backup in holdings.held if backup.name in going), kept, remnants_going, remnants_kept, (*starts, *holdings.foreign))


def start_of(backup: Held) -> Start:
    """From where on a backup needs WAL."""
    return Start(backup.segment, backup.started)


class WalNeed:
    """Tells for each WAL file whether it must stay, for the starts of all that stays.

    A file goes when none of them can need it, and it is in the past of one of them: behind it on its own line of
    timelines, or, where that cannot be shown, older than the oldest. The latter saves WAL that a server
    writes at this moment on a timeline that has no backup yet.
    """

    def __init__(self, starts: Iterable[Start], holdings: Holdings) -> None:
        self._starts = tuple(starts)
        self._lineage = _Lineage(holdings)
        oldest = min((start.since for start in self._starts if start.since is not None), default=None)
        self._old = None if oldest is None else oldest - CLOCK_SLACK
        self._timelines: dict[str, _Bounds] = {}

    def keeps(self, name: str, modified: datetime) -> bool:
        """Whether a segment, or a ``.partial`` or ``.backup`` file of one, must stay; time as stored."""
        timeline, position = name[:8], name[8:24]
        bounds = self._timelines.get(timeline)
        if bounds is None:
            bounds = self._timelines[timeline] = self._bounds(int(timeline, 16))
        if position >= bounds.needed_from or any(first <= position <= last for first, last in bounds.shared):
            return True
        return not (position < bounds.passed_before or (self._old is not None and modified < self._old))

    def _bounds(self, timeline: int) -> _Bounds:
        needed_from, passed_before, shared = _NEVER, "", []
        for start in self._starts:
            own, position = int(start.segment[:8], 16), start.segment[8:]
            if timeline == own or self._lineage.may_follow(timeline, own, position):
                needed_from = min(needed_from, position)
            left_at = self._lineage.left_at(timeline, own)
            if left_at is not None:
                shared.append((position, left_at))
                passed_before = max(passed_before, min(position, left_at))
            elif timeline == own and self._lineage.is_certain:
                passed_before = max(passed_before, position)
        return _Bounds(needed_from, passed_before, tuple(shared))


class _Bounds(NamedTuple):
    """Positions on one timeline: needed from here on, proven past before here, and ranges needed besides (both ends in)."""

    needed_from: str
    passed_before: str
    shared: tuple[tuple[str, str], ...]


_NEVER = "~"  # above every hexadecimal digit


class _Lineage:
    """Which timeline left which, and where; knows nothing when several clusters share the prefix."""

    def __init__(self, holdings: Holdings) -> None:
        sizes = {backup.segment_size for backup in holdings.held if backup.segment_size is not None}
        self.is_certain = len(_identifiers(holdings)) <= 1 and len(sizes) <= 1
        self._size = max(sizes, default=DEFAULT_SEGMENT_SIZE)
        known = {FIRST_TIMELINE: (), **holdings.histories} if self.is_certain else {}
        self._left: dict[int, dict[int, str]] = {
            timeline: {switch.timeline: self._position(switch.end) for switch in switches} for timeline, switches in known.items()
        }

    def left_at(self, ancestor: int, timeline: int) -> str | None:
        """Where, on its way to a timeline, the WAL left an ancestor; None when it is none, or that is not known."""
        return self._left.get(timeline, {}).get(ancestor)

    def may_follow(self, timeline: int, own: int, position: str) -> bool:
        """Whether recovery from a position on timeline ``own`` may read another timeline; true when that is not known."""
        newer = max(timeline, own)
        if newer not in self._left:
            return True
        left_at = self.left_at(own, timeline)
        return left_at is not None and left_at >= position

    def _position(self, lsn: Lsn) -> str:
        return segment_name(0, lsn, self._size)[8:]


def _identifiers(holdings: Holdings) -> frozenset[int]:
    return holdings.system_identifiers | {backup.system_identifier for backup in holdings.held if backup.system_identifier is not None}


def _chosen(holdings: Holdings, policy: Policy) -> Sequence[Held]:
    match policy:
        case Retain(backups):
            return [backup for backup in holdings.held if backup.usable][:-backups]
        case Before(name):
            names = [backup.name for backup in holdings.held]
            return holdings.held[: names.index(name)]
        case BeforeSegment(segment):
            return [backup for backup in holdings.held if _starts_before(backup, segment, _lineage_of_one_cluster(holdings))]


def _starts_before(backup: Held, segment: str, lineage: _Lineage) -> bool:
    """Whether a backup starts behind a segment on the line of timelines that leads there."""
    own, timeline, position = int(backup.segment[:8], 16), int(segment[:8], 16), backup.segment[8:]
    if position >= segment[8:]:
        return False
    left_at = lineage.left_at(own, timeline)
    return own == timeline or (left_at is not None and position <= left_at)


def _lineage_of_one_cluster(holdings: Holdings) -> _Lineage:
    lineage = _Lineage(holdings)
    if not lineage.is_certain:
        raise UsageError(
            "a bare segment says too little here",
            "This prefix holds backups of more than one cluster, whose positions have nothing to do with each other.",
            "Use the name of a backup, from wal-e backup-list.",
        )
    return lineage


def _is_past(remnant: Remnant, oldest: datetime | None) -> bool:
    return remnant.state == "deleted" or (remnant.state == "dead" and oldest is not None and remnant.newest < oldest)
