"""What a server must be set to, and who may do what, for its WAL to be archived; and a segment that ends now. The questions of ``check``.

In recovery a server can neither switch segments nor name them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wal_e.postgres.wal import Lsn, segment_name

if TYPE_CHECKING:
    from wal_e.postgres.monitor import Monitor

_SETTINGS_QUERY = """SELECT current_setting('wal_level'), current_setting('full_page_writes') = 'on',
    (SELECT setting::int FROM pg_settings WHERE name = 'archive_timeout'), current_setting('max_wal_senders')::int"""

_SWITCH = "pg_switch_wal()"


class WalSettings(NamedTuple):
    """What the server writes to its WAL; ``archive_timeout_s`` is 0 for never."""

    wal_level: str
    full_page_writes: bool
    archive_timeout_s: int
    max_wal_senders: int


def wal_settings(session: Monitor) -> WalSettings:
    """Ask what the server writes to its WAL. Raises: ServerUnavailable, ServerRefused."""
    [row] = session._rows("reading the settings of the WAL", _SETTINGS_QUERY)
    return WalSettings(*row)


def is_received(session: Monitor) -> bool:
    """Ask whether somebody receives the WAL over a replication slot at this moment. Raises: ServerUnavailable, ServerRefused."""
    query = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_type = 'physical' AND active)"
    [(found,)] = session._rows("asking who receives its WAL", query)
    return bool(found)


def backup_functions(session: Monitor) -> tuple[str, ...]:
    """The functions that a backup of this server calls."""
    if session.version_num >= 150000:
        return "pg_backup_start(text, boolean)", "pg_backup_stop(boolean)"
    return "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"


def forbidden(session: Monitor, functions: tuple[str, ...]) -> list[str]:
    """Which of these functions this user may not call. Raises: ServerUnavailable, ServerRefused."""
    query = "SELECT name FROM unnest(%s::text[]) AS name WHERE NOT has_function_privilege(name, 'EXECUTE')"
    return [name for (name,) in session._rows("asking what this user may do", query, (list(functions),))]


def user(session: Monitor) -> str:
    """Ask as whom the session runs. Raises: ServerUnavailable, ServerRefused."""
    [(name,)] = session._rows("asking who this is", "SELECT current_user::text")
    return str(name)


def may_switch(session: Monitor) -> bool:
    """Ask whether this user may end a segment. Raises: ServerUnavailable, ServerRefused."""
    return not forbidden(session, (_SWITCH,))


def switch(session: Monitor, timeline: int, segment_size: int) -> str:
    """End the segment that is written now and return its name; a small record is written first, or an empty segment would not end.

    Raises: ServerRefused, on a standby or without the right to; ServerUnavailable.
    """
    doing = "asking for a new segment"
    session._rows(doing, "SELECT pg_logical_emit_message(false, 'wal-e', 'check')")
    [(end,)] = session._rows(doing, "SELECT pg_switch_wal()::text")
    return segment_name(timeline, Lsn.parse(end) - 1, segment_size)
