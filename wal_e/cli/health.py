"""The state of archiving: ``wal-status``, and what ``wal-push --missing`` does."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from wal_e.cli.context import Context
from wal_e.cli.render import show, shown_time
from wal_e.errors import ServerRefused, ServerUnavailable, UsageError
from wal_e.log import Logger
from wal_e.operators import wal_missing, wal_status
from wal_e.operators.metrics import exposition
from wal_e.operators.wal_missing import Healed
from wal_e.operators.wal_status import Status
from wal_e.postgres import monitor
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.monitor import Monitor
from wal_e.progress import shown_bytes, shown_seconds

LOG = Logger(__name__)


@click.command("wal-status")
@click.argument("pg_cluster_directory", metavar="PGDATA")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object with all that is known.")
@click.option("--prometheus", is_flag=True, help="Print metrics in Prometheus' text format.")
@click.option("--max-backlog", type=click.IntRange(0), metavar="N", help="Raise the alarm when more files wait; over WALE_BACKLOG_LIMIT.")
@click.pass_obj
def status(context: Context, pg_cluster_directory: str, as_json: bool, prometheus: bool, max_backlog: int | None) -> None:
    """Show whether archiving keeps up on the data directory PGDATA.

    Shows what waits, what the server says, and how long the free space lasts. The store is not touched.
    Exit status 0: well. 1: an alarm: too many files wait, or the last attempt to archive failed.
    """
    if as_json and prometheus:
        raise UsageError("--json and --prometheus exclude each other", "Each says how the result is printed.", "Use one of them.")
    limit = context.settings.backlog_limit if max_backlog is None else max_backlog
    now = time.time()
    found = wal_status.look(Cluster.open(pg_cluster_directory), os.environ, limit, now)
    if as_json:
        show(json.dumps(status_json(found), indent=1) + "\n")
    else:
        show(exposition(found.pgdata, wal_status.metrics(found)) if prometheus else status_text(found, now))
    if found.alarm is not None:
        raise found.alarm


def missing(context: Context, pgdata: str) -> None:
    """Heal the gaps of the store that ``pg_wal`` can heal, and print what was done and what is left.

    Raises: WalGap for gaps that are left, and the first failure.
    """
    cluster = Cluster.open(pgdata)
    archive = context.archive((os.cpu_count() or 1) + 1)
    with _session(cluster) as server:
        healed = wal_missing.push_missing(archive, cluster, server)
    show(healed_text(healed))
    healed.raise_what_is_left()


def status_text(status: Status, now: float) -> str:
    """All that is known, a name and a value per line, for a person."""
    rows = [
        ("cluster", f"{status.pgdata}, PostgreSQL {status.major}, system identifier {status.system_identifier}"),
        ("waiting", _waiting(status)),
        ("resident archiver", "runs" if status.resident else "does not run"),
        *_server_rows(status, now),
        ("free space", _free(status)),
        ("state", "well" if status.alarm is None else f"ALARM: {status.alarm.message}"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "".join(f"{name:{width}}{value}\n" for name, value in rows)


def _waiting(status: Status) -> str:
    names = status.backlog.names
    limit = f"(an alarm is raised above {status.limit})"
    if not names:
        return f"nothing {limit}"
    return f"{_files(len(names))} {limit}, first {names[0]}, the longest for {shown_seconds(status.backlog.oldest_age_s)}"


def _server_rows(status: Status, now: float) -> list[tuple[str, str]]:
    facts = status.server
    if facts is None:
        return [("server", f"not asked: {status.trouble}")]
    archiver = facts.archiver
    how = f"archive_library = {facts.archiving.library}" if facts.archiving.library else f"archive_command = {facts.archiving.command or '(none)'}"
    return [
        ("server", f"{facts.position.role}, timeline {facts.position.timeline}, at {facts.position.lsn}"),
        ("archiving", f"archive_mode = {facts.archiving.mode}, {how}"),
        ("last archived", _attempt(archiver.last_archived_wal, archiver.last_archived_time, archiver.archived_count, now)),
        ("last failed", _attempt(archiver.last_failed_wal, archiver.last_failed_time, archiver.failed_count, now)),
    ]


def _attempt(name: str | None, moment: datetime | None, count: int, now: float) -> str:
    if name is None or moment is None:
        return "none"
    return f"{name}, {shown_time(moment)}, {shown_seconds(max(now - moment.timestamp(), 0))} ago; {count} in all"


def _free(status: Status) -> str:
    disk = status.disk
    text = f"{shown_bytes(disk.free_bytes)} of {shown_bytes(disk.size_bytes)}"
    if disk.rate is None or disk.lasts_s is None:
        return text
    return f"{text}, enough for {shown_seconds(disk.lasts_s)} of WAL at {shown_bytes(disk.rate)}/s"


def status_json(status: Status) -> dict[str, Any]:
    """The same for a program; sizes in bytes, durations in seconds, what is not known is null."""
    disk, facts = status.disk, status.server
    return {
        "data_directory": status.pgdata,
        "system_identifier": str(status.system_identifier),
        "version": status.major,
        "segment_size": status.segment_size,
        "waiting": {
            "files": len(status.backlog.names),
            "limit": status.limit,
            "first": status.backlog.names[0] if status.backlog.names else None,
            "last": status.backlog.names[-1] if status.backlog.names else None,
            "oldest_seconds": round(status.backlog.oldest_age_s, 3),
        },
        "resident_archiver": status.resident,
        "disk": {"free_bytes": disk.free_bytes, "size_bytes": disk.size_bytes, "wal_bytes_per_second": disk.rate, "lasts_seconds": disk.lasts_s},
        "server": None
        if facts is None
        else {
            "role": facts.position.role,
            "timeline": facts.position.timeline,
            "position": str(facts.position.lsn),
            "archive_mode": facts.archiving.mode,
            "archive_command": facts.archiving.command,
            "archive_library": facts.archiving.library,
            "archiver": {name: shown_time(value) if isinstance(value, datetime) else value for name, value in facts.archiver._asdict().items()},
        },
        "server_error": str(status.trouble) if status.trouble else None,
        "alarm": str(status.alarm) if status.alarm else None,
    }


def healed_text(healed: Healed) -> str:
    """What was pushed, what was not, and what nobody has."""
    lines = [f"pushed {name}" for name in healed.pushed]
    lines += [f"not pushed {name}: {error.message}" for name, error in healed.failed]
    lines += [f"missing {gap.first}" + ("" if gap.first == gap.last else f" to {gap.last}") + ": neither the store nor pg_wal has it" for gap in healed.gaps]
    gaps = f"{len(healed.gaps)} gap{'' if len(healed.gaps) == 1 else 's'} left"
    lines.append(f"{_files(len(healed.pushed))} pushed, {len(healed.failed)} not pushed, {gaps}, {healed.waiting} waiting for their turn")
    return "".join(f"{line}\n" for line in lines)


def _files(number: int) -> str:
    return f"{number} file{'' if number == 1 else 's'}"


@contextlib.contextmanager
def _session(cluster: Cluster) -> Iterator[Monitor | None]:
    """A session with the server; None, and a warning, where none answers."""
    try:
        session = monitor.connect(os.environ, cluster)
    except (ServerUnavailable, ServerRefused) as error:
        LOG.warning("the server is not asked what it archived", f"{error} What archive_status and pg_control tell has to do.", error.hint, action="push-wal")
        yield None
        return
    with session:
        yield session


COMMANDS = (status,)
