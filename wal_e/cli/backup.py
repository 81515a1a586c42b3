"""The verbs of base backups: ``backup-push``, ``backup-fetch`` and ``backup-list``."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import click

from wal_e.archive.backup_checks import checks_of
from wal_e.archive.catalog import Catalog
from wal_e.archive.drill_record import drills_of
from wal_e.cli.context import Context
from wal_e.cli.render import HEADER, advice, backup_json, backup_rows, show
from wal_e.errors import UsageError
from wal_e.log import Logger
from wal_e.operators import backup_fetch as fetching
from wal_e.operators import backup_list as listing
from wal_e.operators.restore_config import ConfigTarget
from wal_e.operators.restore_target import TablespaceChoice, absolute
from wal_e.pipeline.lanes import native_sleep
from wal_e.pipeline.pipeline import BACKUP_PIPE_BYTES
from wal_e.postgres.cluster import Cluster

LOG = Logger(__name__)

CONFIG_TO = click.option(
    "--config-to", metavar="DIR", help="Put the configuration that the backup keeps from outside the data directory into DIR, at its absolute paths below it."
)
POOL_SIZE = click.option(
    "-p", "--pool-size", type=click.IntRange(1, 64), default=4, show_default=True, help="Partitions in flight at once, each with a codec process of its own."
)


@click.command("backup-push")
@click.argument("pg_cluster_directory", metavar="PG_CLUSTER_DIRECTORY")
@POOL_SIZE
@click.option("--cluster-read-rate-limit", type=click.IntRange(1), metavar="BYTES", help="Read at most this many bytes per second from the cluster.")
@click.option("--while-offline", is_flag=True, help="Back up a cluster that was shut down cleanly, without connecting to it.")
@click.option("--fast", is_flag=True, help="Ask for an immediate checkpoint instead of waiting minutes for a spread one.")
@click.option("--verify-page-checksums", is_flag=True, help="Look at the checksum of each page that is read; report and record damaged ones.")
@click.option("--include-config", is_flag=True, help="Take along configuration files that lie outside the data directory, as on Debian.")
@click.pass_obj
def backup_push(
    context: Context,
    pg_cluster_directory: str,
    pool_size: int,
    cluster_read_rate_limit: int | None,
    while_offline: bool,
    fast: bool,
    verify_page_checksums: bool,
    include_config: bool,
) -> None:
    """Store a base backup of the data directory PG_CLUSTER_DIRECTORY.

    Connects as libpq does (PGHOST, PGUSER, ...); without PGHOST, to the socket of the server that runs on
    the directory. Returns when the backup and the WAL it needs are in the store. Exit status 1: may
    succeed later. 2: will not, until somebody changes something.
    """
    for name in context.settings.unknown_variables():
        LOG.warning(f"{name} is not a setting", "It has no effect.", "See the list of settings in the documentation; it may be misspelt.")
    cluster = Cluster.open(pg_cluster_directory)
    archive = context.archive(pool_size, BACKUP_PIPE_BYTES)
    pages = "checked" if verify_page_checksums else "unchecked"
    from wal_e.operators import backup_push as pushing  # with it comes what talks to the server, which is most of the start of the other verbs

    options = pushing.PushOptions(
        pool_size,
        cluster_read_rate_limit or 0,
        "fast" if fast else "spread",
        context.settings.archive_timeout_s,
        pages,
        "included" if include_config else "told",
    )
    if while_offline:
        pushing.push_offline(archive, cluster, options, native_sleep)
    else:
        pushing.push_online(archive, cluster, options, os.environ, native_sleep)


@click.command("backup-fetch")
@click.argument("pg_cluster_directory", metavar="PG_CLUSTER_DIRECTORY")
@click.argument("backup_name", metavar="NAME|LATEST")
@POOL_SIZE
@click.option("--blind-restore", is_flag=True, help="Put tablespaces into real directories below pg_tblspc.")
@click.option("--restore-spec", metavar="FILE|SOURCE", help="Put tablespaces where a JSON file says, or where they were (SOURCE).")
@CONFIG_TO
@click.pass_obj
def backup_fetch(
    context: Context, pg_cluster_directory: str, backup_name: str, pool_size: int, blind_restore: bool, restore_spec: str | None, config_to: str | None
) -> None:
    """Restore a base backup into the directory PG_CLUSTER_DIRECTORY, which must be new or empty.

    Everything is verified and made durable; pg_control comes last, so that a restore that did not end
    cannot be started. Prints how to make the server recover from the archive. Exit status 1: may succeed
    later. 2: will not, until somebody changes something.
    """
    if blind_restore and restore_spec:
        raise UsageError("--blind-restore and --restore-spec exclude each other", "Each says where tablespaces go.", "Use one of them.")
    choice = TablespaceChoice(blind_restore, _spec(restore_spec))
    archive, target = context.archive(pool_size, BACKUP_PIPE_BYTES), absolute(pg_cluster_directory)
    hooks, settings = fetching.NO_HOOKS, {}
    if config_to is not None:
        backup = Catalog(archive.store).find(backup_name)
        backup_name = backup.name
        config = ConfigTarget.checked(archive, backup, config_to, target)
        hooks, settings = fetching.Hooks(partial(config.place, archive)), config.settings(target)
    fetched = fetching.fetch_backup(archive, target, backup_name, pool_size, choice, hooks)
    show(advice(fetched, target, context.settings.prefix, context.options, settings))


@click.command("backup-list")
@click.argument("query", metavar="[NAME|LATEST]", required=False)
@click.option("--detail", is_flag=True, help="Fill in sizes and the end of each backup.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array with all that is known.")
@click.pass_obj
def backup_list(context: Context, query: str | None, detail: bool, as_json: bool) -> None:
    """List the complete backups, oldest first: a header and tab-separated columns."""
    if as_json:
        archive = context.archive(1)
        backups = listing.listed(archive, query)
        checks = checks_of(archive.store, backups)
        drills = drills_of(archive.store, backups)
        show(json.dumps([backup_json(backup, checks[backup.name], drills[backup.name]) for backup in backups], indent=1) + "\n")
        return
    archive = context.archive(1)
    show(HEADER)
    show(backup_rows(listing.listed(archive, query), detail))


def _spec(restore_spec: str | None) -> dict[str, Any] | None:
    if restore_spec is None or restore_spec == "SOURCE":
        return None if restore_spec is None else {}
    try:
        with open(restore_spec, "rb") as stream:
            document = json.load(stream)
    except OSError as error:
        raise UsageError(f"the restore spec {restore_spec} cannot be read", f"The system says: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"the restore spec {restore_spec} is not JSON", f"{error}.") from None
    if not isinstance(document, dict):
        raise UsageError(f"the restore spec {restore_spec} is not a JSON object")
    return document


COMMANDS = (backup_push, backup_fetch, backup_list)
