"""What a recovered server is asked in a drill: whether its files agree with each other, and whether what somebody expects of it holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from wal_e.archive.archive import Archive
from wal_e.errors import DamageError, ServerRefused
from wal_e.log import Logger
from wal_e.pipeline import process
from wal_e.postgres import amcheck, assertions
from wal_e.postgres.amcheck import FIRST_WITH_PROGRAM, PROGRAM, Ground
from wal_e.postgres.instance import Instance
from wal_e.postgres.programs import Programs

LOG = Logger(__name__)

MAX_NAMED = 20  # findings in one error
MAX_BYTES = 64 * 1024  # of what pg_amcheck prints
SIGTERM = 15


def check(archive: Archive, server: Instance, programs: Programs, statements: Sequence[str], database: str) -> str:
    """Look for damage in all databases, then see that the statements hold; tell what damage was looked for with, "" for nothing.

    Raises: DamageError, DrillFailed, ServerRefused, ServerUnavailable.
    """
    ground = amcheck.survey(server.connect)
    checked_with = _look_for_damage(archive, server, programs, ground)
    if statements:
        with server.connect(database, ground.superuser) as connection:
            for statement in statements:
                assertions.require(connection, statement)
    return checked_with


def _look_for_damage(archive: Archive, server: Instance, programs: Programs, ground: Ground) -> str:
    if ground.refusal:
        LOG.warning(
            "nothing looks for damage in the restored tables and indexes",
            f"The server in {programs.directory} does not have the extension amcheck. {ground.refusal}",
            "Install PostgreSQL's contrib modules there.",
            action="drill",
        )
        return ""
    program = programs.path(PROGRAM) if programs.major >= FIRST_WITH_PROGRAM else None
    found = _findings_of(archive, server, program, ground) if program else list(amcheck.findings(server.connect, ground.superuser))
    if found:
        named = " | ".join(found[:MAX_NAMED]) + (" | ..." if len(found) > MAX_NAMED else "")
        raise DamageError(
            "what was restored is damaged inside",
            f"{PROGRAM if program else 'amcheck'} says: {named}",
            "The backup is what the cluster was. Check that itself, with pg_amcheck; a damaged index is repaired by REINDEX, for a table find an older backup.",
        )
    return PROGRAM if program else "amcheck"


def _findings_of(archive: Archive, server: Instance, program: str, ground: Ground) -> list[str]:
    """Run pg_amcheck; return the lines of what it found."""
    null, output = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), os.memfd_create(PROGRAM)
    try:
        jobs = min(archive.waits.lanes, os.cpu_count() or 1)
        running = process.start(amcheck.command(program, server.address(), ground.superuser, jobs), null, output)
        archive.waits.watch(running)
        try:
            status = archive.waits.reap(running)
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(running.pid, SIGTERM)
            raise
        finally:
            said = process.stderr_text(running)
            os.close(running.stderr)
        text = os.pread(output, MAX_BYTES, 0).decode(errors="replace")
    finally:
        os.close(null)
        os.close(output)
    if status == amcheck.CONSISTENT:
        return []
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if status == amcheck.DAMAGED and lines:
        return lines
    raise ServerRefused(f"{PROGRAM} could not check what was restored", f"It ended with status {status} and said: {' '.join((said or text).split())}")
