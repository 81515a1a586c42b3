"""``restore``: a cluster as it was at some point, in one command.

Look at what is stored; choose backup and WAL; check the place and its space; tell the plan. Then fetch, and before
``pg_control`` makes the directory one that starts, write how it is to recover. Started only if that is asked for.
Everything that can be refused is refused before the disk is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup
from wal_e.archive.manifest import Manifest
from wal_e.archive.restore_plan import CURRENT, END, IMMEDIATE, LATEST, Goal, recovery_targets
from wal_e.errors import BlobNotFound, DamageError, TargetRefused, UsageError, WalRefused, local_error
from wal_e.log import Logger
from wal_e.operators.backup_fetch import Fetched, Hooks, fetch_backup, needs, read_manifest
from wal_e.operators.restore_aim import Aim, take_aim
from wal_e.operators.restore_concerns import concerns
from wal_e.operators.restore_target import Space, TablespaceChoice, Target
from wal_e.operators.wal_survey import Survey, look
from wal_e.postgres.programs import in_place_settings
from wal_e.postgres.recovery import RECOVERY, STANDBY, RecoveryAdvice, recovery_settings, setting_line
from wal_e.postgres.recovery_files import CONFIGURATION, Written, absent_configuration, write_recovery
from wal_e.postgres.wal_file import inspect

LOG = Logger(__name__)

PAUSE = "pause"
PRESERVE, OFF = "preserve", "off"  # whether the restored server archives as its configuration says, or not at all

_VERSION = re.compile(rb"PostgreSQL (\d+)")
_UNKNOWN_MAJOR = 15  # for showing settings only; a backup of the original WAL-E may not say its version


class Wish(NamedTuple):
    """What is asked for: the point, the timeline ("latest", "current" or a number), the backup, None for the best one.

    ``action`` is what the server does at the target, ``role`` "recovery" or "standby", ``tail`` whether the unfinished
    segment that ``wal-receive`` stored is to be used ("use") or not ("leave"), ``archive_mode`` "preserve" or "off",
    ``bindir`` where the server's programs are, None for the usual places.
    """

    restore_command: str
    goal: Goal = Goal()
    timeline: str = LATEST
    backup: str | None = None
    action: str = PAUSE
    role: str = RECOVERY
    tail: str = "leave"
    archive_mode: str = PRESERVE
    bindir: str | None = None


class Plan(NamedTuple):
    """What will be done: the backup, the WAL after it, and how the server is told; ``tail`` is the segment to be placed in pg_wal.

    ``concerns`` are sentences on what does not hinder it and somebody should know.
    """

    wish: Wish
    backup: Backup
    aim: Aim
    major: int
    advice: RecoveryAdvice
    segment_size: int
    tail: str | None
    concerns: tuple[str, ...]


class Room(NamedTuple):
    """What a look at the target and at the manifest tells: space per file system, tablespaces by their links, and which configuration files will be absent."""

    path: str
    spaces: list[Space]
    locations: dict[str, str]
    absent: tuple[str, ...]


class Restored(NamedTuple):
    """What was done; ``absent`` are configuration files that the directory lacks."""

    fetched: Fetched
    path: str
    written: Written
    absent: tuple[str, ...]


def plan_restore(archive: Archive, wish: Wish) -> Plan:
    """Choose what to restore and see that all of it is stored; nothing local is looked at.

    Raises: UsageError, BackupNotFound, WalGap, TargetRefused, DamageError, StoreError.
    """
    _require_sensible(wish)
    survey = look(archive)
    timeline = CURRENT if wish.goal.kind == IMMEDIATE and wish.timeline == LATEST else wish.timeline  # "latest" may be out of its reach
    aim = take_aim(archive, survey, wish.goal, timeline, wish.backup)
    backup = next(backup for backup in survey.backups if backup.name == aim.course.need.name)
    major = _major(archive, backup)
    return Plan(wish, backup, aim, major, _advice(wish, aim, major), survey.wal.segment_size, _tail(survey, aim, wish), concerns(archive, survey, aim, backup))


def look_around(archive: Archive, plan: Plan, target_path: str, choice: TablespaceChoice) -> Room:
    """Check the place to restore into, and its space.

    Raises: TargetRefused, UsageError, DiskFull, LocalFileError, DamageError, StoreError.
    """
    sentinel = plan.backup.readable()
    target = Target.checked(target_path, sentinel, choice)
    if sentinel.facts is None:
        return Room(target.path, target.require_space(needs(None, sentinel)), target.locations, CONFIGURATION)
    manifest = read_manifest(archive, plan.backup.name, sentinel)
    assert manifest is not None
    with contextlib.closing(manifest):
        return Room(target.path, target.require_space(needs(manifest, sentinel)), target.locations, absent_from(manifest))


def absent_from(manifest: Manifest) -> tuple[str, ...]:
    """Which files of the configuration a backup does not hold; a link to one outside is none."""
    there = {member.path for _, members in manifest.partitions() for member in members if member.kind == "file" and member.path in CONFIGURATION}
    return tuple(name for name in CONFIGURATION if name not in there)


def carry_out(archive: Archive, plan: Plan, target_path: str, pool_size: int, choice: TablespaceChoice, hooks: Hooks) -> Restored:
    """Fetch the backup and write how it recovers; the directory can be started only when all of it is there.

    Raises: what :func:`fetch_backup` raises.
    """
    settling = Settling(archive, plan, choice, hooks.before_control)
    fetched = fetch_backup(archive, target_path, plan.backup.name, pool_size, choice, hooks._replace(before_control=settling))
    return settling.restored(fetched)


def other_settings(plan: Plan, choice: TablespaceChoice, major: int) -> str:
    """The lines that are written beside those of recovery."""
    wish = plan.wish
    in_place = choice.blind and bool(plan.backup.readable().tablespaces)
    others = {**(in_place_settings(major, wish.bindir) if in_place else {}), **({"archive_mode": OFF} if wish.archive_mode == OFF else {})}
    return "".join(setting_line(name, value) for name, value in others.items())


class Settling:
    """What makes a fetched directory recover as planned; called when all its files are there and ``pg_control`` has not its name yet."""

    def __init__(self, archive: Archive, plan: Plan, choice: TablespaceChoice, then: Callable[[Target], None] | None = None) -> None:
        self._then = then
        self._archive = archive
        self._plan = plan
        self._choice = choice
        self._path = ""
        self._written = Written((), (), ())

    def __call__(self, target: Target) -> None:
        """Write the settings and place the unfinished segment."""
        self._path = target.path
        wish = self._plan.wish
        major = target.major()
        self._written = write_recovery(target.path, _advice(wish, self._plan.aim, major), wish.role, other_settings(self._plan, self._choice, major))
        if self._plan.tail:
            _place_tail(self._archive, self._plan.tail, target.path)
        if self._then:
            self._then(target)

    def restored(self, fetched: Fetched) -> Restored:
        """The result."""
        return Restored(fetched, self._path, self._written, absent_configuration(self._path))


def _require_sensible(wish: Wish) -> None:
    if wish.role == STANDBY and wish.goal.kind != END:
        raise UsageError("--standby has no target", "A standby follows the archive and has no point to stop at.", "Leave out --standby, or the target.")
    if wish.tail == "use" and wish.goal.kind != END:
        raise UsageError("--use-partial is for the end of the WAL", f"The target is {wish.goal}, which is looked for in whole segments only.")


def _advice(wish: Wish, aim: Aim, major: int) -> RecoveryAdvice:
    follows = LATEST if wish.timeline == LATEST else str(aim.course.timeline)
    targets = {"recovery_target_timeline": follows} if wish.role == STANDBY else recovery_targets(wish.goal, aim.course, wish.action, major)
    return recovery_settings(major, wish.restore_command, targets, wish.role)


def _major(archive: Archive, backup: Backup) -> int:
    """PostgreSQL's major version; a backup of the original WAL-E tells it in the object that claims its name."""
    facts = backup.readable().facts
    if facts is not None:
        return facts.major
    try:
        found = _VERSION.search(b"".join(archive.store.get(layout.version_key(backup.name))))
    except BlobNotFound:
        found = None
    return int(found[1]) if found else _UNKNOWN_MAJOR


