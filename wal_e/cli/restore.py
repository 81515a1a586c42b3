"""The verb ``restore``."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click

from wal_e.archive.archive import Archive
from wal_e.archive.restore_plan import END, Goal
from wal_e.cli.backup import CONFIG_TO, POOL_SIZE
from wal_e.cli.context import Context
from wal_e.cli.render import restore_command, show
from wal_e.cli.restore_text import bar, difference_text, plan_text, restored_text, room_text
from wal_e.cli.targets import goal_of, target_options, timeline_of
from wal_e.errors import ConfigurationError, UsageError
from wal_e.operators import restore_delta
from wal_e.operators.backup_fetch import Hooks
from wal_e.operators.restore import OFF, PAUSE, PRESERVE, Plan, Restored, Settling, Wish, absent_from, carry_out, look_around, other_settings, plan_restore
from wal_e.operators.restore_config import ConfigTarget, kept_configuration
from wal_e.operators.restore_local_wal import ASK, KEEP, REMOVE
from wal_e.operators.restore_target import TablespaceChoice, Target, absolute
from wal_e.pipeline.pipeline import BACKUP_PIPE_BYTES
from wal_e.postgres.programs import find_programs
from wal_e.postgres.recovery import RECOVERY, STANDBY
from wal_e.postgres.recovery_files import CONF


@click.command("restore")
@click.argument("target", metavar="TARGET")
@target_options
@click.option("--target-action", type=click.Choice(("pause", "promote", "shutdown")), help="What the server does at the target.  [default: pause]")
@click.option("--standby", is_flag=True, help="Make a standby, which follows the archive and keeps where its primary is.")
@click.option("--tablespace", "tablespaces", metavar="OID=PATH", multiple=True, help="Where a tablespace goes; the others go where they were. May be repeated.")
@click.option(
    "--archive-mode",
    type=click.Choice((PRESERVE, OFF)),
    default=PRESERVE,
    show_default=True,
    help="Whether the restored server archives as its configuration says; off is for a copy beside a living server.",
)
@click.option("--blind", is_flag=True, help="Put tablespaces into real directories below pg_tblspc.")
@click.option("--delta", is_flag=True, help="TARGET holds a copy: fetch only files that differ, remove those that the backup does not have.")
@click.option(
    "--unarchived-wal", type=click.Choice((KEEP, REMOVE)), help="With --delta: what becomes of WAL in TARGET that is not in the archive.  [default: refuse]"
)
@click.option("--include-database", "databases", metavar="NAME", multiple=True, help="Restore only these databases, the others as zeros. May be repeated.")
@CONFIG_TO
@click.option("--use-partial", is_flag=True, help="Use the unfinished last segment, if wal-receive stored it.")
@click.option("--dry-run", is_flag=True, help="Check everything and show the plan; touch nothing.")
@click.option("--start", is_flag=True, help="Start the server, wait for the end of its recovery, and say what was reached.")
@click.option("--bindir", metavar="DIR", help="Where PostgreSQL's programs are, for --start and --blind, if not on PATH or where packages put them.")
@POOL_SIZE
@click.pass_obj
def restore(context: Context, /, target: str, start: bool, pool_size: int, **given: Any) -> None:
    """Restore the cluster as it was at some point into the directory TARGET, new or empty unless --delta is given.

    Without a target option: to the end of the archived WAL. Chooses the backup, sees that all WAL up to the
    target is stored and that there is room, shows the plan, fetches, and writes how the server recovers.
    Exit status 1: may succeed later. 2: will not, until somebody changes something.
    """
    target = absolute(target)
    goal, choice = goal_of(given), _choice(given["tablespaces"], given["blind"])
    if given["target_action"] and goal.kind == END:
        raise UsageError("--target-action needs a target", "At the end of the WAL a server is promoted; it can do nothing else.", "Leave it out.")
    _require_sensible(given)
    archive = context.archive(pool_size, BACKUP_PIPE_BYTES).read_only()
    plan = plan_restore(archive, _wish(context, goal, given))
    config = ConfigTarget.checked(archive, plan.backup, given["config_to"], target) if given["config_to"] is not None else None
    text = plan_text(plan, other_settings(plan, choice, plan.major), _credentials(context), config.path if config else None)
    job = _Job(archive, plan, target, choice, pool_size, text, given["dry_run"], start, config)
    restored = _compared(job, given) if given["delta"] or given["databases"] else _whole(job)
    if restored is None:
        return
    settings = config.settings(restored.path) if config else {}
    show(restored_text(restored, plan, settings))
    if start:
        from wal_e.cli.started_text import started_text  # with it comes what talks to a server
        from wal_e.operators.restore_start import start_restored

        programs = find_programs(plan.major, plan.wish.bindir)
        show(started_text(start_restored(restored.path, programs, plan.wish.role, settings, os.environ), plan.advice))


class _Job(NamedTuple):
    """What both ways of restoring need."""

    archive: Archive
    plan: Plan
    target: str
    choice: TablespaceChoice
    pool_size: int
    text: str
    dry_run: bool
    start: bool
    config: ConfigTarget | None

    def place_config(self) -> Callable[[Target], None] | None:
        """What brings the configuration, if it is wanted."""
        return partial(self.config.place, self.archive) if self.config else None


def _whole(job: _Job) -> Restored | None:
    """Restore into an empty directory; None when only the plan is shown."""
    room = look_around(job.archive, job.plan, job.target, job.choice)
    _announce(job, room_text(room._replace(absent=()) if job.config else room), room.absent)
    if job.dry_run:
        return None
    with bar() as line:
        return carry_out(job.archive, job.plan, job.target, job.pool_size, job.choice, Hooks(job.place_config(), line))


def _compared(job: _Job, given: dict[str, Any]) -> Restored | None:
    """Restore what differs, or what is of some databases; None when only the plan is shown."""
    planned = partial(restore_delta.planned_delta, unarchived_wal=given["unarchived_wal"] or ASK) if given["delta"] else restore_delta.planned_selection
    settling = Settling(job.archive, job.plan, job.choice, job.place_config())
    with planned(job.archive, job.target, job.plan.backup.name, job.pool_size, job.choice, given["databases"]) as difference:
        _announce(job, difference_text(difference), absent_from(difference.manifest))
        if job.dry_run:
            show("".join(f"{line}\n" for line in difference.listing()))
            return None
        with bar() as line:
            return settling.restored(restore_delta.carry_out(job.archive, difference, Hooks(settling, line)))


def _announce(job: _Job, place: str, absent: tuple[str, ...]) -> None:
    """Show the whole plan, unless it is known that the server could not be started in the end."""
    if job.start:
        _require_startable(job, absent)
    show(job.text + place)


def _require_sensible(given: dict[str, Any]) -> None:
    if given["unarchived_wal"] and not given["delta"]:
        raise UsageError("--unarchived-wal is for --delta", "There is no WAL in a new or empty directory.", "Leave it out.")
    if given["unarchived_wal"] == KEEP and given["use_partial"]:
        raise UsageError(
            f"--use-partial and --unarchived-wal {KEEP} exclude each other",
            "Each brings an end of the WAL, and that in pg_wal of the lost server reaches as far at least.",
            "Use one of them.",
        )


def _wish(context: Context, goal: Goal, given: dict[str, Any]) -> Wish:
    return Wish(
        restore_command=restore_command(context.settings.prefix, context.options),
        goal=goal,
        timeline=timeline_of(given),
        backup=given["backup"],
        action=given["target_action"] or PAUSE,
        role=STANDBY if given["standby"] else RECOVERY,
        tail="use" if given["use_partial"] else "leave",
        archive_mode=given["archive_mode"],
        bindir=given["bindir"],
    )


def _choice(tablespaces: tuple[str, ...], blind: bool) -> TablespaceChoice:
    if blind and tablespaces:
        raise UsageError("--blind and --tablespace exclude each other", "Each says where tablespaces go.", "Use one of them.")
    spec = {}
    for given in tablespaces:
        oid, _, path = given.partition("=")
        if not (oid.isascii() and oid.isdigit() and os.path.isabs(path)):
            raise UsageError(f"{given!r} does not say where a tablespace goes", "", "Write --tablespace OID=/absolute/path.")
        if oid in spec:
            raise UsageError(f"--tablespace names tablespace {oid} twice", "It can have one place only.", "Give it once.")
        spec[oid] = {"loc": path}
    return TablespaceChoice(blind, None if blind else spec)


def _require_startable(job: _Job, absent: tuple[str, ...]) -> None:
    if CONF in absent and job.config is None:
        keeps = kept_configuration(job.plan.backup) is not None
        raise ConfigurationError(
            "the restored server cannot be started from here",
            f"The data directory of the backup does not hold {', '.join(absent)}, as on Debian, where they are in /etc.",
            "Say with --config-to DIR where the configuration goes, which the backup keeps beside it."
            if keeps
            else "Leave out --start, and start the server as its service does. backup-push --include-config would have kept them.",
        )
    find_programs(job.plan.major, job.plan.wish.bindir)


def _credentials(context: Context) -> str:
    if context.settings.prefix.startswith("file:") or "envdir" in context.options:
        return ""
    return "The server needs the store's settings and credentials in its environment, or wal-e an --envdir that has them."


COMMANDS = (restore,)
