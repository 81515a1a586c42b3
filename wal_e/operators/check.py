"""``check``: everything that must be true, tested for real, in the order in which a person would ask.

A check returns what it saw or raises why it failed. One that builds on another is left out, with the reason, when that failed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from wal_e.errors import StoreUnavailable, WaleError
from wal_e.operators import check_backups, check_machine, check_server, check_store
from wal_e.operators.check_subject import FAIL, SKIP, Seen, Subject


class Check(NamedTuple):
    """One line: its name, what looks, and the checks without which looking is of no use."""

    name: str
    look: Callable[[Subject], Seen]
    needs: tuple[str, ...] = ()


MACHINE = (
    Check("version", check_machine.version),
    Check("settings", check_machine.settings),
    Check("lzop", check_machine.lzop),
    Check("gpg", check_machine.gpg, ("settings",)),
    Check("numpy", check_machine.numpy),
    Check("codec", check_machine.codec, ("lzop", "gpg")),
    Check("data directory", check_server.directory),
)

STORE = (
    Check("prefix", check_store.prefix),
    Check("store", check_store.reach, ("settings", "prefix")),
    Check("identity", check_store.identity, ("store",)),
    Check("write", check_store.write, ("store",)),
    Check("read", check_store.read, ("store",)),
    Check("list", check_store.listing, ("store",)),
    Check("create", check_store.conditional, ("write",)),
    Check("clock", check_store.clock, ("write", "read")),
    Check("parts", check_store.parts, ("write", "read")),
    Check("delete", check_store.delete, ("write",)),
)

SERVER = (
    Check("server", check_server.server, ("data directory",)),
    Check("backup functions", check_server.rights, ("server",)),
    Check("wal_level", check_server.wal_level, ("server",)),
    Check("full_page_writes", check_server.full_page_writes, ("server",)),
    Check("max_wal_senders", check_server.wal_senders, ("server",)),
    Check("archive_mode", check_server.archive_mode, ("server",)),
    Check("archive_command", check_server.archive_command, ("archive_mode",)),
    Check("archive_timeout", check_server.archive_timeout, ("archive_mode",)),
    Check("archiver", check_server.archiver, ("server",)),
    Check("backlog", check_server.waiting, ("data directory",)),
    Check("resident archiver", check_server.resident, ("data directory",)),
    Check("free space", check_server.free_space, ("data directory",)),
    Check("switch", check_server.switch, ("archive_command", "identity", "list")),
)

BACKUPS = (
    Check("last backup", check_backups.last_backup, ("list", "read")),
    Check("its WAL", check_backups.its_wal, ("last backup",)),
    Check("all WAL", check_backups.all_wal, ("last backup",)),
)

NAME_WIDTH = max(len(check.name) for check in (*MACHINE, *STORE, *SERVER, *BACKUPS))


NETWORK_HINT = "It may pass. If it does not: does the name of the host resolve, and does a firewall or a proxy stand in between?"
OTHER_HINT = "Run it again. If it stays so, the log of the store or of the server says more."


class Result(NamedTuple):
    """What came of a check: "ok", "warn", "fail" or "skip"; what was seen, and what to do. ``error`` is why it failed."""

    name: str
    state: str
    seen: str
    hint: str
    error: WaleError | None = None


def check(subject: Subject, tell: Callable[[Result], None]) -> list[Result]:
    """Do all checks; ``tell`` gets each result as soon as it is there."""
    results: list[Result] = []
    without: dict[str, str] = {}
    with subject:
        for one in (*MACHINE, *STORE, *(SERVER if subject.options.pgdata else ()), *BACKUPS):
            lacking = next((name for name in one.needs if name in without), None)
            result = Result(one.name, SKIP, f"{without[lacking]} failed", "") if lacking else _result(one, subject)
            if lacking or result.state == FAIL:
                without[one.name] = without[lacking] if lacking else one.name
            results.append(result)
            tell(result)
    return results


def failure(results: list[Result]) -> WaleError | None:
    """One error for all that failed, with the status of the worst; None when nothing did."""
    failed = [(result.name, result.error) for result in results if result.error is not None]
    if not failed:
        return None
    _, worst = max(failed, key=lambda one: one[1].status)
    looked = sum(result.state != SKIP for result in results)
    named = "; ".join(f"{name}: {error.message}" for name, error in failed)
    return type(worst)(f"{len(failed)} of {looked} checks failed", f"{named}.", "What to do stands below each of them in the output of check.")


def _result(one: Check, subject: Subject) -> Result:
    try:
        seen = one.look(subject)
    except WaleError as error:
        stop = "." if error.detail and not error.detail.endswith((".", "!", "?")) else ""
        said = f"{error.message}. {error.detail}{stop}" if error.detail else error.message
        return Result(one.name, FAIL, said, error.hint or (NETWORK_HINT if isinstance(error, StoreUnavailable) else OTHER_HINT), error)
    return Result(one.name, seen.state, seen.text, seen.hint)
