"""What somebody should know before a restore is carried out, although nothing stands in its way.

A backup that is known to be damaged can be chosen all the same: it is the newest, and its damage may be one page. And
after an earlier restore to a point in time a moment may lie on two timelines: PostgreSQL stops at the first
later commit on the one that it follows, and what was committed on the one that was left is not part of that.
"""

from __future__ import annotations

from collections.abc import Iterator

from wal_e.archive.archive import Archive
from wal_e.archive.backup_checks import read_checks
from wal_e.archive.catalog import Backup
from wal_e.archive.drill_record import FAILED, read_drill
from wal_e.archive.recovery_window import stored_way
from wal_e.archive.restore_plan import TIME, courses, shown_moment
from wal_e.operators import wal_search as search
from wal_e.operators.restore_aim import LOOK_BACK, Aim
from wal_e.operators.wal_survey import Survey
from wal_e.postgres.wal import Switch

_SHOWN = 300  # characters of a reason


def concerns(archive: Archive, survey: Survey, aim: Aim, backup: Backup) -> tuple[str, ...]:
    """Sentences for a person, with what to do instead; none where all is well. Raises: DamageError; what the store raises."""
    return (*_of_backup(archive, survey, aim, backup), *_of_timelines(archive, survey, aim))


def _of_backup(archive: Archive, survey: Survey, aim: Aim, backup: Backup) -> Iterator[str]:
    damage = known_damage(archive, backup)
    if damage is None:
        return
    yield f"Something is wrong with {backup.name}. {damage}"
    backups = {one.name: one for one in survey.backups}
    found = courses((reach.need for reach in survey.reaches), survey.wal, survey.lines, str(aim.course.timeline))
    older = [course for course in found if course.need.stop < aim.course.need.stop and not course.missing and not course.unusable_without]
    instead = next((course.need.name for course in older if known_damage(archive, backups[course.need.name]) is None), None)
    if instead:
        yield f"--backup {instead} begins with an older one, of which nothing bad is known, and replays more WAL."
    else:
        yield "There is no older backup that leads there and of which nothing bad is known."


def known_damage(archive: Archive, backup: Backup) -> str | None:
    """What the push, the last verification or the last drill found of a backup; None for nothing. Raises: what the store raises."""
    checks = read_checks(archive.store, backup.name)
    full = checks.get("full")
    failed = [check for way, check in checks.items() if not check.ok and not (way == "fast" and full and full.ok and full.time > check.time)]
    if failed:
        check = max(failed, key=lambda check: check.time)
        return f"backup-verify at {shown_moment(check.time.replace(microsecond=0))} found: {_first_of(check.named, check.problems)}"
    facts = backup.sentinel.facts if backup.sentinel else None
    pages = facts.page_checksums.damaged if facts and facts.page_checksums else ()
    if pages:
        return f"The cluster had damaged pages when it was backed up: {_first_of(tuple(map(str, pages)), len(pages))}"
    drill = read_drill(archive.store, backup.name)
    if drill and drill.outcome == FAILED:
        return f"Its drill at {shown_moment(drill.finished.replace(microsecond=0))} failed: {_first_of((drill.reason,), 1)}"
    return None


def _first_of(named: tuple[str, ...], count: int) -> str:
    first = named[0] if named else "it is not whole"
    first = f"{first[:_SHOWN]} ..." if len(first) > _SHOWN else first.rstrip(".")
    return f"{first}, and {count - 1} more." if count > 1 else f"{first}."


def _of_timelines(archive: Archive, survey: Survey, aim: Aim) -> Iterator[str]:
    """Tell of timelines that were left, and went on with commits up to the moment: newest first, until one is met that had ended before the new one began."""
    moment, stop = aim.goal.moment, aim.lsn
    if aim.goal.kind != TIME or moment is None or stop is None:
        return
    for switch in reversed(survey.histories.get(aim.course.timeline, ())):
        if switch.end > stop:
            continue
        own = search.first_commit(archive, aim.way, switch.end) if aim.course.need.stop <= switch.end else None
        has_begun = aim.course.need.stop > switch.end or (own is not None and own.lsn < stop)
        aside = stored_way(survey.wal, survey.lines.way(switch.timeline, switch.end // survey.wal.segment_size))
        first = search.first_commit(archive, aside, switch.end)
        last = search.last_commit(archive, aside, LOOK_BACK) if first else None
        if first and last and first.time <= moment and (last.time > moment or not has_begun):
            whole = "" if last.time > moment else ", without --target-time"
            yield _left(switch, shown_moment(last.time))
            yield f"Should those be part of it: --target-timeline {switch.timeline}{whole}. See wal-e wal-show."
        if has_begun:
            return


def _left(switch: Switch, last: str) -> str:
    return (
        f"Timeline {switch.timeline} went on up to {last} after it was left at {switch.end}, "
        "with commits that are not later than the target and are not part of the result."
    )
