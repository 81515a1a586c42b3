"""``wal-verify``: is the WAL that the backups and the server rely on in the store, and is it good?

A gap that stands between a backup and the end of the newest timeline that descends from it is a failure, and so is a
segment that the server takes for archived and the store lacks. A gap that nobody needs is told, no more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.checked_wal import CheckedWal
from wal_e.archive.identity import read_identity
from wal_e.archive.layout import parse_wal_key
from wal_e.archive.wal_reach import Reach, reach_without
from wal_e.errors import BackupNotFound, BlobFrozen, DamageError, ServerRefused, ServerUnavailable, WaleError, WalGap, WalRefused
from wal_e.operators.wal_content import Content, Finding, check_content, remembered_checks
from wal_e.operators.wal_survey import Survey, look, lost_histories
from wal_e.postgres import monitor
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.monitor import ArchiverStats
from wal_e.postgres.wal import wal_kind

LIVE = timedelta(minutes=1)  # an archive that grew within this may have segments on their way, out of order
PATIENCE_S = 3.0
PAUSE_S = 0.5
CURRENT = timedelta(hours=1)  # what the server archived within this is where its archiving is now
MAX_NAMED = 20  # keys in one error; the result has them all

_SERVER_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGSERVICE")


class ServerView(NamedTuple):
    """What the server says of its archiving, or why it does not; ``stored`` is whether the store has what it archived last."""

    archiver: ArchiverStats | None
    silence: WaleError | None
    stored: bool | None = None

    @property
    def segment(self) -> str | None:
        """The segment that was archived last, None when that was another file, or nothing."""
        name = self.archiver.last_archived_wal if self.archiver else None
        return name if name and wal_kind(name) == "segment" else None


class Verdict(NamedTuple):
    """All that was found out; ``problems`` are those that make the exit status, the worst first.

    In ``survey``, backups come only as far as the first of the ``damaged`` segments.
    """

    survey: Survey
    server: ServerView | None
    content: Content | None
    problems: list[WaleError]
    damaged: frozenset[str]


class Reading(NamedTuple):
    """How to read the content: in so many lanes; all of it "again", or what is "new"."""

    lanes: int
    which: str


def verify(archive: Archive, server: ServerView | None, reading: Reading | None = None, pgdata: str | None = None) -> Verdict:
    """Look at the WAL in the store, compare it with what the server says, and read it if that is asked for.

    Raises: what the store raises; CodecFailed, ConfigurationError.
    """
    survey = settled(archive, server.segment if server else None, time.sleep)
    if server and server.archiver and server.archiver.last_archived_wal:
        server = server._replace(stored=archive.has_wal(server.archiver.last_archived_wal))
    content = None
    if reading:
        content = check_content(archive, survey, reading.lanes, CheckedWal() if reading.which == "again" else remembered_checks(archive, survey))
    problems = [*_damage(survey, content), *_gaps(survey, server, pgdata), *_frozen(content)]
    if pgdata is not None and server and server.silence:
        problems.append(server.silence)
    if not (survey.backups or survey.wal.timelines or problems):
        problems.append(BackupNotFound("this prefix holds nothing", f"{survey.url} has neither a backup nor WAL.", "Is the prefix right? Else make a backup."))
    damaged = dict(_damaged_segments(archive, survey, content))
    reaches = [reach_without(reach, survey.wal, damaged.values()) for reach in survey.reaches]
    return Verdict(survey._replace(reaches=reaches), server, content, problems, frozenset(damaged))


def _damaged_segments(archive: Archive, survey: Survey, content: Content | None) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield names, with timeline and number."""
    for finding in content.damaged if content else ():
        name = parse_wal_key(finding.key, archive.wal_suffixes())
        with contextlib.suppress(WalRefused):  # a name that no segment of this size has
            if name and wal_kind(name) == "segment":
                yield name, (int(name[:8], 16), survey.wal.number(name))


def ask_server(archive: Archive, environ: Mapping[str, str], pgdata: str | None) -> ServerView | None:
    """Ask the server of a data directory, or the one that libpq's variables name; None when there is neither.

    Raises: WrongCluster when the prefix belongs to another cluster; NotACluster, DamageError, LocalFileError.
    """
    if pgdata is None and not any(environ.get(name) for name in _SERVER_VARIABLES):
        return None
    cluster = Cluster.open(pgdata) if pgdata is not None else None
    identity = read_identity(archive.store)
    if cluster and identity:
        identity.require(cluster.control.system_identifier, archive.store)
    try:
        with monitor.connect(environ, cluster) as server:
            if identity:
                identity.require(server.system_identifier(), archive.store)
            return ServerView(server.archiver(), None)
    except (ServerUnavailable, ServerRefused) as silence:
        return ServerView(None, silence)


