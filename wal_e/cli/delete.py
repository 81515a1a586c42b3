"""The verbs of deletion. Nothing is deleted without ``--confirm``; anything else shows what would be."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

import click

from wal_e.archive.archive import Archive
from wal_e.archive.retention import Retain
from wal_e.cli.context import Context
from wal_e.cli.render import show, shown_time
from wal_e.operators import delete as deleting
from wal_e.operators.delete import Gone, Report
from wal_e.operators.erasing import Deletion, Erased, Hand, Rehearsal
from wal_e.progress import shown_bytes

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS = ("dry_run", "confirm", "verbose", "as_json")
_META = "wal_e.delete"


class Flags(NamedTuple):
    """The switches, wherever among the words they stood."""

    is_real: bool
    why_not: str
    verbose: bool
    as_json: bool


def _with_flags(command: F) -> F:
    """Add the switches, which may stand before and after the sub-verb."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines."),
        click.option("-v", "--verbose", is_flag=True, help="Print every key too."),
        click.option("--confirm", is_flag=True, help="Delete for real."),
        click.option("-n", "--dry-run", is_flag=True, help="Only show what would be deleted; so it is without --confirm."),
    ):
        command = option(command)
    return command


@click.group("delete")
@_with_flags
@click.pass_context
def delete(context: click.Context, /, **flags: bool) -> None:
    """Delete old backups and the WAL that no backup needs.

    Without --confirm nothing is deleted, only shown. A backup that stays keeps all WAL from its start on,
    on every timeline that it can be recovered along. What was interrupted is finished by the same command.
    Exit status 1: something is left and may be deleted later. 2: it will not, until somebody changes something.
    """
    context.meta[_META] = flags


@delete.command("before")
@click.argument("name", metavar="NAME|LATEST|SEGMENT")
@_with_flags
@click.pass_context
def before(context: click.Context, /, name: str, **flags: bool) -> None:
    """Delete the backups that were finished before the backup NAME, and the WAL that none of the others needs.

    With a bare SEGMENT: the backups that start before it, on its timeline or one that led to it.
    """

    def work(archive: Archive, hand: Hand, now: datetime, age: timedelta) -> Report:
        return deleting.delete_backups(archive, deleting.position(archive, name), hand, now, age)

    _run(context, flags, work, ["before", name])


@delete.command("retain")
@click.argument("number", metavar="N", type=click.IntRange(1))
@_with_flags
@click.pass_context
def retain(context: click.Context, /, number: int, **flags: bool) -> None:
    """Keep the N newest backups; delete the others, and the WAL that none of these needs."""

    def work(archive: Archive, hand: Hand, now: datetime, age: timedelta) -> Report:
        return deleting.delete_backups(archive, Retain(number), hand, now, age)

    _run(context, flags, work, ["retain", str(number)], wanted=number)


@delete.command("everything")
@_with_flags
@click.pass_context
def everything(context: click.Context, /, **flags: bool) -> None:
    """Delete all backups and all WAL below the prefix."""
    _run(context, flags, deleting.delete_everything, ["everything"])


@delete.command("garbage")
@click.option("--older-than", type=click.FloatRange(0), metavar="HOURS", help="Spare what was added to within so many hours.  [default: 24]")
@_with_flags
@click.pass_context
def garbage(context: click.Context, /, older_than: float | None, **flags: bool) -> None:
    """Delete what never became a backup, and what killed commands left in the store, out of sight.

    With less than the default, be sure that no push is at work.
    """

    def work(archive: Archive, hand: Hand, now: datetime, age: timedelta) -> Report:
        return deleting.delete_garbage(archive, hand, now, age if older_than is None else timedelta(hours=min(older_than, 1e5)))

    words = ["garbage"] if older_than is None else ["garbage", "--older-than", f"{older_than:g}"]
    _run(context, flags, work, words)


def _run(context: click.Context, own: dict[str, bool], work: Callable[[Archive, Hand, datetime, timedelta], Report], words: list[str], wanted: int = 0) -> None:
    flags = _flags(context, own)
    wal_e: Context = context.obj
    archive = wal_e.archive(1) if flags.is_real else wal_e.archive(1).read_only()
    keys: list[str] = []
    seen = keys.append if flags.as_json and flags.verbose else (lambda key: show(f"{key}\n")) if flags.verbose else _unseen
    hand: Hand = Deletion(archive.store, seen) if flags.is_real else Rehearsal(seen)
    report = work(archive, hand, datetime.now(UTC), deleting.dead_after(wal_e.settings.archive_timeout_s))
    if flags.as_json:
        show(json.dumps(report_json(report, flags, keys), indent=1) + "\n")
    else:
        show(report_text(report, flags, words, wanted))
    hand.finish()


