"""How results look: WAL-E's table, JSON, and the advice after a restore."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from wal_e.archive.backup_checks import WAYS, Checks, check_document
from wal_e.archive.catalog import Backup
from wal_e.archive.drill_record import DrillRecord, drill_document
from wal_e.cli.fast import GLOBAL_VALUES
from wal_e.operators.backup_fetch import Fetched
from wal_e.operators.restore_config import kept_configuration
from wal_e.postgres.recovery import recovery_settings, render_advice

COLUMNS = (
    "name",
    "last_modified",
    "expanded_size_bytes",
    "wal_segment_backup_start",
    "wal_segment_offset_backup_start",
    "wal_segment_backup_stop",
    "wal_segment_offset_backup_stop",
)


def show(text: str) -> None:
    """Write a result to stdout. That nobody can read it there is no reason for another exit status."""
    with contextlib.suppress(OSError):
        click.echo(os.fsencode(text), nl=False)


def shown_time(moment: datetime) -> str:
    """A time as S3 shows it, which every known reader of this table understands."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


HEADER = "\t".join(COLUMNS) + "\r\n"


def backup_rows(backups: Iterable[Backup], detail: bool) -> str:
    """Render the rows of WAL-E's table: tabs, CRLF; sizes and ends are empty without ``detail``."""
    return "".join("\t".join(_row(backup, detail)) + "\r\n" for backup in backups)


def _row(backup: Backup, detail: bool) -> list[str]:
    size = stop_segment = stop_offset = ""
    if detail and backup.sentinel:
        size, stop_segment, stop_offset = str(backup.sentinel.expanded_bytes), backup.sentinel.stop_segment, f"{backup.sentinel.stop_offset:08d}"
    start = backup.parsed_name
    return [backup.name, shown_time(backup.finished), size, start.segment, f"{start.offset:08d}", stop_segment, stop_offset]


def backup_json(backup: Backup, checks: Checks | None = None, drill: DrillRecord | None = None) -> dict[str, Any]:
    """All that is known of a backup; keys of the table first, what is unknown is null. ``checks`` are its last verifications, ``drill`` the last drill."""
    row = _row(backup, detail=True)
    document: dict[str, Any] = dict(zip(COLUMNS, (value or None for value in row), strict=True))
    if document["expanded_size_bytes"] is not None:
        document["expanded_size_bytes"] = int(document["expanded_size_bytes"])
    sentinel = backup.sentinel
    facts = sentinel.facts if sentinel else None
    document["damage"] = str(backup.damage) if backup.damage else None
    document["tablespaces"] = {tablespace.oid: tablespace.location for tablespace in sentinel.tablespaces} if sentinel else None
    document["data_directory"] = sentinel.base_prefix if sentinel else None
    for field, value in facts._asdict().items() if facts else ():
        document[field] = shown_time(value) if isinstance(value, datetime) else str(value) if field in ("start_lsn", "stop_lsn", "system_identifier") else value
    if facts and facts.page_checksums:
        document["page_checksums"] = facts.page_checksums.document()
    if facts and facts.configuration:
        document["configuration"] = facts.configuration._asdict()
    document["last_verify"] = {way: check_document(checks[way]) if way in checks else None for way in WAYS} if checks is not None else None
    document["last_drill"] = drill_document(drill) if drill is not None else None
    return document


def advice(fetched: Fetched, target: str, prefix: str, options: Mapping[str, str], server_settings: Mapping[str, str]) -> str:
    """How to go on after a restore, ready to paste; ``server_settings`` are for the server's command line."""
    settings = recovery_settings(fetched.major, restore_command(prefix, options))
    lines = f"# {target} is restored. To recover it from the archive, run this and start the server:\n{render_advice(settings, target)}"
    if not prefix.startswith("file:") and "envdir" not in options:
        lines += "# The server needs the store's settings and credentials in its environment, or restore_command an --envdir that has them.\n"
    if fetched.in_place_tablespaces:
        conf = shlex.quote(os.path.join(target, "postgresql.auto.conf"))
        lines += "# Its tablespaces are directories in pg_tblspc, which recovery takes for damage without this (since August 2022):\n"
        lines += f"echo 'allow_in_place_tablespaces = on' >> {conf}\n"
    if server_settings:
        lines += f"# To use the configuration that the backup kept, start the server with:\n# {server_options(server_settings)}\n"
    elif kept_configuration(fetched.backup):
        lines += "# The backup keeps the configuration from outside the data directory, too; --config-to DIR brings it.\n"
    return lines


def server_options(settings: Mapping[str, str]) -> str:
    """Settings for a server's command line, as a shell takes them."""
    return shlex.join(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))


def restore_command(prefix: str, options: Mapping[str, str]) -> str:
    """The ``restore_command`` that reads from the same prefix, in a server that has none of our environment."""
    script = os.path.abspath(sys.argv[0])
    program = [script] if os.access(script, os.X_OK) and os.path.basename(script) == "wal-e" else [sys.executable, "-m", "wal_e"]
    if options.get("envdir"):
        given = ["--envdir", os.path.abspath(options["envdir"])]
    else:
        scheme = prefix.partition(":")[0]
        given = [next(name for name in GLOBAL_VALUES if name == f"--{scheme}-prefix"), prefix]
        given += ["--aws-instance-profile"] if "aws_instance_profile" in options else []
    words = " ".join(shlex.quote(word) for word in [*program, *given, "wal-fetch"])
    return words.replace("%", "%%") + ' "%f" "%p"'
