"""The verbs that look at stored WAL: ``wal-verify`` and ``wal-show``."""

from __future__ import annotations

import json
import os
import sys

import click

from wal_e.cli.context import Context
from wal_e.cli.render import show
from wal_e.cli.wal_json import survey_json, verdict_json
from wal_e.cli.wal_text import ASCII, UNICODE, tree_text, verdict_text
from wal_e.errors import UsageError
from wal_e.operators.wal_survey import look
from wal_e.operators.wal_verify import Reading, ask_server, combined, verify


@click.command("wal-verify")
@click.argument("pgdata", metavar="[PGDATA]", required=False)
@click.option("--content", is_flag=True, help="Read all WAL that was not found good before: codec, header and every page.")
@click.option("--again", is_flag=True, help="With --content: read all of it, also what was found good before.")
@click.option("-p", "--pool-size", type=click.IntRange(1, 64), default=4, show_default=True, help="With --content: files read at once.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
@click.pass_obj
def wal_verify(context: Context, pgdata: str | None, content: bool, again: bool, pool_size: int, as_json: bool) -> None:
    """Tell whether the WAL that the backups and the server rely on is in the store.

    With PGDATA, or with PGHOST or PGSERVICE set, the server is asked what it archived last. Exit status 1:
    store or server did not answer, or the prefix is empty. 2: a gap that a backup or the server relies on, or damage.
    """
    if again and not content:
        raise UsageError("--again goes with --content", "", "Without --content nothing is read that could be read again.")
    archive = context.archive(pool_size)
    if not content:
        archive = archive.read_only()
    server = ask_server(archive, os.environ, pgdata)
    verdict = verify(archive, server, Reading(pool_size, "again" if again else "new") if content else None, pgdata)
    show(json.dumps(verdict_json(verdict), indent=1) + "\n" if as_json else verdict_text(verdict))
    if verdict.problems:
        raise combined(verdict.problems)


@click.command("wal-show")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of a tree.")
@click.pass_obj
def wal_show(context: Context, as_json: bool) -> None:
    """Draw timelines, backups and gaps as a tree, and say what can be recovered."""
    survey = look(context.archive(1).read_only())
    show(json.dumps(survey_json(survey), indent=1) + "\n" if as_json else tree_text(survey, UNICODE if _can_draw() else ASCII))


def _can_draw() -> bool:
    """Whether stdout takes the characters for boxes."""
    try:
        "".join(UNICODE).encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError, AttributeError):
        return False
    return True


COMMANDS = (wal_verify, wal_show)