def settled(archive: Archive, archived: str | None, sleep: Callable[[float], object]) -> Survey:
    """Look, and look again when what seemed missing comes in: several segments go up at once, and not in order."""
    survey = look(archive, archived)
    left_s = PATIENCE_S
    while (missing := next((reach.missing for reach in _reaches(survey) if reach.missing), None)) and _is_live(survey) and left_s > 0:
        if archive.has_wal(missing):
            survey = look(archive, archived)
        else:
            sleep(PAUSE_S)
        left_s -= PAUSE_S
    return survey


def _is_live(survey: Survey) -> bool:
    return survey.wal.newest is not None and datetime.now(UTC) - survey.wal.newest < LIVE


def _reaches(survey: Survey) -> list[Reach]:
    return [*survey.reaches, *survey.on_server]


def _damage(survey: Survey, content: Content | None) -> Iterator[DamageError]:
    histories = [Finding(survey.wal.histories[timeline], reason) for timeline, reason in survey.damaged_histories.items()]
    found = list({finding.key: finding for finding in (*histories, *(content.damaged if content else ()))}.values())
    if found:
        named = "; ".join(f"{finding.key}: {finding.reason}" for finding in found[:MAX_NAMED]) + ("; ..." if len(found) > MAX_NAMED else "")
        yield DamageError(
            f"{_number(len(found), 'stored WAL file')} {'is' if len(found) == 1 else 'are'} damaged",
            named,
            "Recovery ends there. Move the object away; wal-e wal-push --missing PGDATA puts in what the server still has. Else push a new backup.",
        )


def _frozen(content: Content | None) -> Iterator[BlobFrozen]:
    if content and content.unreadable:
        first = content.unreadable[0]
        yield BlobFrozen(f"{_number(len(content.unreadable), 'stored WAL file')} could not be read", f"The first: {first.key}. {first.reason}")


def _gaps(survey: Survey, server: ServerView | None, pgdata: str | None) -> Iterator[WalGap]:
    hint = f"If the server still has it, wal-e wal-push --missing {pgdata or 'PGDATA'} puts it in. Else push a new backup."
    lacking = [reach for reach in _reaches(survey) if reach.missing and not is_on_its_way(reach.missing, server)]
    if lacking:
        reach = next((one for one in lacking if one.unusable_without), lacking[0])
        others = len({one.need.name for one in lacking}) - 1
        more = f" The same is true of {_number(others, 'other backup')}, for this or another segment." if others else ""
        what = "cannot be used without it" if reach.unusable_without else f"can be recovered to {reach.end or 'its own end'} and no further"
        yield WalGap(f"{reach.unusable_without or reach.missing} is not in the store", f"The backup {reach.need.name} {what}.{more}", hint)
    elif server and server.stored is False and server.archiver and not _was_deleted(server.archiver.last_archived_wal or "", survey):
        name = server.archiver.last_archived_wal
        yield WalGap(f"{name} is not in the store", f"The server says that it was archived, at {server.archiver.last_archived_time}.", hint)
    for timeline in lost_histories(survey):
        yield WalGap(
            f"{timeline:08X}.history is not in the store",
            f"There is WAL of timeline {timeline}, and no backup of it. Without that file no other backup can be recovered along it.",
            hint,
        )


def _was_deleted(name: str, survey: Survey) -> bool:
    """Whether a file comes before all that is stored: a server that has not archived for long names what a deletion took."""
    if wal_kind(name) == "history":
        return False
    timeline = int(name[:8], 16)
    segments = survey.wal.segments_of(timeline)
    try:
        return survey.wal.number(name[:24]) < segments.first if segments else any(later > timeline for later in survey.wal.timelines)
    except WalRefused:
        return False


def is_on_its_way(missing: str, server: ServerView | None) -> bool:
    """Whether a segment comes after what the server archives at this time: later ones were only pushed ahead of it."""
    if server is None or server.segment is None or server.archiver is None or server.archiver.last_archived_time is None:
        return False
    is_current = datetime.now(UTC) - server.archiver.last_archived_time < CURRENT
    return is_current and missing[:8] == server.segment[:8] and missing > server.segment


def combined(problems: list[WaleError]) -> WaleError:
    """One error for all: the worst, with the others in its detail."""
    worst, *others = problems
    also = " ".join(f"Also: {other}" for other in others)
    return type(worst)(worst.message, f"{worst.detail} {also}".strip(), worst.hint)


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
