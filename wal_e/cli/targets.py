"""The options that say to which point a cluster is restored: of ``restore`` and of ``drill``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from wal_e.archive.restore_plan import CURRENT, IMMEDIATE, LATEST, Goal, goal_at_lsn, goal_at_name, goal_at_time, goal_at_xid
from wal_e.errors import UsageError

_Command = TypeVar("_Command", bound=Callable[..., Any])

_MAX_DIGITS = 10  # of 2**32

_OPTIONS = (
    click.option("--target-time", metavar="TIME", help="Stop at a time: before the first commit later than it."),
    click.option("--target-lsn", metavar="LSN", help="Stop at a position in the WAL."),
    click.option("--target-xid", metavar="XID", help="Stop at the end of a transaction."),
    click.option("--target-name", metavar="NAME", help="Stop at a restore point, made by pg_create_restore_point()."),
    click.option("--target-immediate", is_flag=True, help="Stop as soon as the data are consistent: at the end of the backup."),
    click.option("--target-timeline", metavar="TL", default=LATEST, show_default=True, help="Which timeline to follow: latest, current (the backup's) or N."),
    click.option("--inclusive/--exclusive", default=True, show_default=True, help="Whether what has exactly the target's time, LSN or XID is part of it."),
    click.option("--backup", metavar="NAME", help="Begin with this backup, instead of the newest that ends before the target."),
)


def target_options(command: _Command) -> _Command:
    """Add the options to a command, which passes them to :func:`goal_of` and :func:`timeline_of`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def goal_of(given: dict[str, Any]) -> Goal:
    """Take the target's options out of what was given, and return the point they name. Raises: UsageError."""
    inclusive = given.pop("inclusive")
    values = {option: given.pop(f"target_{option}") for option in ("time", "lsn", "xid", "name", "immediate")}
    named = {option: value for option, value in values.items() if value is not None and value is not False}  # an empty one is given, too
    if len(named) > 1:
        options = " and ".join(f"--target-{option}" for option in named)
        raise UsageError(f"{options} exclude each other", "Recovery stops at one point.", "Use one of them.")
    if not inclusive and not {"time", "lsn", "xid"} & set(named):
        raise UsageError("--exclusive goes with --target-time, --target-lsn or --target-xid")
    for option, value in named.items():
        if option == "immediate":
            return Goal(IMMEDIATE)
        if option == "name":
            return goal_at_name(value)
        return {"time": goal_at_time, "lsn": goal_at_lsn, "xid": goal_at_xid}[option](value, inclusive)
    return Goal()


def timeline_of(given: dict[str, Any]) -> str:
    """Take the timeline out of what was given: "latest", "current" or a number. Raises: UsageError."""
    text = str(given.pop("target_timeline"))
    if text not in (LATEST, CURRENT) and not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and 0 < int(text) < 2**32):
        raise UsageError(f"{text!r} is not a timeline", "It is a decimal number, latest or current.", "See wal-e wal-show for those in the archive.")
    return text
