"""What is known of stored WAL as JSON. Sizes in bytes, times as in ``backup-list``, segments by their names."""

from __future__ import annotations

from typing import Any

from wal_e.archive.catalog import Backup
from wal_e.archive.ranges import Ranges
from wal_e.archive.wal_index import TimelineWal
from wal_e.archive.wal_reach import Reach
from wal_e.cli.render import shown_time
from wal_e.operators.wal_content import Content
from wal_e.operators.wal_survey import Survey
from wal_e.operators.wal_verify import ServerView, Verdict


def survey_json(survey: Survey) -> dict[str, Any]:
    """All that a look at the store tells."""
    wal = survey.wal
    return {
        "prefix": survey.url,
        "system_identifiers": [str(number) for number in survey.identity.system_identifiers] if survey.identity else [],
        "segment_size": wal.segment_size,
        "timelines": [_timeline(timeline, survey) for timeline in survey.lines.timelines],
        "gaps": [{"timeline": gap.timeline, **_span(survey, gap.timeline, gap.first, gap.last), "needed_by": list(gap.needed_by)} for gap in survey.gaps],
        "backups": [_backup(backup, survey) for backup in survey.backups],
        "needless_segments": sum(survey.needless.values()),
        "backup_history_files": wal.backup_files,
        "unknown_objects": wal.unknown,
        "misnamed_segments": wal.misfit.segments if wal.misfit else 0,
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """The same, with what the server says, what was read, and the problems."""
    return {
        "whole": not verdict.problems,
        "problems": [{"error": type(one).__name__, "message": one.message, "detail": one.detail, "hint": one.hint} for one in verdict.problems],
        **survey_json(verdict.survey),
        "server": _server(verdict.server) if verdict.server else None,
        "content": _content(verdict.content) if verdict.content else None,
    }


def _timeline(timeline: int, survey: Survey) -> dict[str, Any]:
    stored = survey.wal.timelines.get(timeline) or TimelineWal(timeline)
    segments, parent = stored.segments, survey.lines.parent(timeline)
    history = "stored" if timeline in survey.histories else "damaged" if timeline in survey.damaged_histories else None
    return {
        "timeline": timeline,
        "parent": parent.timeline if parent else None,
        "left_parent_at": str(parent.end) if parent else None,
        "history": history,
        "first": survey.wal.name(timeline, segments.first) if segments else None,
        "last": survey.wal.name(timeline, segments.last) if segments else None,
        "segments": segments.total,
        "stored_bytes": stored.stored_bytes,
        "newest": shown_time(stored.newest) if stored.newest else None,
        "ranges": _ranges(survey, timeline, segments),
        "stored_twice": _ranges(survey, timeline, stored.twice),
        "partial": _ranges(survey, timeline, stored.partial),
        "streaming": _ranges(survey, timeline, stored.streaming),
        "needless_segments": survey.needless.get(timeline, 0),
    }


def _ranges(survey: Survey, timeline: int, ranges: Ranges) -> list[dict[str, Any]]:
    return [_span(survey, timeline, one.first, one.last) for one in ranges]


def _span(survey: Survey, timeline: int, first: int, last: int) -> dict[str, Any]:
    return {"first": survey.wal.name(timeline, first), "last": survey.wal.name(timeline, last), "segments": last - first + 1}


def _backup(backup: Backup, survey: Survey) -> dict[str, Any]:
    reach = next((reach for reach in survey.reaches if reach.need.name == backup.name), None)
    known = {"name": backup.name, "finished": shown_time(backup.finished), "damage": str(backup.damage) if backup.damage else None}
    return {**known, **(_reach(reach, survey) if reach else dict.fromkeys(_REACH))}


_REACH = ("timeline", "start_lsn", "stop_lsn", "online", "needs", "usable", "target_timeline", "missing", "recovers_to")


def _reach(reach: Reach, survey: Survey) -> dict[str, Any]:
    need = reach.need
    needs = [_span(survey, *stretch) for stretch in reach.consistent]
    values = (need.timeline, str(need.start), str(need.stop), need.online, needs, not reach.unusable_without, reach.target, reach.missing, reach.end)
    return dict(zip(_REACH, values, strict=True))


def _server(server: ServerView) -> dict[str, Any]:
    stats = server.archiver
    return {
        "error": str(server.silence) if server.silence else None,
        "last_archived_wal": stats.last_archived_wal if stats else None,
        "last_archived_time": shown_time(stats.last_archived_time) if stats and stats.last_archived_time else None,
        "last_failed_wal": stats.last_failed_wal if stats else None,
        "last_failed_time": shown_time(stats.last_failed_time) if stats and stats.last_failed_time else None,
        "last_archived_is_stored": server.stored,
    }


def _content(content: Content) -> dict[str, Any]:
    return {
        "checked": content.checked,
        "checked_bytes": content.checked_bytes,
        "known_good": content.known,
        "damaged": [finding._asdict() for finding in content.damaged],
        "unreadable": [finding._asdict() for finding in content.unreadable],
    }