def _flags(context: click.Context, own: dict[str, bool]) -> Flags:
    dry_run, confirm, verbose, as_json = (own[name] or context.meta[_META][name] for name in _FLAGS)
    why_not = "--dry-run was given" if dry_run else "" if confirm else "--confirm was not given"
    return Flags(confirm and not dry_run, why_not, verbose, as_json)


def _unseen(key: str) -> None:
    """Print nothing of a key."""


def report_text(report: Report, flags: Flags, words: list[str], wanted: int = 0) -> str:
    """What went, or would go, and what stays, for a person; ``words`` are the sub-verb's."""
    went = "deleted" if flags.is_real else "would be deleted"
    lines: list[str] = []
    for title, rows in _parts(report):
        lines += [f"{title} {'deleted' if flags.is_real else 'that would be deleted'}:", *(f"  {row}" for row in rows)] if rows else []
    total = report.total
    lines.append(f"{went}: {_amount(total)}" if total.objects else f"nothing {'was' if flags.is_real else 'would be'} deleted")
    lines += _staying(report, wanted)
    if not flags.is_real:
        command = shlex.join(["delete", "--confirm", *words])
        lines.append(f"Nothing was deleted, for {flags.why_not}. To delete: wal-e {command}")
    return "\n".join(lines) + "\n"


def _parts(report: Report) -> list[tuple[str, list[str]]]:
    wal = [f"timeline {number}: {span.first} to {span.last}, {_amount(span.erased, 'file')}" for number, span in sorted(report.wal.items())]
    return [
        ("backups", [_backup_row(gone) for gone in report.backups]),
        ("remnants of backups", [_backup_row(gone) for gone in report.remnants]),
        ("WAL", wal),
        ("other objects", [_amount(report.others)] if report.others.objects else []),
        ("leftovers of killed commands", [_amount(report.leftovers, "leftover")] if report.leftovers.objects else []),
    ]


def _backup_row(gone: Gone) -> str:
    finished = f", finished {shown_time(gone.finished)}" if gone.finished else ""
    return f"{gone.name}{finished}, {_amount(gone.erased)}"


def _amount(erased: Erased, what: str = "object") -> str:
    left = f" ({erased.left} may be left)" if erased.left else ""
    return f"{erased.objects} {what}{'' if erased.objects == 1 else 's'}, {shown_bytes(erased.size_bytes)}{left}"


def _staying(report: Report, wanted: int) -> list[str]:
    fewer = f", fewer than the {wanted} to keep" if len(report.kept) < wanted else ""
    names = f", from {report.kept[0]} to {report.kept[-1]}" if len(report.kept) > 1 else f", {report.kept[0]}" if report.kept else ""
    lines = [f"stays: {len(report.kept)} backup{'' if len(report.kept) == 1 else 's'}{names}{fewer}"]
    lines += [f"stays: {name}, no complete backup: a push may be at work; if none is, delete garbage takes it" for name in report.kept_remnants]
    counts = ((report.kept_wal, "WAL files"), (report.kept_histories, "history files"), (report.kept_unknown, "objects that are not wal-e's"))
    return lines + [f"stays: {number} {what}" for number, what in counts if number]


def report_json(report: Report, flags: Flags, keys: list[str]) -> dict[str, Any]:
    """The same for a program; sizes in bytes, times as in backup-list."""
    return {
        "deleted": flags.is_real,
        "backups": [_gone_json(gone) for gone in report.backups],
        "remnants": [_gone_json(gone) for gone in report.remnants],
        "wal": [{"timeline": number, "first": span.first, "last": span.last, **span.erased._asdict()} for number, span in sorted(report.wal.items())],
        "others": report.others._asdict(),
        "leftovers": report.leftovers._asdict(),
        "total": report.total._asdict(),
        "kept": {
            "backups": report.kept,
            "remnants": report.kept_remnants,
            "wal_files": report.kept_wal,
            "history_files": report.kept_histories,
            "unknown_objects": report.kept_unknown,
        },
        **({"keys": keys} if flags.verbose else {}),
    }


def _gone_json(gone: Gone) -> dict[str, Any]:
    return {"name": gone.name, "finished": shown_time(gone.finished) if gone.finished else None, **gone.erased._asdict()}


COMMANDS = (delete,)
