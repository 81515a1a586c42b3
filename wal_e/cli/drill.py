"""The verb ``drill``."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import click

from wal_e.archive.drill_record import drill_document
from wal_e.cli.backup import POOL_SIZE
from wal_e.cli.context import Context
from wal_e.cli.render import restore_command, show, shown_time
from wal_e.cli.targets import goal_of, target_options, timeline_of
from wal_e.errors import UsageError
from wal_e.operators.drill import Drilled, Wish, drill
from wal_e.operators.drill_scratch import KEEP, REMOVE
from wal_e.pipeline.pipeline import BACKUP_PIPE_BYTES
from wal_e.postgres.assertions import statements_of
from wal_e.progress import shown_bytes, shown_seconds

DEFAULT_PORT = 5432


@click.command("drill")
@target_options
@click.option("--sql", "sql_file", metavar="FILE", help="Statements that must hold in the recovered database: none may fail, none may be false.")
@click.option("--dbname", metavar="NAME", help="The database for --sql; else PGDATABASE, else postgres.")
@click.option("--directory", metavar="DIR", help="Make the scratch directory in DIR, instead of where temporary files go (TMPDIR).")
@click.option("--keep", is_flag=True, help="Leave the scratch directory, with its server stopped, and say where it is.")
@click.option("--bindir", metavar="DIR", help="Where PostgreSQL's programs are, if not on PATH or where packages put them.")
@click.option("--port", type=click.IntRange(1, 65535), default=DEFAULT_PORT, show_default=True, help="The port in the name of the server's private socket.")
@click.option("--setting", "settings", metavar="NAME=VALUE", multiple=True, help="A setting for the scratch server, which has none of the cluster's own.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead of lines.")
@POOL_SIZE
@click.pass_obj
def drill_command(
    context: Context, /, sql_file: str | None, dbname: str | None, directory: str | None, settings: tuple[str, ...], as_json: bool, pool_size: int, **given: Any
) -> None:
    """Prove that a backup restores: fetch it into a scratch directory, recover it there, look for damage.

    The scratch server listens on a private socket, archives nothing, and is gone afterwards with its
    directory. What came of it is remembered beside the backup, for backup-list --json. Exit status 1: may
    succeed later. 2: the backup is no good, or an assertion does not hold, or somebody must change something.
    """
    if directory is not None and not os.path.isdir(directory):
        raise UsageError(f"there is no directory {directory!r} for the drill", "", "Make it, name another --directory, or leave the option out.")
    wish = Wish(
        goal=goal_of(given),
        timeline=timeline_of(given),
        backup=given["backup"],
        statements=_statements(sql_file),
        database=dbname or os.environ.get("PGDATABASE") or "postgres",
        restore_command=restore_command(context.settings.prefix, context.options),
        pool_size=pool_size,
        parent=directory,
        afterwards=KEEP if given["keep"] else REMOVE,
        programs=given["bindir"],
        port=given["port"],
        settings=dict(map(_setting, settings)),
    )
    drilled = drill(context.archive(pool_size, BACKUP_PIPE_BYTES), wish, os.environ)
    if as_json:
        show(json.dumps({"backup": drilled.backup, **drill_document(drilled.record), "kept": drilled.kept}, indent=1) + "\n")
    if drilled.failure:
        raise drilled.failure
    if not as_json:
        show(_text(drilled))


def _statements(sql_file: str | None) -> list[str]:
    if sql_file is None:
        return []
    try:
        with open(sql_file, encoding="utf-8") as stream:
            return statements_of(stream.read())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{sql_file} cannot be read", f"{error}.", "Give a file of SQL statements, in UTF-8, with semicolons between them.") from None


def _setting(given: str) -> tuple[str, str]:
    name, equals, value = given.partition("=")
    if not equals or not re.fullmatch(r"\w+(\.\w+)*", name, re.ASCII):
        raise UsageError(f"{given!r} is not a setting", "", "Write --setting NAME=VALUE, with the name of a setting of PostgreSQL.")
    return name, value


def _text(drilled: Drilled) -> str:
    record = drilled.record
    commit = f", last commit {shown_time(record.last_commit)}" if record.last_commit else ""
    checked = {"": "not checked for damage: there is no amcheck"}.get(record.checked_with or "", f"no damage found by {record.checked_with}")
    held = f"; {record.statements} assertion{'' if record.statements == 1 else 's'} held" if record.statements else ""
    took = [
        f"{shown_seconds(seconds or 0)} to {what}" for seconds, what in ((record.fetch_s, "fetch"), (record.recovery_s, "recover"), (record.check_s, "check"))
    ]
    lines = [
        f"{drilled.backup} is proven to restore, with PostgreSQL {record.server_version}",
        f"recovered to {record.target}: {record.lsn}, timeline {record.timeline}{commit}",
        f"{checked}{held}",
        f"{shown_bytes(record.restored_bytes)}: {', '.join(took)}",
    ]
    return "\n".join([*lines, *([f"kept in {drilled.kept}"] if drilled.kept else [])]) + "\n"


COMMANDS = (drill_command,)
