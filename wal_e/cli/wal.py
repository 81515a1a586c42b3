"""The verbs of WAL: ``wal-push``, ``wal-fetch`` and ``wal-prefetch``."""

from __future__ import annotations

import click

from wal_e.cli import run
from wal_e.cli.context import Context
from wal_e.cli.fast import VERBS
from wal_e.pipeline.lanes import Cooperative

DROP_AFTER = click.option(
    "--drop-after",
    metavar="N",
    type=click.IntRange(min=0),
    help="While the store fails and more than N files wait, give up the oldest. Recovery cannot pass that gap.",
)


@click.command("wal-push")
@click.argument("wal_segment", metavar="WAL_SEGMENT")
@click.option("-p", "--pool-size", default=VERBS["wal-push"][2], show_default=True, help="Push up to this many files that are ready, at once.")
@click.option("--no-rename", is_flag=True, help="Push this file only, and mark none done in archive_status; over WALE_NO_RENAME.")
@DROP_AFTER
@click.option("--missing", is_flag=True, help="WAL_SEGMENT is PGDATA: push what the server takes for archived, the store lacks, and pg_wal still has.")
@click.pass_obj
def wal_push(context: Context, wal_segment: str, pool_size: int, no_rename: bool, drop_after: int | None, missing: bool) -> None:
    """Store the WAL file at the path WAL_SEGMENT: archive_command = 'wal-e wal-push %p'.

    Where wal-archive runs, it is asked to do the work. Exit status 0: stored for good. 1: may succeed later. 2: will
    not, until somebody looks. The server keeps the file and tries again.
    """
    if missing:
        from wal_e.cli import health

        health.missing(context, wal_segment)
        return
    settings = context.settings
    run.wal_push(settings, run.Push(wal_segment, pool_size, no_rename, drop_after), lambda _: Cooperative(run.push_lanes(settings)))


@click.command("wal-fetch")
@click.argument("wal_segment", metavar="WAL_SEGMENT")
@click.argument("wal_destination", metavar="WAL_DESTINATION")
@click.option("-p", "--prefetch", default=VERBS["wal-fetch"][2], show_default=True, help="Keep up to this many segments ahead, in the background; 0 for none.")
@click.pass_obj
def wal_fetch(context: Context, wal_segment: str, wal_destination: str, prefetch: int) -> None:
    """Bring the WAL file of the name WAL_SEGMENT to a path: restore_command = 'wal-e wal-fetch %f %p'.

    Exit status 0: it is there, whole. 1: the store has no such file. 75: trouble that may pass, when a
    standby asks. 200: any other trouble; it stops a recovering server, which would otherwise be promoted
    with data missing.
    """
    if run.promote(wal_segment, wal_destination, prefetch):
        run.prefetch_after(context.settings, wal_segment, wal_destination, prefetch)
    else:
        run.wal_fetch(context.settings, wal_segment, wal_destination, prefetch, Cooperative(1))


@click.command("wal-prefetch", hidden=True)
@click.argument("base_directory", metavar="BASE_DIRECTORY")
@click.argument("segment", metavar="SEGMENT")
@click.option("-p", "--prefetch", default=VERBS["wal-prefetch"][2], show_default=True, help="Keep up to this many segments ahead.")
@click.pass_obj
def wal_prefetch(context: Context, base_directory: str, segment: str, prefetch: int) -> None:
    """Prefetch segments, beginning with SEGMENT, into the pg_wal BASE_DIRECTORY. Started by wal-fetch."""
    run.wal_prefetch(context.settings, base_directory, segment, prefetch, Cooperative(run.fetch_lanes(prefetch)))


COMMANDS = (wal_push, wal_fetch, wal_prefetch)
