"""``window``: from when to when a cluster can be recovered, per timeline, to the microsecond.

A window begins where its oldest backup is consistent. Its earliest moment is that of the last commit before; a recovery
to anything earlier would stop later than it was asked to. It ends with the last commit (or abort) in the store:
a recovery to a moment needs one that is later, to know that it has come far enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.recovery_window import Unbroken, Way, unbroken_ways
from wal_e.archive.wal_reach import Need, Stretch
from wal_e.errors import DamageError, WaleError, WalGap
from wal_e.operators.wal_search import ending, latest_before
from wal_e.operators.wal_survey import Survey, lost_histories
from wal_e.postgres.wal import Lsn
from wal_e.postgres.wal_records import Record

LOOK_BEFORE = 8  # segments before a backup, for the last commit there; else the window begins when the backup was finished
LOOK_BACK = 512  # segments without a commit at the end of a window; five days of an idle server with archive_timeout at 15 minutes


class Window(NamedTuple):
    """What can be recovered with one unbroken way, times aware and UTC.

    ``start`` is where ``backup`` is consistent, ``start_time`` the earliest moment that can be asked for. ``last`` is the last commit
    or abort behind that, None when there is none in the last segments; ``end`` where the stored WAL ends, in ``end_segment``, and ``written`` the
    latest time in it. The last three are None for a backup that has all its WAL within itself.
    """

    timeline: int
    backup: str
    start: Lsn
    start_time: datetime
    last: Record | None
    end: Lsn | None
    end_segment: str | None
    written: datetime | None


def recoverable(archive: Archive, survey: Survey) -> list[Window]:
    """All windows, by timeline and then by where they begin; few segments are read for each.

    Raises: DamageError naming the key; what the store raises.
    """
    needs = [reach.need for reach in survey.reaches]
    return [_window(archive, survey, one) for one in unbroken_ways(needs, survey.wal, survey.lines)]


def lost_timelines(survey: Survey) -> dict[int, WaleError]:
    """Timelines to which older backups might lead, if only their histories could be read, and why they cannot."""
    lost: dict[int, WaleError] = {
        timeline: DamageError(
            f"{survey.wal.histories[timeline]} is damaged",
            f"{reason} Without it nobody can tell which backups lead to timeline {timeline}.",
            "Move the object away; wal-e wal-push --missing PGDATA stores it again, where the server still has it in pg_wal.",
        )
        for timeline, reason in survey.damaged_histories.items()
    }
    for timeline in lost_histories(survey):
        lost[timeline] = WalGap(
            f"{timeline:08X}.history is not in the store",
            f"There is WAL of timeline {timeline}, and nobody can tell which backups lead to it.",
            "wal-e wal-push --missing PGDATA stores it, where the server still has it in pg_wal.",
        )
    return lost


def _window(archive: Archive, survey: Survey, one: Unbroken) -> Window:
    need = one.need
    start_time = latest_before(archive, _way_before(survey, need), need.stop) or need.finished
    if not one.way.stretches:
        return Window(one.timeline, need.name, need.stop, start_time, None, None, None, None)
    found = ending(archive, one.way.from_lsn(need.stop), LOOK_BACK)
    last = found.commit if found.commit and found.commit.lsn >= need.stop else None
    end = max(found.end, need.stop) if found.end else need.stop
    return Window(one.timeline, need.name, need.stop, start_time, last, Lsn(end), one.way.name(one.way.segments - 1), found.written)


def _way_before(survey: Survey, need: Need) -> Way:
    """The stored segments that lead without a gap to where a backup is consistent, from some before its start on."""
    consistent = next(reach.consistent for reach in survey.reaches if reach.need.name == need.name)
    way: tuple[Stretch, ...] = ()
    if consistent:
        timeline, _, last = consistent[-1]
        way = survey.lines.way(timeline, max(consistent[0].first - LOOK_BEFORE, 0), last)
        while (missing := survey.lines.first_missing(way)) is not None:
            way = survey.lines.way(timeline, missing[1] + 1, last)
    return Way(survey.wal.segment_size, way)


def windows_text(windows: Sequence[Window]) -> str:
    """A line for each window, for a person."""
    return "".join(f"{line}\n" for line in _lines(windows))


def _lines(windows: Iterable[Window]) -> Iterable[str]:
    for one in windows:
        begin = f"timeline {one.timeline}: from {exact_time(one.start_time)} ({one.start}, {one.backup})"
        if one.last is not None:
            yield f"{begin} to {exact_time(one.last.time)} ({one.last.lsn}, the last {one.last.kind})"
        elif one.end is not None:
            yield f"{begin} to {one.end}, with no commit found behind the backup"
        else:
            yield f"{begin}, and nothing behind it"


def exact_time(moment: datetime) -> str:
    """A time to the microsecond, in UTC. PostgreSQL takes it as recovery_target_time, where it does not take a "Z"."""
    return moment.isoformat(timespec="microseconds")
