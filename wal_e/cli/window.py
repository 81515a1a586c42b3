"""The verb ``window``: what can be recovered, to the microsecond."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from wal_e.archive.wal_reach import Gap
from wal_e.cli.context import Context
from wal_e.cli.render import show
from wal_e.errors import BackupNotFound, WalGap
from wal_e.operators.wal_search import LANES
from wal_e.operators.wal_survey import Survey, look
from wal_e.operators.wal_verify import combined
from wal_e.operators.window import Window, exact_time, lost_timelines, recoverable, windows_text
from wal_e.postgres.wal_records import Record


@click.command("window")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
@click.pass_obj
def window(context: Context, as_json: bool) -> None:
    """Show from when to when the cluster can be recovered, on each timeline.

    From the first point at which a backup is consistent to the last commit in the store, with times, LSNs and
    the gaps between. Exit status 1: there is no backup, or the store did not answer. 2: no backup can be used, or damage.
    """
    archive = context.archive(LANES).read_only()
    survey = look(archive)
    windows = recoverable(archive, survey)
    show(json.dumps(windows_json(survey, windows), indent=1) + "\n" if as_json else windows_text(windows) + "".join(_gap_lines(survey)))
    lost = lost_timelines(survey)
    if not survey.backups:
        raise BackupNotFound("nothing can be recovered", f"{survey.url} holds no complete backup.", "Make one with wal-e backup-push, or check the prefix.")
    if not windows:
        raise WalGap("nothing can be recovered", f"No backup in {survey.url} has the WAL that it needs.", "See wal-e wal-show. Push a new backup.")
    if lost:
        raise combined(list(lost.values()))


def windows_json(survey: Survey, windows: list[Window]) -> dict[str, Any]:
    """The same for a program; what is not known is null."""
    return {
        "prefix": survey.url,
        "segment_size": survey.wal.segment_size,
        "windows": [_window(one) for one in windows],
        "lost_timelines": {str(timeline): str(error) for timeline, error in lost_timelines(survey).items()},
        "gaps": [{"timeline": gap.timeline, **_span(survey, gap), "needed_by": list(gap.needed_by)} for gap in _gaps(survey)],
    }


def _window(one: Window) -> dict[str, Any]:
    return {
        "timeline": one.timeline,
        "backup": one.backup,
        "from_time": exact_time(one.start_time),
        "from_lsn": str(one.start),
        "last_commit": _record(one.last) if one.last else None,
        "end_lsn": str(one.end) if one.end is not None else None,
        "end_segment": one.end_segment,
        "newest_time": _time(one.written),
    }


def _record(record: Record) -> dict[str, Any]:
    return {"kind": record.kind, "time": exact_time(record.time), "lsn": str(record.lsn), "end_lsn": str(record.end), "xid": record.xid}


def _time(moment: datetime | None) -> str | None:
    return exact_time(moment) if moment else None


def _gaps(survey: Survey) -> list[Gap]:
    return [gap for gap in survey.gaps if gap.needed_by]


def _span(survey: Survey, gap: Gap) -> dict[str, Any]:
    first, last = survey.wal.name(gap.timeline, gap.first), survey.wal.name(gap.timeline, gap.last)
    return {"first": first, "last": last, "segments": gap.last - gap.first + 1}


def _gap_lines(survey: Survey) -> Iterator[str]:
    for gap in _gaps(survey):
        span = _span(survey, gap)
        what = f"{span['first']} is" if span["segments"] == 1 else f"{span['first']} to {span['last']}, {span['segments']} segments, are"
        yield f"timeline {gap.timeline}: {what} missing, needed by {', '.join(gap.needed_by)}\n"


COMMANDS = (window,)
