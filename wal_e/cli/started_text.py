"""What ``restore --start`` says of the server; apart, since what watches a server is imported only where there is one to watch."""

from __future__ import annotations

from wal_e.archive.restore_plan import shown_moment
from wal_e.cli.restore_text import table
from wal_e.operators.restore_start import Started
from wal_e.postgres.instance import PAUSED, PRIMARY, RECOVERING, SHUT_DOWN
from wal_e.postgres.recovery import RecoveryAdvice


def started_text(started: Started, advice: RecoveryAdvice) -> str:
    """What the started server reached, and how to go on; ``advice`` is what it recovers by."""
    reached = started.reached
    role = advice.signal_file or advice.settings_file
    words = {
        PRIMARY: "recovery has ended, the server is in service",
        PAUSED: "recovery is paused at the target; SELECT pg_wal_replay_resume() ends it there and promotes",
        SHUT_DOWN: f"the server was shut down at the target; with another recovery_target_action, and {role} left in place, it goes on from there",
        RECOVERING: "the data are consistent, recovery goes on",
    }
    lines = [("state", words[reached.state]), ("timeline", str(reached.timeline))]
    if reached.lsn:
        lines.append(("reached", str(reached.lsn) + (f", last commit of {shown_moment(reached.last_commit)}" if reached.last_commit else "")))
    lines.append(("log", started.log_path))
    return table(lines)
