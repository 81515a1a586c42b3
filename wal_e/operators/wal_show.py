"""``wal-show``: timelines as a tree, each with its backups, gaps and the timelines that left it, in the order of positions."""

from __future__ import annotations

from typing import NamedTuple

from wal_e.archive.catalog import Backup
from wal_e.archive.wal_index import TimelineWal
from wal_e.archive.wal_reach import Gap, Reach
from wal_e.operators.wal_survey import Survey
from wal_e.postgres.wal import Switch


class BackupHere(NamedTuple):
    """A backup at its place; ``reach`` is None when its sentinel cannot be understood."""

    backup: Backup
    reach: Reach | None


class Branch(NamedTuple):
    """One timeline: what it left and where, what is stored, and what lies on it in the order of positions."""

    timeline: int
    parent: Switch | None
    wal: TimelineWal
    items: tuple[BackupHere | Gap | Branch, ...]


def tree(survey: Survey) -> list[Branch]:
    """The timelines that left no other one that is known, each with all that grew from it."""
    timelines = survey.lines.timelines
    owned = {int(backup.parsed_name.segment[:8], 16) for backup in survey.backups}
    known = sorted({*timelines, *owned})
    parents = {timeline: survey.lines.parent(timeline) for timeline in known}
    return [_branch(timeline, survey, parents) for timeline, parent in parents.items() if parent is None or parent.timeline not in parents]


def _branch(timeline: int, survey: Survey, parents: dict[int, Switch | None]) -> Branch:
    size = survey.wal.segment_size
    reaches = {reach.need.name: reach for reach in survey.reaches}
    placed: list[tuple[int, int, BackupHere | Gap | Branch]] = []
    for backup in survey.backups:
        name = backup.parsed_name
        if int(name.segment[:8], 16) == timeline:
            reach = reaches.get(backup.name)
            placed.append((reach.need.start // size if reach else 0, 0, BackupHere(backup, reach)))
    placed += [(gap.first, 1, gap) for gap in survey.gaps if gap.timeline == timeline]
    for child, parent in parents.items():
        if parent is not None and parent.timeline == timeline:
            placed.append((parent.end // size, 2, _branch(child, survey, parents)))
    placed.sort(key=lambda one: one[:2])
    wal = survey.wal.timelines.get(timeline) or TimelineWal(timeline)
    return Branch(timeline, parents[timeline], wal, tuple(item for _, _, item in placed))
