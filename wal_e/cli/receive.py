"""The verb of streaming: ``wal-receive``."""

from __future__ import annotations

import os

import click

from wal_e.archive.archive import Archive
from wal_e.cli.context import Context
from wal_e.operators import wal_receive as receiving
from wal_e.pipeline.lanes import Cooperative
from wal_e.settings import Settings

_ATTEMPTS = "1"  # wal-receive itself tries again, for ever, and tells that once a minute


@click.command("wal-receive")
@click.argument("directory", metavar="DIRECTORY")
@click.option("--slot", default="wal_e", show_default=True, help="The physical replication slot; made if there is none.")
@click.option(
    "--partial-interval",
    type=click.FloatRange(0.1),
    default=10,
    show_default=True,
    metavar="SECONDS",
    help="Store the unfinished segment so often, if it has grown: so much is lost with this host at most.",
)
@click.option("-p", "--pool-size", type=click.IntRange(1, 32), default=4, show_default=True, help="Finished segments pushed at once.")
@click.option("--accept-gap", is_flag=True, help="With an empty DIRECTORY, begin at the slot even if the store lacks WAL before it.")
@click.option("--metrics-file", metavar="FILE", default="", help="Keep a file of metrics for Prometheus' textfile collector here.")
@click.pass_obj
def wal_receive(context: Context, directory: str, slot: str, partial_interval: float, pool_size: int, accept_gap: bool, metrics_file: str) -> None:
    """Receive WAL by streaming replication and store it, until a signal ends this.

    Runs pg_receivewal, which connects as libpq does (PGHOST, PGUSER, ...), into DIRECTORY, where segments
    wait until they are stored. Works on any host, beside an archive_command or without one. Exit status
    1: may succeed later. 2: will not, until somebody changes something.
    """
    settings = Settings(os.environ, {**context.options, "retries": _ATTEMPTS})
    archive = Archive.open(settings, Cooperative(pool_size + 1))
    options = receiving.ReceiveOptions(slot, partial_interval, pool_size, context.settings.backlog_limit, "accept" if accept_gap else "refuse", metrics_file)
    receiving.receive(archive, directory, options, os.environ)


COMMANDS = (wal_receive,)
