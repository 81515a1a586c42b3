"""``check`` of what the store holds: how old the newest backup is, and whether it has its WAL."""

from __future__ import annotations

from datetime import timedelta

from wal_e.archive.catalog import Catalog
from wal_e.archive.retention import DEFAULT_SEGMENT_SIZE
from wal_e.errors import WalGap
from wal_e.operators.check_subject import Seen, Subject, ok, skip, warn
from wal_e.operators.wal_survey import need_of
from wal_e.operators.wal_verify import ask_server, combined, verify
from wal_e.postgres.wal import segments_needed
from wal_e.progress import shown_seconds

WHOLE_DAYS = timedelta(days=2)  # from here on a person counts days


def last_backup(subject: Subject) -> Seen:
    """There is a backup, it is readable, this cluster's, and not old. Raises: DamageError, StoreError."""
    backups = Catalog(subject.archive.store).backups()
    if not backups:
        return warn("there is none", "Push one with backup-push: without a base backup, WAL restores nothing.")
    newest = backups[-1]
    sentinel = newest.readable()
    subject.newest = newest
    age = max(subject.now() - newest.finished, timedelta(0))
    text = f"{newest.name}, {_shown(age)} old, {len(backups)} in all"
    if age > subject.options.max_backup_age:
        return warn(f"{text}: older than {_shown(subject.options.max_backup_age)}", "Push one with backup-push, and see why cron did not.")
    if subject.cluster is not None and sentinel.facts is not None and sentinel.facts.system_identifier != subject.cluster.control.system_identifier:
        return warn(
            f"{text}: of the system identifier {sentinel.facts.system_identifier}, not of this cluster's",
            "Push one of this cluster with backup-push.",
        )
    return ok(text)


def its_wal(subject: Subject) -> Seen:
    """The newest backup has all WAL without which no server comes up from it. Raises: WalGap, StoreError."""
    newest = subject.newest
    if newest is None:
        return skip("there is no backup")
    facts = newest.readable().facts
    segment_size = facts.segment_size if facts else subject.cluster.control.segment_size if subject.cluster else DEFAULT_SEGMENT_SIZE
    need = need_of(newest, segment_size)
    if need is None:
        return warn(f"it is not known which WAL {newest.name} needs", "See wal-e wal-verify.")
    if not need.online:
        return ok("it was made of a stopped server and needs none")
    names = list(segments_needed(need.timeline, need.start, need.stop, segment_size))
    stored = subject.archive.wal_keys_of(names)
    lacking = next((name for name in names if name not in stored), None)
    if lacking is not None:
        raise WalGap(
            f"{lacking} is not in the store",
            f"The newest backup, {newest.name}, cannot be used without it.",
            "If the server still has it, wal-e wal-push --missing PGDATA puts it in. Else push a new backup at once.",
        )
    return ok(f"all that it needs to come up: {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else ""))


def all_wal(subject: Subject) -> Seen:
    """All backups can be recovered to the end of what is stored, as ``wal-verify`` tells. Raises: WalGap, DamageError, StoreError."""
    if not subject.options.thorough:
        return skip("--thorough does what wal-verify does")
    if subject.newest is None:
        return skip("there is no backup")
    pgdata = subject.options.pgdata
    verdict = verify(subject.archive, ask_server(subject.archive, subject.environ, pgdata), None, pgdata)
    if verdict.problems:
        raise combined(verdict.problems)
    number = len(verdict.survey.reaches)
    return ok(f"{number} backup{'' if number == 1 else 's'} can be recovered to the end of the stored WAL")


def _shown(age: timedelta) -> str:
    return f"{age.days} days" if age >= WHOLE_DAYS else shown_seconds(age.total_seconds())
