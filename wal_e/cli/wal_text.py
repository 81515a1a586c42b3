"""What is known of stored WAL for a person: the tree of ``wal-show`` and the lines of ``wal-verify``; what can be recovered comes last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from wal_e.archive.wal_index import TimelineWal
from wal_e.archive.wal_reach import Gap, Reach
from wal_e.cli.render import shown_time
from wal_e.operators.wal_content import Content
from wal_e.operators.wal_show import BackupHere, Branch, tree
from wal_e.operators.wal_survey import Survey
from wal_e.operators.wal_verify import ServerView, Verdict
from wal_e.progress import shown_bytes


class Strokes(NamedTuple):
    """What a tree is drawn with: before an item, before the last, and beside what hangs from either."""

    item: str
    last: str
    beside: str
    below_last: str


UNICODE = Strokes("├── ", "└── ", "│   ", "    ")
ASCII = Strokes("|-- ", "`-- ", "|   ", "    ")


def tree_text(survey: Survey, strokes: Strokes) -> str:
    """The tree of timelines, and below it what can be recovered."""
    lines = [_heading(survey), ""]
    for branch in tree(survey):
        lines += [_branch_line(branch, survey), *_hanging(branch, survey, strokes)]
    return "\n".join([*lines, *_oddities(survey), "", *_prospects(survey)]) + "\n"


def verdict_text(verdict: Verdict) -> str:
    """What is there per timeline, gaps, backups, server and content; the problems are told by the error."""
    survey = verdict.survey
    lines = [_heading(survey)]
    lines += [f"timeline {one}: {_stored(survey.wal.timelines.get(one) or TimelineWal(one), survey)}" for one in survey.lines.timelines]
    lines += [f"gap on timeline {gap.timeline}: {_gap(gap, survey)}" for gap in survey.gaps]
    lines += [f"backup {backup.name}: {_prospect(_reach_of(backup.name, survey), verdict.damaged)}" for backup in survey.backups]
    lines += _oddities(survey)
    if verdict.server:
        lines.append(f"server: {_server(verdict.server)}")
    if verdict.content:
        lines += _content(verdict.content)
    lines += _prospects(survey)
    lines.append("NOT WHOLE, see the error" if verdict.problems else "whole: all WAL that is relied on is there")
    return "\n".join(lines) + "\n"


def _heading(survey: Survey) -> str:
    whose = f" of the system {', '.join(map(str, survey.identity.system_identifiers))}" if survey.identity else ""
    return f"{survey.url}: WAL{whose}, in segments of {shown_bytes(survey.wal.segment_size)}"


def _hanging(branch: Branch, survey: Survey, strokes: Strokes) -> Iterator[str]:
    for item in branch.items:
        is_last = item is branch.items[-1]
        stroke, beside = (strokes.last, strokes.below_last) if is_last else (strokes.item, strokes.beside)
        if isinstance(item, Branch):
            yield stroke + _branch_line(item, survey)
            yield from (beside + line for line in _hanging(item, survey, strokes))
        elif isinstance(item, BackupHere):
            yield f"{stroke}backup {item.backup.name}, finished {shown_time(item.backup.finished)}: {_prospect(item.reach)}"
        else:
            yield f"{stroke}{'GAP' if item.needed_by else 'gap'}: {_gap(item, survey)}"


def _branch_line(branch: Branch, survey: Survey) -> str:
    left = f", left timeline {branch.parent.timeline} at {branch.parent.end}" if branch.parent else ""
    return f"timeline {branch.timeline}{left}: {_stored(branch.wal, survey)}"


def _stored(wal: TimelineWal, survey: Survey) -> str:
    timeline, segments = wal.timeline, wal.segments
    words = ["no whole segment"]
    if segments:
        first, last = survey.wal.name(timeline, segments.first), survey.wal.name(timeline, segments.last)
        words = [f"{first} to {last}", _number(segments.total, "segment"), shown_bytes(wal.stored_bytes)]
    if wal.newest:
        words.append(f"newest {shown_time(wal.newest)}")
    if timeline > 1 and timeline not in survey.histories:
        words.append("NO HISTORY FILE" if timeline not in survey.damaged_histories else "DAMAGED HISTORY FILE")
    for ranges, what in ((wal.partial, "partial"), (wal.streaming, "still being received"), (wal.twice, "stored under two suffixes")):
        words += [f"{survey.wal.name(timeline, ranges.last)}{f' and {ranges.total - 1} more' if ranges.total > 1 else ''} {what}"] if ranges else []
    return ", ".join(words)


def _gap(gap: Gap, survey: Survey) -> str:
    first, last, count = survey.wal.name(gap.timeline, gap.first), survey.wal.name(gap.timeline, gap.last), gap.last - gap.first + 1
    what = f"{first} is missing" if count == 1 else f"{first} to {last} are missing, {count} segments"
    more = f" and {_number(len(gap.needed_by) - 1, 'other backup')}" if len(gap.needed_by) > 1 else ""
    return f"{what}, needed by {gap.needed_by[0]}{more}" if gap.needed_by else f"{what}, which no backup needs"


def _reach_of(name: str, survey: Survey) -> Reach | None:
    return next((reach for reach in survey.reaches if reach.need.name == name), None)


def _prospect(reach: Reach | None, damaged: frozenset[str] = frozenset()) -> str:
    """What can be had from a backup."""
    why = "damaged" if reach and (reach.unusable_without or reach.missing) in damaged else "missing"
    if reach is None:
        return "DAMAGED, it is not known what it needs"
    if reach.unusable_without:
        return f"UNUSABLE, {reach.unusable_without} is {why}"
    if reach.missing:
        return f"BROKEN, usable up to {reach.end or 'its own end'}, then {reach.missing} is {why}"
    return f"good, up to {reach.end or 'its own end'}" + (f", the end of timeline {reach.target}" if reach.target != reach.need.timeline else "")


def _oddities(survey: Survey) -> list[str]:
    wal = survey.wal
    needless = sum(survey.needless.values())
    lines = [f"{_number(needless, 'segment')} that no backup needs"] if needless else []
    lines += [f"{_number(wal.unknown, 'object')} beside the WAL that {'is' if wal.unknown == 1 else 'are'} none of it"] if wal.unknown else []
    if wal.misfit:
        lines.append(f"{_number(wal.misfit.segments, 'segment')} with a name for another segment size, for example {wal.misfit.example}")
    return lines


def _server(server: ServerView) -> str:
    if server.archiver is None:
        return f"did not answer: {server.silence}"
    name = server.archiver.last_archived_wal
    if name is None:
        return "has archived nothing since its statistics were reset"
    moment = f" at {shown_time(server.archiver.last_archived_time)}" if server.archiver.last_archived_time else ""
    failing = f"; its last attempt, at {server.archiver.last_failed_wal}, failed" if server.archiver.is_failing else ""
    return f"archived {name} last{moment}, which {'is stored' if server.stored else 'IS NOT STORED'}{failing}"


def _content(content: Content) -> list[str]:
    counts = f"{_number(content.checked, 'file')} read and good, {shown_bytes(content.checked_bytes)}; {content.known} known to be good from before"
    lines = [f"content: {counts}; {_bad_counts(content)}"]
    lines += [f"  damaged: {finding.key}: {finding.reason}" for finding in content.damaged]
    return lines + [f"  not read: {finding.key}: {finding.reason}" for finding in content.unreadable]


def _bad_counts(content: Content) -> str:
    return f"{len(content.damaged)} damaged" + (f", {len(content.unreadable)} not readable" if content.unreadable else "")


def _prospects(survey: Survey) -> list[str]:
    """What can be recovered, in the words for three in the morning."""
    if not survey.backups:
        return ["NOTHING can be recovered: there is no backup. Make one with wal-e backup-push."]
    good = [reach for reach in survey.reaches if not reach.missing]
    lines = [f"{len(good)} of {_number(len(survey.backups), 'backup')} can be recovered to the end of the stored WAL"]
    if good:
        newest = good[-1]
        wal = survey.wal.timelines.get(int(newest.end[:8], 16)) if newest.end else None
        stored = f", stored {shown_time(wal.newest)}" if wal and wal.newest and newest.end and wal.segments.last == survey.wal.number(newest.end) else ""
        lines.append(f"the newest of them: {newest.need.name}, up to {newest.end or 'its own end'}{stored}")
    usable = [reach for reach in survey.reaches if reach.missing and not reach.unusable_without]
    if not good and usable:
        lines.append(f"the newest that can be used: {usable[-1].need.name}, only up to {usable[-1].end or 'its own end'}")
    elif not good:
        lines.append("NO backup can be used. Make one with wal-e backup-push.")
    return lines


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
