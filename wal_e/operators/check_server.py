"""``check`` of a cluster: its directory, its server, how that archives, and one segment that must arrive in the store."""

from __future__ import annotations

import os
import time

from wal_e.errors import ArchiveTimeout, ServerRefused, local_error
from wal_e.operators import backlog, check_command
from wal_e.operators.check_subject import Seen, Subject, ok, skip, warn
from wal_e.operators.handshake import archiver_answers
from wal_e.operators.wal_wait import wait_for_wal
from wal_e.postgres import archiving, monitor
from wal_e.postgres.cluster import Cluster
from wal_e.progress import shown_bytes, shown_seconds

LOW_SHARE = 0.05  # of a file system; below it a burst of WAL fills it
LOW_LASTS_S = 3600.0
LOW_SEGMENTS = 2  # with less room the server stops at its next segment


def directory(subject: Subject) -> Seen:
    """The data directory can be read. Raises: NotACluster, DamageError, LocalFileError, UsageError."""
    if subject.options.pgdata is None:
        return skip("none was named: wal-e check PGDATA looks at the server, too")
    cluster = Cluster.open(subject.options.pgdata)
    for name in ("base", "global", "pg_wal"):
        try:
            os.listdir(os.path.join(cluster.path, name))
        except OSError as error:
            raise local_error(error, f"reading {os.path.join(cluster.path, name)}") from None
    subject.cluster = cluster
    return ok(f"{cluster.path}, PostgreSQL {cluster.major}, {cluster.control.state_words}, system identifier {cluster.control.system_identifier}")


def server(subject: Subject) -> Seen:
    """The server of the directory answers. Raises: ServerUnavailable, ServerRefused, WrongCluster."""
    session = subject.ending.enter_context(monitor.connect(subject.environ, subject.directory))
    subject.session = session
    subject.position = session.position()
    number, position = session.version_num, subject.position
    return ok(f"PostgreSQL {number // 10000}.{number % 10000} answers: {position.role}, timeline {position.timeline}, at {position.lsn}")


def rights(subject: Subject) -> Seen:
    """This user may make a base backup. Raises: ServerRefused."""
    session = subject.session
    functions = archiving.backup_functions(session)
    user = archiving.user(session)
    if missing := archiving.forbidden(session, functions):
        raise ServerRefused(
            f'"{user}" may not make a base backup',
            f"It may not call {' and '.join(missing)}.",
            f'Connect as another user (PGUSER), or let a superuser run: GRANT EXECUTE ON FUNCTION {", ".join(functions)} TO "{user}";',
        )
    return ok(f'"{user}" may make a base backup')


def archive_mode(subject: Subject) -> Seen:
    """The server archives. Raises: ServerRefused."""
    subject.archiving = subject.session.archiving()
    mode = subject.archiving.mode
    if mode == "off":
        if archiving.is_received(subject.session):
            return warn("off; WAL is received over a replication slot", "Right where wal-e wal-receive does it. Otherwise set archive_mode = on and restart.")
        raise ServerRefused(
            "archive_mode is off",
            "The server removes its WAL without archiving it.",
            "Set archive_mode = on and restart the server, or run wal-e wal-receive.",
        )
    if subject.position.role == "standby" and mode == "on":
        return ok("on; a standby archives with archive_mode = always only, this one will after its promotion")
    return ok(mode)


def archive_command(subject: Subject) -> Seen:
    """What archives is this tool. Raises: ServerRefused."""
    settings = subject.archiving
    if settings.mode == "off":
        return skip("archive_mode is off")
    if settings.library:
        raise ServerRefused(
            f"archive_library is {settings.library}",
            "That library archives, and archive_command is not called.",
            f"Set archive_library = ''. {check_command.EXAMPLE}",
        )
    return check_command.judge(settings.command, subject.environ)


def wal_level(subject: Subject) -> Seen:
    """The WAL has what recovery needs. Raises: ServerRefused."""
    level = archiving.wal_settings(subject.session).wal_level
    if level == "minimal":
        raise ServerRefused("wal_level is minimal", "Such WAL cannot be recovered from.", "Set wal_level = replica and restart the server.")
    return ok(level)


def full_page_writes(subject: Subject) -> Seen:
    """Pages that were torn by a crash can be repaired."""
    if archiving.wal_settings(subject.session).full_page_writes:
        return ok("on")
    return warn("off", "Set full_page_writes = on, unless the file system never tears a page. Backups from a standby are refused while it is off.")


