"""The verb that tests the whole set-up: ``check``."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import UTC, datetime, timedelta

import click

from wal_e.archive.archive import Archive
from wal_e.cli.context import Context
from wal_e.cli.render import show
from wal_e.log import masked
from wal_e.operators.check import NAME_WIDTH, Result, failure
from wal_e.operators.check import check as check_all
from wal_e.operators.check_subject import FAIL, Options, Subject
from wal_e.pipeline.lanes import Cooperative
from wal_e.retry import Policy

LANES = 2
PATIENCE = Policy(attempts=3, deadline_s=15)  # somebody waits for the result; what passes after minutes is trouble all the same
MAX_DAYS = 36500


@click.command("check")
@click.argument("pgdata", metavar="[PGDATA]", required=False)
@click.option("--no-switch", is_flag=True, help="Do not make the server end a segment to see it arrive in the store.")
@click.option("--timeout", type=click.FloatRange(0.1), default=60, show_default=True, metavar="SECONDS", help="How long that segment may take.")
@click.option(
    "--max-backup-age", type=click.FloatRange(0, MAX_DAYS), default=7, show_default=True, metavar="DAYS", help="Warn when the newest backup is older."
)
@click.option("--thorough", is_flag=True, help="Also store and read an object in parts, and verify the WAL of all backups.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of lines.")
@click.pass_obj
def check(context: Context, pgdata: str | None, no_switch: bool, timeout: float, max_backup_age: float, thorough: bool, as_json: bool) -> None:
    """Test everything that must be true for archiving and restoring to work, and say what to do about what is not.

    Stores, reads and deletes small objects of its own below the prefix. With PGDATA, looks at its server, too, and
    has a segment of WAL archived. Exit status 0: nothing failed; there may be warnings. 1: something failed that may
    pass. 2: something failed that will not, until somebody changes something.
    """
    waits = Cooperative(LANES)
    options = Options(pgdata, not no_switch, timeout, timedelta(days=max_backup_age), thorough)
    subject = Subject(
        context.settings,
        os.environ,
        waits,
        lambda: Archive.open(context.settings, waits, patience=PATIENCE),
        options,
        lambda: datetime.now(UTC),
    )
    results = check_all(subject, (lambda _: None) if as_json else (lambda result: show(result_text(result))))
    if as_json:
        show(masked(json.dumps([_document(result) for result in results], indent=1)) + "\n")
    else:
        show(_summary(results))
    failed = failure(results)
    if failed is not None:
        raise failed


def result_text(result: Result) -> str:
    """A line, and below it, indented, what explains it and what to do."""
    state = "FAIL" if result.state == FAIL else result.state
    first, more = result.seen, []
    if result.error is not None:
        first, more = result.error.message, [result.error.detail]
    margin = " " * (NAME_WIDTH + 8)
    head = f"{state:4}  {result.name:{NAME_WIDTH}}  {first}"
    return masked("".join(f"{line}\n" for line in (head, *(margin + " ".join(text.split()) for text in (*more, result.hint) if text))))


def _summary(results: list[Result]) -> str:
    counts = Counter(result.state for result in results)
    return f"{counts['ok']} ok, {counts['warn']} to look at, {counts['fail']} failed, {counts['skip']} left out\n"


def _document(result: Result) -> dict[str, str]:
    return {"name": result.name, "state": result.state, "seen": result.seen, "hint": result.hint}


COMMANDS = (check,)
