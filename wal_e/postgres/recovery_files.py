"""The files that make a restored data directory recover: written, and cleaned of what an earlier recovery or another role left in them.

From 12 on ``postgresql.auto.conf`` is read after ``postgresql.conf``, so what stands there wins, setting by
setting. That a backup holds targets of an earlier recovery is common, and two different targets are one too
many for the server: those in ``postgresql.auto.conf`` go, those in ``postgresql.conf`` are emptied by a line after them.
"""

from __future__ import annotations

import contextlib
import os
import stat

from wal_e.errors import local_error
from wal_e.postgres.recovery import AUTO_CONF, RECOVERY_CONF, RECOVERY_SIGNAL, STANDBY, STANDBY_SIGNAL, RecoveryAdvice, setting_line, setting_name
from wal_e.record import NamedTuple

CONF = "postgresql.conf"
CONFIGURATION = (CONF, "pg_hba.conf", "pg_ident.conf")

_TARGETS = ("recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid")
_OF_STANDBYS = ("primary_conninfo", "primary_slot_name")
_LEFT = (*_OF_STANDBYS, "restore_command", "archive_cleanup_command", "recovery_end_command", "recovery_min_apply_delay", "promote_trigger_file")
_LEFT_BEFORE_12 = ("standby_mode", "trigger_file")


class Written(NamedTuple):
    """What was done: the names of settings that were taken out, of those that were emptied, and of files that were removed."""

    removed: tuple[str, ...]
    emptied: tuple[str, ...]
    files: tuple[str, ...]


def write_recovery(directory: str, advice: RecoveryAdvice, role: str, others: str = "") -> Written:
    """Make a data directory that is not started yet recover as advised; ``others`` are lines for ``postgresql.auto.conf`` besides.

    What was in ``postgresql.auto.conf`` stays, but for what concerns recovery; a standby keeps where its primary is.

    Raises: LocalFileError, DiskFull.
    """
    doing = f"writing {os.path.join(directory, advice.settings_file)}"
    try:
        kept, removed = _without_recovery(_read(directory, advice.settings_file), _OF_STANDBYS if role == STANDBY else ())
        if not advice.signal_file:
            kept = "".join(line for line in kept.splitlines(keepends=True) if setting_name(line) in _OF_STANDBYS)
        emptied = _targets_in(_read(directory, CONF), advice.settings) if advice.signal_file else ()
        lines = advice.settings + "".join(setting_line(name, "") for name in emptied)
        files = tuple(name for name in (RECOVERY_SIGNAL, STANDBY_SIGNAL, RECOVERY_CONF) if name != advice.settings_file and _remove(directory, name))
        _write(directory, advice.settings_file, _ended(kept) + lines)
        if others:
            _write(directory, AUTO_CONF, _ended(_read(directory, AUTO_CONF)) + others)
        if advice.signal_file:
            _write(directory, advice.signal_file, "")
    except OSError as error:
        raise local_error(error, doing) from None
    return Written(removed, emptied, files)


def absent_configuration(directory: str) -> tuple[str, ...]:
    """Which of the three files of the configuration a data directory lacks, or has as a link to nothing."""
    return tuple(name for name in CONFIGURATION if not os.path.exists(os.path.join(directory, name)))


def _without_recovery(text: str, keep: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Take the settings of recovery out of a configuration file; return what is left, and their names."""
    kept: list[str] = []
    removed: dict[str, None] = {}
    for line in text.splitlines(keepends=True):
        name = setting_name(line)
        if name not in keep and (name in _LEFT or name in _LEFT_BEFORE_12 or name.startswith("recovery_target")):
            removed[name] = None
        else:
            kept.append(line)
    return "".join(kept), tuple(removed)


def _targets_in(text: str, settings: str) -> tuple[str, ...]:
    """Targets that a configuration file names and our settings do not overrule."""
    ours = {setting_name(line) for line in settings.splitlines()}
    found = dict.fromkeys(setting_name(line) for line in text.splitlines())
    return tuple(name for name in found if name in _TARGETS and name not in ours)


def _ended(text: str) -> str:
    """Text that more lines can follow."""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _read(directory: str, name: str) -> str:
    try:
        with open(os.path.join(directory, name), encoding="utf-8", errors="surrogateescape", newline="") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def _remove(directory: str, name: str) -> bool:
    try:
        os.unlink(os.path.join(directory, name))
    except FileNotFoundError:
        return False
    return True


def _write(directory: str, name: str, text: str) -> None:
    """Make a file appear whole, with the owner of the directory."""
    path = os.path.join(directory, name)
    temporary = f"{path}.wal-e.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            owner = os.stat(directory)
            os.fchmod(fd, 0o640 if owner.st_mode & stat.S_IRGRP else 0o600)
            if os.geteuid() == 0:
                os.fchown(fd, owner.st_uid, owner.st_gid)
            stream.write(text)
            stream.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
