"""What ``restore`` says: the plan before, the result after, and a line that shows how far it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence

from wal_e.archive.restore_plan import END, IMMEDIATE, LSN, NAME, TIME, XID, shown_moment
from wal_e.cli.render import server_options
from wal_e.operators.delta_plan import DeltaPlan
from wal_e.operators.restore import OFF, PRESERVE, Plan, Restored, Room
from wal_e.operators.restore_config import kept_configuration
from wal_e.postgres.recovery import STANDBY
from wal_e.postgres.recovery_files import CONF
from wal_e.progress import Progress, shown_bytes

_ARCHIVING = {
    PRESERVE: (
        "When the restored server is promoted and its configuration archives, it archives to the same prefix, as its new timeline. That is right for",
        "a server that replaces the lost one, and wrong for a copy beside a living one: restore a copy with --archive-mode off.",
    ),
    OFF: (
        "The restored server does not archive: archive_mode = off is written to postgresql.auto.conf.",
        "Should it be kept after all: ALTER SYSTEM RESET archive_mode, and restart it.",
    ),
}


def plan_text(plan: Plan, others: str, credentials: str, config_to: str | None = None) -> str:
    """The plan as lines: what will be fetched, what the server will read, what it will reach.

    ``others`` are lines of settings that are not about recovery, ``credentials`` is a hint about those of the store, or "";
    ``config_to`` is where the kept configuration goes, if it is wanted.
    """
    sentinel, aim = plan.backup.readable(), plan.aim
    facts = sentinel.facts
    stored = f", {shown_bytes(facts.stored_bytes)} to fetch" if facts else ""
    lines = [
        ("goal", f"{aim.goal}, on timeline {aim.course.timeline}"),
        ("backup", f"{plan.backup.name}, finished {shown_moment(plan.backup.finished)}, PostgreSQL {plan.major}"),
        ("size", f"{shown_bytes(sentinel.expanded_bytes)}{stored}"),
        ("WAL", _wal(aim.way.segments, shown_bytes(plan.segment_size))),
        ("reaches", _reaches(plan)),
    ]
    if plan.tail:
        lines.append(("also", f"the beginning of {plan.tail}, which wal-receive stored, goes into pg_wal"))
    lines += [("settings", f"{plan.advice.settings_file}{f', and an empty {plan.advice.signal_file}' if plan.advice.signal_file else ''}:")]
    lines += [("", f"  {line}") for line in (plan.advice.settings + others).splitlines()]
    if credentials:
        lines.append(("", credentials))
    if kept := kept_configuration(plan.backup):
        where = f"goes to {config_to}" if config_to else "kept in the backup; --config-to DIR brings it"
        lines.append(("config", f"{_kept_files(kept.files)} ({where})"))
    lines += [("archiving" if not number else "", line) for number, line in enumerate(_ARCHIVING[plan.wish.archive_mode])]
    return table([*lines, *concern_lines(plan)])


def _wal(segments: int, size: str) -> str:
    if segments < 2:
        return f"1 segment of {size}, which is stored" if segments else "none is needed"
    return f"{segments} segments of {size}, all of them stored"


def concern_lines(plan: Plan) -> list[tuple[str, str]]:
    """What somebody should know, if there is anything."""
    return [("" if number else "ATTENTION", sentence) for number, sentence in enumerate(plan.concerns)]


def _reaches(plan: Plan) -> str:
    aim = plan.aim
    if plan.wish.role == STANDBY:
        return "follows the archive as a standby until it is promoted"
    then = {"pause": "and pauses there", "promote": "and is promoted there", "shutdown": "and shuts down there"}[plan.wish.action]
    at = f"{aim.lsn}" + (f" of {shown_moment(aim.time)}" if aim.time else "")
    if aim.goal.kind == END:
        last = f"; the last commit is at {at}" if aim.lsn else ""
        return f"the end of timeline {aim.course.timeline}, where the server is promoted{last}"
    side = "after" if aim.goal.inclusive else "before"
    what = {
        IMMEDIATE: f"{aim.lsn}, the end of the backup",
        TIME: f"the last commit before the one at {at}",
        LSN: f"{side} the first record from {at} on" if aim.lsn else "",
        XID: f"{side} the end of the transaction at {at}",
        NAME: f"the restore point at {at}",
    }[aim.goal.kind]
    return f"{what}, {then}"


def room_text(room: Room) -> str:
    """The place as lines: space, tablespaces, what will be absent."""
    lines = [("into", room.path)]
    lines += [("space", f"{shown_bytes(space.needed_bytes)} needed, {shown_bytes(space.free_bytes)} free at {space.path}") for space in room.spaces]
    lines += [("tablespace", f"{link} to {location}") for link, location in room.locations.items()]
    lines += [("absent", line) for line in absent_lines(room.absent, room.path)]
    return table(lines)


def difference_text(difference: DeltaPlan) -> str:
    """The place as lines, where only a part of the backup is fetched."""
    lines = [("into", difference.target.path)]
    lines += [("tablespace", f"{link} to {location}") for link, location in difference.target.locations.items()]
    lines += [("files" if not number else "", sentence) for number, sentence in enumerate(difference.sentences())]
    return table(lines)


def _kept_files(paths: Sequence[str]) -> str:
    """Files by the directory that they have in common."""
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    return f"from {common}: {', '.join(os.path.relpath(path, common) for path in paths)}"


def absent_lines(absent: tuple[str, ...], data_directory: str) -> list[str]:
    """What to do about configuration files that the data directory does not have."""
    if not absent:
        return []
    own = server_options({"data_directory": data_directory})  # else it starts on the directory that the configuration names
    how = "put them there"
    if CONF in absent:
        how = (
            f"where pg_ctlcluster knows this directory, it finds them; else start the server with -c config_file=FILE -c hba_file=FILE -c ident_file=FILE {own}"
        )
    return [f"{', '.join(absent)}: the data directory does not have {'it' if len(absent) == 1 else 'them'}, as on Debian, where they are in /etc; {how}"]


def restored_text(restored: Restored, plan: Plan, settings: Mapping[str, str]) -> str:
    """The result as lines; ``settings`` are those that make a server use the configuration that was brought, none where there is none."""
    written = restored.written
    lines = [("restored", f"{plan.backup.name} into {restored.path}")]
    if written.removed:
        lines.append(("taken out", f"left from before, of {plan.advice.settings_file}: {', '.join(written.removed)}"))
    if written.emptied:
        lines.append(("overruled", f"targets in postgresql.conf: {', '.join(written.emptied)}"))
    if written.files:
        lines.append(("removed", ", ".join(written.files)))
    if settings:
        lines.append(("config", f"to use what was brought, start the server with {server_options(settings)}"))
    else:
        lines += [("absent", line) for line in absent_lines(restored.absent, restored.path)]
    return table([*lines, *concern_lines(plan)])


def table(lines: list[tuple[str, str]]) -> str:
    """Labels to the left, texts beside them."""
    return "".join(f"{label:<11}{text}".rstrip() + "\n" for label, text in lines)


@contextlib.contextmanager
def bar() -> Iterator[Bar | None]:
    """A line on a terminal that is written over and over; None where stderr is none."""
    try:
        terminal = sys.stderr.isatty()
    except (AttributeError, ValueError):
        terminal = False
    if not terminal:
        yield None
        return
    line = Bar()
    try:
        yield line
    finally:
        line.clear()


class Bar:
    """Shows progress when it is called."""

    def __call__(self, progress: Progress) -> None:
        """Write the line anew."""
        width = shutil.get_terminal_size().columns - 1
        share = min(progress.done_bytes / progress.total_bytes, 1.0) if progress.total_bytes else 1.0
        text = progress.line()
        room = max(width - len(text) - 3, 0)
        shown = f"[{'#' * int(share * room):<{room}}] {text}" if room >= 5 else text
        self._write(f"\r\x1b[K{shown[:width]}")

    def clear(self) -> None:
        """Leave an empty line."""
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)
            sys.stderr.flush()