def archive_timeout(subject: Subject) -> Seen:
    """A quiet server archives, too."""
    timeout_s = archiving.wal_settings(subject.session).archive_timeout_s
    if timeout_s:
        return ok(f"{shown_seconds(timeout_s)}: at most so much is lost with the server")
    if subject.archiving.mode == "off":
        return skip("archive_mode is off")
    return warn(
        "0: what was written last waits until its segment is full, however long that takes",
        "Set archive_timeout = '60s' and reload; or run wal-e wal-receive, which stores what is written within seconds.",
    )


def wal_senders(subject: Subject) -> Seen:
    """There is room for who receives WAL."""
    number = archiving.wal_settings(subject.session).max_wal_senders
    return ok(f"{number}") if number else skip("0; nobody can receive WAL, which only standbys and wal-receive do")


def archiver(subject: Subject) -> Seen:
    """The last attempt to archive was a success. Raises: BacklogAlarm."""
    status = subject.status
    if status.alarm is not None:
        raise status.alarm
    if status.server is None:
        return skip(f"the server was not asked: {status.trouble}")
    found = status.server.archiver
    if found.last_archived_wal is None or found.last_archived_time is None:
        return ok("nothing was archived yet, and nothing failed")
    return ok(f"{found.last_archived_wal} at {found.last_archived_time:%Y-%m-%d %H:%M:%S} UTC; {found.failed_count} failures since the counters were reset")


def waiting(subject: Subject) -> Seen:
    """Archiving keeps up. Raises: BacklogAlarm, LocalFileError."""
    found = backlog.measure(_pg_wal(subject), subject.now().timestamp())
    if alarm := backlog.alarm(found, subject.settings.backlog_limit):
        raise alarm
    if not found.names:
        return ok("nothing waits to be archived")
    number = len(found.names)
    return ok(f"{number} file{'' if number == 1 else 's'} wait{'s' if number == 1 else ''} to be archived, the longest for {shown_seconds(found.oldest_age_s)}")


def resident(subject: Subject) -> Seen:
    """Whether a resident archiver helps; it need not."""
    return ok("runs") if archiver_answers(_pg_wal(subject)) else ok("does not run; each wal-push works by itself")


def free_space(subject: Subject) -> Seen:
    """There is room for WAL while the store is away. Raises: LocalFileError, WrongCluster."""
    disk = subject.status.disk
    text = f"{shown_bytes(disk.free_bytes)} of {shown_bytes(disk.size_bytes)} for pg_wal"
    if disk.lasts_s is not None:
        text += f", enough for {shown_seconds(disk.lasts_s)} at the pace of the last minutes"
    hint = "When it is used up the server stops. Free space, or give pg_wal a larger file system; see wal-e wal-status for what waits."
    if disk.free_bytes < LOW_SEGMENTS * subject.directory.control.segment_size:
        raise local_error(OSError(28, os.strerror(28)), f"looking at pg_wal: {text}")
    is_low = disk.free_bytes < LOW_SHARE * disk.size_bytes or (disk.lasts_s is not None and disk.lasts_s < LOW_LASTS_S)
    return warn(text, hint) if is_low else ok(text)


def switch(subject: Subject) -> Seen:
    """A segment that ends now arrives in the store. Raises: ArchiveTimeout, ServerRefused, StoreError."""
    if not subject.options.switches:
        return skip("--no-switch was given")
    if subject.position.role == "standby":
        return skip("a standby cannot end a segment; check the primary")
    session = subject.session
    if not archiving.may_switch(session):
        user = archiving.user(session)
        return warn(f'"{user}" may not end a segment, so nothing was tried', f'Let a superuser run: GRANT EXECUTE ON FUNCTION pg_switch_wal() TO "{user}";')
    began = time.monotonic()
    name = archiving.switch(session, session.position().timeline, subject.directory.control.segment_size)
    try:
        wait_for_wal(subject.archive, [name], subject.options.timeout_s, lambda: _why(subject))
    except ArchiveTimeout as late:
        raise ArchiveTimeout(
            late.message,
            late.detail,
            f"Does archive_command store at {subject.archive.store.url}, with this --envdir? Else see the server's log, and wal-e wal-status. "
            "A larger --timeout waits longer.",
        ) from None
    return ok(f"{name} arrived in the store after {time.monotonic() - began:.1f} s")


def _why(subject: Subject) -> str:
    """What the server, or its directory, says about archiving that does not come on."""
    stats = subject.session.archiver()
    number = len(backlog.measure(_pg_wal(subject)).names)
    failure = f"The last attempt to archive failed, for {stats.last_failed_wal}. " if stats.is_failing else "The server reports no failing archive_command. "
    return f"{failure}{number} file{'' if number == 1 else 's'} waited to be archived."


def _pg_wal(subject: Subject) -> str:
    return os.path.join(subject.directory.path, "pg_wal")
