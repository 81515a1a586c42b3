"""Which backup, and which WAL after it, bring a cluster to the point that is asked for: decided by what is stored, before anything is fetched.

Recovery stops at a record: at the first commit later than a time, at the commit of a transaction, at a named restore
point, at the first record from a position on. That record must be in the archive, else the server stops in the middle
of the night (PostgreSQL 13 and later) or silently recovers everything (before). So it is looked for here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from wal_e.archive import restore_plan as plan
from wal_e.archive.archive import Archive
from wal_e.archive.recovery_window import Way, stored_way
from wal_e.archive.restore_plan import Course, Goal
from wal_e.archive.wal_reach import reach_of
from wal_e.errors import BackupNotFound, DamageError, TargetRefused, WaleError, WalGap
from wal_e.log import Logger
from wal_e.operators import wal_search as search
from wal_e.operators.wal_survey import Survey
from wal_e.operators.window import lost_timelines, recoverable, windows_text
from wal_e.postgres.wal import Lsn
from wal_e.postgres.wal_records import Record

LOG = Logger(__name__)

_HINT = "Nothing was touched. Choose another target, timeline or backup; see wal-e window."
_HINT_BEYOND = (
    "Nothing was touched. Choose another target or timeline, or none, for all that is stored; see wal-e window. "
    'WAL that never was archived may be in pg_wal of the lost server: see "The last segment" in docs/recovery.rst.'
)

LOOK_BACK = 16  # segments from the end of the WAL, for the time of the last commit, which is only told


class Aim(NamedTuple):
    """The choice: a course, the part of its way that recovery reads, and the record to stop at with its time, where there is one."""

    goal: Goal
    course: Course
    way: Way
    lsn: Lsn | None
    time: datetime | None


def take_aim(archive: Archive, survey: Survey, goal: Goal, timeline: str, backup: str | None) -> Aim:
    """Choose the newest backup that ends before the goal on a timeline that leads to it; ``timeline`` is "latest", "current" or a number.

    Raises: BackupNotFound, WalGap, TargetRefused, both of them with what can be restored; DamageError; what the store raises.
    """
    found = _courses(archive, survey, timeline, backup)
    usable = [course for course in found if not course.unusable_without]
    if not usable:
        raise _gap(archive, survey, found[0], f"{found[0].need.name} cannot be used")
    for course in found:
        if course.unusable_without:
            LOG.warning(f"{course.need.name} is passed over", f"The segment {course.unusable_without}, without which it is not consistent, is not stored.")
    return _AIMS[goal.kind](archive, survey, usable, goal)


def _courses(archive: Archive, survey: Survey, timeline: str, backup: str | None) -> list[Course]:
    if not survey.backups:
        raise BackupNotFound("there is no backup yet", f"{survey.url} holds no complete backup.", "Make one with wal-e backup-push, or check the prefix.")
    name = survey.backups[-1].name if backup == "LATEST" else backup
    named = [one for one in survey.backups if name in (None, one.name)]
    if not named:
        raise BackupNotFound(f"there is no backup {name}", f"{survey.url} holds no complete backup of that name.", "See wal-e backup-list.")
    if name is not None:
        named[0].readable()
    if timeline not in (plan.LATEST, plan.CURRENT) and int(timeline) not in survey.lines.timelines:
        there = ", ".join(map(str, survey.lines.timelines)) or "none"
        raise _refuse(archive, survey, TargetRefused, f"there is no timeline {int(timeline)} in the archive", f"It has {there}.")
    names = {one.name for one in named}
    found = plan.courses((reach.need for reach in survey.reaches if reach.need.name in names), survey.wal, survey.lines, timeline)
    if not found:
        what = f"backup {name} does not lead" if name else "no backup leads"
        raise _refuse(
            archive, survey, TargetRefused, f"{what} to timeline {timeline}", "It would have to end before the timeline was left that the other one came from."
        )
    if timeline == plan.LATEST:
        _require_latest(survey, found[0].timeline)
    return found


def _require_latest(survey: Survey, chosen: int) -> None:
    """See that the timeline that was chosen for the latest is the latest; a newer one that no backup leads to is told."""
    lost = lost_timelines(survey)
    newest = max((*survey.lines.timelines, *lost), default=chosen)
    if unreadable := [timeline for timeline in lost if timeline > chosen]:
        error = lost[max(unreadable)]
        hint = f"{error.hint} With --target-timeline {chosen} it is left out, and with it all that was written on it."
        raise type(error)(error.message, error.detail, hint)
    if newest > chosen:
        LOG.warning(f"timeline {newest} is left out", f"No backup leads to it; the newest timeline to which one leads is {chosen}.", "See wal-e wal-show.")


def _to_end(archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> Aim:
    course = found[0]
    if course.missing:
        raise _gap(archive, survey, course, f"{course.need.name} cannot be brought to the end of timeline {course.timeline}")
    last = search.last_commit(archive, course.way, LOOK_BACK)
    return Aim(goal, course, course.way, last.lsn if last else None, last.time if last else None)


def _to_consistency(_archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> Aim:
    course = found[0]
    way = stored_way(survey.wal, reach_of(course.need, survey.wal, survey.lines, course.timeline).consistent)
    return Aim(goal, course, way, course.need.stop, course.need.finished)


def _to_lsn(archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> Aim:
    assert goal.lsn is not None
    lsn = goal.lsn
    course = next((course for course in found if course.need.stop <= lsn), None)
    if course is None:
        raise _too_early(archive, survey, found, goal)
    last = search.last_record(archive, course.way)
    if last is None or last < lsn:
        raise _beyond(archive, survey, course, goal)
    return Aim(goal, course, _up_to(course, Lsn(lsn + 1)), lsn, None)


def _to_time(archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> Aim:
    assert goal.moment is not None
    started = {backup.name: backup.sentinel.facts.started if backup.sentinel and backup.sentinel.facts else backup.finished for backup in survey.backups}
    for course in found:
        if started[course.need.name] > goal.moment:
            continue
        stop = search.first_after(archive, course.way, goal.begins_after)
        if stop is None:
            raise _beyond(archive, survey, course, goal)
        if stop.lsn >= course.need.stop:  # else the clocks of server and backup-push disagree, or it is within the backup
            return Aim(goal, course, _up_to(course, stop.end), stop.lsn, stop.time)
    raise _too_early(archive, survey, found, goal)


def _to_record(archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> Aim:
    """Look for a transaction or a restore point, from the newest backup on, then in the WAL before it."""
    hit: Record | None = None
    newer: Course | None = None
    for course in found:
        way = course.way.from_lsn(course.need.start)
        if newer and newer.timeline == course.timeline:
            way = way.up_to_lsn(Lsn(newer.need.start + 1))
        hit = _find(archive, way, goal, course.need.start) or hit
        if hit is not None and hit.lsn >= course.need.stop:
            return Aim(goal, course, _up_to(course, hit.end), hit.lsn, hit.time)
        newer = course
    if hit is not None:
        raise _too_early(archive, survey, found, goal)
    raise _beyond(archive, survey, found[0], goal)


def _find(archive: Archive, way: Way, goal: Goal, since: Lsn) -> Record | None:
    if goal.kind == plan.NAME:
        return search.find_restore_point(archive, way, goal.value, since)
    assert goal.xid is not None
    return search.find_xid(archive, way, goal.xid, since)


_AIMS: dict[str, Callable[[Archive, Survey, Sequence[Course], Goal], Aim]] = {
    plan.END: _to_end,
    plan.IMMEDIATE: _to_consistency,
    plan.LSN: _to_lsn,
    plan.TIME: _to_time,
    plan.XID: _to_record,
    plan.NAME: _to_record,
}


def _up_to(course: Course, end: Lsn) -> Way:
    return course.way.up_to_lsn(max(end, course.need.stop))


def _gap(archive: Archive, survey: Survey, course: Course, message: str) -> WaleError:
    return _refuse(
        archive, survey, WalGap, message, f"The segment {course.unusable_without or course.missing} is not in the store, and recovery would need it."
    )


def _beyond(archive: Archive, survey: Survey, course: Course, goal: Goal) -> WaleError:
    if course.missing:
        return _gap(archive, survey, course, f"{goal} is not reached before a gap in the WAL")
    what = "is not in the archive" if goal.kind in (plan.XID, plan.NAME) else "lies beyond the end of the archive"
    detail = f"The WAL of timeline {course.timeline} was looked at from {course.need.name} to its end."
    if goal.kind == plan.TIME:
        detail += " A time is reached when there is a commit that is later."
    return _refuse(archive, survey, TargetRefused, f"{goal} {what}", detail, _HINT_BEYOND)


def _too_early(archive: Archive, survey: Survey, found: Sequence[Course], goal: Goal) -> WaleError:
    oldest = found[-1].need
    detail = f"The oldest backup that leads to timeline {found[-1].timeline} is {oldest.name}, which is consistent only at {oldest.stop}."
    return _refuse(archive, survey, TargetRefused, f"no backup ends before {goal}", detail)


def _refuse(archive: Archive, survey: Survey, kind: type[WaleError], message: str, detail: str, hint: str = _HINT) -> WaleError:
    """An error that shows what can be restored instead."""
    try:
        can = windows_text(recoverable(archive, survey)).rstrip("\n")
    except DamageError as damage:
        can = f"not known, for {damage}"
    return kind(message, f"{detail} What can be restored:\n{can}", hint)
