"""The verb that looks whether stored backups are whole: ``backup-verify``."""

from __future__ import annotations

import json
from typing import Any

import click

from wal_e.cli.context import Context
from wal_e.cli.render import show, shown_time
from wal_e.errors import UsageError
from wal_e.operators import backup_verify as verifying
from wal_e.operators.backup_verify import Look, Verdict
from wal_e.operators.wal_verify import combined
from wal_e.pipeline.pipeline import BACKUP_PIPE_BYTES
from wal_e.progress import shown_bytes, shown_seconds


@click.command("backup-verify")
@click.argument("query", metavar="[NAME|LATEST]", required=False)
@click.option("--all", "everything", is_flag=True, help="All backups, oldest first; goes on after a damaged one.")
@click.option("--fast", is_flag=True, help="Read sentinel and manifest only, and see that all objects are there in their sizes.")
@click.option("-p", "--pool-size", type=click.IntRange(1, 64), default=4, show_default=True, help="Partitions read at once.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of lines.")
@click.pass_obj
def backup_verify(context: Context, query: str | None, everything: bool, fast: bool, pool_size: int, as_json: bool) -> None:
    """Tell whether a backup would restore: every byte of it is fetched, decoded and compared.

    The result is remembered beside the backup, and backup-list --json shows it. Exit status 1: store did
    not answer. 2: damage, or WAL that the backup needs is missing.
    """
    if everything == (query is not None):
        raise UsageError("backup-verify takes the name of a backup, LATEST, or --all", "", "Use one of them.")
    archive = context.archive(pool_size, BACKUP_PIPE_BYTES)
    verdicts: list[Verdict] = []
    try:
        for backup in verifying.selected(archive, query):
            verdicts.append(verifying.verify(archive, backup, Look("fast" if fast else "full", pool_size)))
            if not as_json:
                show(_lines(verdicts[-1]))
    finally:
        if as_json:
            show(json.dumps([_document(verdict) for verdict in verdicts], indent=1) + "\n")
    problems = [problem for verdict in verdicts for problem in verdict.problems()]
    if problems:
        raise combined(sorted(problems, key=lambda problem: -problem.status))


def _lines(verdict: Verdict) -> str:
    """A line for the backup, and one for each thing that is wrong with it."""
    if verdict.sentences:
        return "".join(f"{line}\n" for line in (f"{verdict.backup}: DAMAGED", *(f"    {sentence}" for sentence in verdict.sentences)))
    looked = "all objects are there" if verdict.way == "fast" else f"{shown_bytes(verdict.checked_bytes)} read in {shown_seconds(verdict.seconds)}"
    pages = "" if verdict.pages is None else f", {verdict.pages} pages"
    return f"{verdict.backup}: {'not verifiable, but ' if verdict.is_original else ''}good, {looked}{pages}\n"


def _document(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.backup,
        "way": verdict.way,
        "time": shown_time(verdict.finished),
        "ok": not verdict.sentences,
        "verifiable": not verdict.is_original,
        "checked_bytes": verdict.checked_bytes,
        "seconds": round(verdict.seconds, 3),
        "pages": verdict.pages,
        "damaged": [finding._asdict() for finding in verdict.damaged],
        "damaged_pages": [pages._asdict() for pages in verdict.damaged_pages],
        "missing_wal": verdict.missing_wal,
        "unreadable": [finding._asdict() for finding in verdict.unreadable],
    }


COMMANDS = (backup_verify,)