def _tail(survey: Survey, aim: Aim, wish: Wish) -> str | None:
    """The unfinished segment, where it continues the way."""
    if wish.tail != "use":
        return None
    if aim.way.stretches:
        timeline, number = aim.way.stretches[-1].timeline, aim.way.stretches[-1].last + 1
    else:
        timeline, number = aim.course.timeline, aim.course.need.start // survey.wal.segment_size
    streaming = survey.wal.timelines[timeline].streaming if timeline in survey.wal.timelines else ()
    name = survey.wal.name(timeline, number)
    if number not in streaming:
        raise TargetRefused(
            f"{name} is not there as an unfinished segment",
            "That is the segment after the last whole one, and wal-receive has not stored the beginning of it.",
            "Leave out --use-partial. If pg_wal of the lost server can be read, copy that segment from there into the restored pg_wal.",
        )
    return name


def _place_tail(archive: Archive, name: str, directory: str) -> None:
    """Bring the unfinished segment to its place in ``pg_wal``, where the server looks for what the archive does not have."""
    path = os.path.join(directory, "pg_wal", name)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            key = _decode_tail(archive, name, fd)
            inspect(fd, f"{name}.partial", path)
            if os.geteuid() == 0:
                owner = os.stat(directory)
                os.fchown(fd, owner.st_uid, owner.st_gid)
        finally:
            os.close(fd)
    except WalRefused as refused:
        raise DamageError(f"{key} is not the beginning of that segment", str(refused), "Restore without --use-partial.") from None
    except OSError as error:
        raise local_error(error, f"writing {path}") from None


def _decode_tail(archive: Archive, name: str, fd: int) -> str:
    for suffix in dict.fromkeys((archive.pipeline.suffix, *archive.wal_suffixes())):
        key = layout.streaming_key(name, suffix)
        try:
            archive.decode(key, fd)
            return key
        except BlobNotFound:
            continue
    raise TargetRefused(
        f"the unfinished {name} is gone", "The whole segment was stored meanwhile, or it was deleted.", "Run it again, without --use-partial if need be."
    )
