"""The verb ``wal-archive``: the resident archiver, as a foreground process for systemd and containers."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress

import click

from wal_e.archive.archive import Archive
from wal_e.cli.context import Context
from wal_e.cli.run import push_lanes
from wal_e.cli.wal import DROP_AFTER
from wal_e.operators.handshake import fingerprint
from wal_e.operators.wal_archive import Archiver, Plan
from wal_e.pipeline.lanes import Cooperative
from wal_e.settings import Settings

# Of one attempt on a file: the archiver itself comes back to it, for as long as it takes.
_TRIES = {"retries": "3", "push_deadline_s": "10", "fetch_deadline_s": "10"}


@click.command("wal-archive")
@click.argument("data_directory", metavar="PGDATA")
@click.option(
    "-p",
    "--pool-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Push at most this many files at once; more than processors + 1 are of no use.",
)
@click.option("--no-rename", is_flag=True, help="Never mark files done in archive_status; over WALE_NO_RENAME.")
@DROP_AFTER
@click.option("--metrics-file", metavar="PATH", help="Write Prometheus metrics to PATH every 15 seconds.")
@click.pass_obj
def wal_archive(context: Context, data_directory: str, pool_size: int, no_rename: bool, drop_after: int | None, metrics_file: str | None) -> None:
    """Archive the WAL of the cluster in PGDATA, ahead of the server, until a signal ends it.

    archive_command = 'wal-e wal-push %p' stays as it is: wal-push then only asks this process, and does the
    work itself when there is none.
    """
    settings = context.settings
    tries = _TRIES | ({"retries": str(settings.retries)} if settings.retries < int(_TRIES["retries"]) else {})
    waits = Cooperative(min(pool_size, push_lanes(settings)))
    plan = Plan(
        os.path.abspath(data_directory),
        waits.lanes,
        fingerprint(settings),
        settings.backlog_limit,
        no_rename or settings.no_rename,
        drop_after,
        metrics_file,
    )
    if settings.log_level != "debug":
        logging.getLogger("wal_e.retry").setLevel(logging.ERROR)  # the archiver tells of a store that is away once, not at each attempt
    Archiver(plan, lambda: Archive.open(Settings(os.environ, {**context.options, **tries}), waits), _notify).run()


def _notify(state: str) -> None:
    """Tell the service manager, where one listens: sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect("\0" + address[1:] if address[0] == "@" else address)
            manager.send(state.encode())


COMMANDS = (wal_archive,)
