"""``drill``: the proof that a backup restores.

Choose the backup and the WAL that lead to the target; find the server's programs; fetch into a scratch
directory; start a server there that cannot do harm; wait for the end of its recovery; look for damage; see that what is expected
holds; remember what came of it beside the backup; remove everything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from wal_e.archive.archive import Archive
from wal_e.archive.drill_record import FAILED, MAX_REASON, PROVEN, DrillRecord, write_drill
from wal_e.archive.restore_plan import CURRENT, IMMEDIATE, LATEST, Goal, recovery_targets
from wal_e.errors import DamageError, DrillFailed, ServerRefused, StoreError, WaleError, WalGap
from wal_e.log import Logger
from wal_e.operators.backup_fetch import fetch_backup
from wal_e.operators.drill_checks import check
from wal_e.operators.drill_scratch import REMOVE, Configuration, Scratch, scratch
from wal_e.operators.restore_aim import Aim, take_aim
from wal_e.operators.restore_target import TablespaceChoice
from wal_e.operators.wal_survey import Survey
from wal_e.operators.wal_verify import settled
from wal_e.postgres import instance
from wal_e.postgres.instance import ENDED, PRIMARY, Reached
from wal_e.postgres.programs import Programs, find_programs
from wal_e.progress import shown_seconds

T = TypeVar("T")

LOG = Logger(__name__)

_PROOFS_OF_FAILURE = (DamageError, WalGap, DrillFailed, ServerRefused)  # worth remembering with the backup


class Wish(NamedTuple):
    """What to try: the backup (None: the newest that leads to the goal), the goal and the timeline; how, and what must hold.

    ``parent`` is where the scratch directory is made, None for the usual place; afterwards "remove" or "keep" it.
    """

    backup: str | None
    goal: Goal
    timeline: str
    statements: Sequence[str]
    database: str
    restore_command: str
    pool_size: int
    parent: str | None
    afterwards: str
    programs: str | None
    port: int
    settings: Mapping[str, str]


class Drilled(NamedTuple):
    """A backup, the record of its drill, and why it is no good, None for one that is proven; ``kept`` is the scratch directory that was left."""

    backup: str
    record: DrillRecord
    kept: str | None = None
    failure: WaleError | None = None


def drill(archive: Archive, wish: Wish, environ: Mapping[str, str]) -> Drilled:
    """Try one backup. Whatever comes of it, nothing of the drill goes on afterwards, and nothing but its record is stored.

    The failures that tell something of the backup, and are remembered, are WalGap, DamageError, DrillFailed, ServerRefused.

    Raises: BackupNotFound, TargetRefused, ToolMissing, DiskFull, ServerUnavailable, StoreError; WalGap, DamageError where there is no backup.
    """
    survey = settled(archive, None, time.sleep)
    timeline = CURRENT if wish.goal.kind == IMMEDIATE and wish.timeline == LATEST else wish.timeline
    try:
        aim = take_aim(archive, survey, wish.goal, timeline, wish.backup)
    except (WalGap, DamageError) as error:
        meant = _meant(survey, wish.backup)
        if meant is None:
            raise
        return _failed(archive, Drilled(meant, _blank(wish.goal), None, error))
    name = aim.course.need.name
    LOG.info(f"drilling {name}", f"It is restored and brought to {aim.goal}.", action="drill", state="begin")
    trial = _Trial(archive, survey, aim, wish, environ)
    try:
        record = trial.run()
    except _PROOFS_OF_FAILURE as error:
        return _failed(archive, Drilled(name, trial.record, trial.kept, _naming(name, error)))
    _remember(archive, name, record)
    LOG.info(f"{name} is proven to restore", f"Recovered up to {record.lsn} on timeline {record.timeline}.", action="drill", state="complete")
    return Drilled(name, record, trial.kept)


class _Trial:
    """One drill at work; ``record`` has what was found out until now, ``kept`` where the scratch directory will be left."""

    def __init__(self, archive: Archive, survey: Survey, aim: Aim, wish: Wish, environ: Mapping[str, str]) -> None:
        self._archive = archive
        self._aim = aim
        self._wish = wish
        self._environ = environ
        self._backup = next(backup for backup in survey.backups if backup.name == aim.course.need.name)
        self.record = _blank(aim.goal)._replace(restored_bytes=self._backup.readable().expanded_bytes)
        self.kept: str | None = None

    def run(self) -> DrillRecord:
        """Restore, recover, check."""
        facts = self._backup.readable().facts
        programs = find_programs(facts.major, self._wish.programs) if facts else None
        with scratch(self._wish.parent, self._wish.afterwards) as place:
            self.kept = place.path if self._wish.afterwards != REMOVE else None
            choice = TablespaceChoice(True, None)
            fetched, fetch_s = _timed(lambda: fetch_backup(self._archive, place.data, self._backup.name, self._wish.pool_size, choice))
            programs = programs or find_programs(fetched.major, self._wish.programs)
            self.record = self.record._replace(fetch_s=fetch_s, server_version=programs.version)
            self._recover_and_check(place, programs)
        return self.record._replace(finished=datetime.now(UTC))

    def _recover_and_check(self, place: Scratch, programs: Programs) -> None:
        wish = self._wish
        targets = recovery_targets(self._aim.goal, self._aim.course, "promote", programs.major)
        launch = place.launch(programs, Configuration(wish.restore_command, targets, wish.settings, wish.port), self._environ)
        with instance.start(launch) as server:
            reached, recovery_s = _timed(lambda: server.wait(ENDED))
            self._note(reached, recovery_s)
            LOG.info("recovery has ended", f"It took {shown_seconds(recovery_s)}, and came to {reached.lsn}.", action="drill")
            checked_with, check_s = _timed(lambda: check(self._archive, server, programs, wish.statements, wish.database))
            self.record = self.record._replace(outcome=PROVEN, checked_with=checked_with, statements=len(wish.statements), check_s=check_s)
            if wish.afterwards == REMOVE:
                server.stop("immediate")  # what is thrown away need not be written to the disk

    def _note(self, reached: Reached, recovery_s: float) -> None:
        if reached.state != PRIMARY:
            raise ServerRefused("the restored server did not come out of recovery", f"It is {reached.state} at {reached.lsn}.")
        lsn = str(reached.lsn) if reached.lsn is not None else None
        self.record = self.record._replace(lsn=lsn, last_commit=reached.last_commit, timeline=reached.timeline, recovery_s=recovery_s)


def _blank(goal: Goal) -> DrillRecord:
    return DrillRecord(datetime.now(UTC), FAILED, "", str(goal), "", 0)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    started = time.monotonic()
    result = call()
    return result, round(time.monotonic() - started, 3)


def _meant(survey: Survey, backup: str | None) -> str | None:
    """The backup that a drill was about which could not begin: the one that was named, else the newest."""
    if backup in (None, "LATEST"):
        return survey.backups[-1].name if survey.backups else None
    return backup


def _naming(backup: str, error: WaleError) -> WaleError:
    """The same error with the backup in it, which a mail from cron would not name else."""
    if backup in str(error):
        return error
    return type(error)(error.message, f"{error.detail} The backup is {backup}.".strip(), error.hint)


def _failed(archive: Archive, drilled: Drilled) -> Drilled:
    record = drilled.record._replace(finished=datetime.now(UTC), outcome=FAILED, reason=str(drilled.failure)[:MAX_REASON])
    _remember(archive, drilled.backup, record)
    return drilled._replace(record=record)


def _remember(archive: Archive, name: str, record: DrillRecord) -> None:
    """Store the record; a host for drills may have no right to write, which changes nothing about the result."""
    try:
        write_drill(archive.store, name, record)
    except StoreError as error:
        LOG.warning("what came of the drill could not be stored", str(error), error.hint, action="drill")
