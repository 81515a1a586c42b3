"""How a cluster is told to recover, and how it was told.

Up to PostgreSQL 11 ``recovery.conf`` holds the settings, and ``standby_mode`` in it makes a
standby. From 12 on the settings are ordinary ones, an empty ``recovery.signal`` or
``standby.signal`` starts the recovery, and a leftover ``recovery.conf`` stops the server.

The role matters because a recovering server takes a ``restore_command`` that fails with a
status up to 125 for the end of the WAL and promotes, while a standby just asks again.
"""

from __future__ import annotations

import os

from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

STANDBY = "standby"
RECOVERY = "recovery"

STANDBY_SIGNAL = "standby.signal"
RECOVERY_SIGNAL = "recovery.signal"
RECOVERY_CONF = "recovery.conf"  # before 12
AUTO_CONF = "postgresql.auto.conf"  # read last of all, and always in the data directory

_TRUE = ("on", "true", "tru", "tr", "t", "yes", "ye", "y", "1")  # parse_bool() of the server
_TARGET_TIME = "# recovery_target_time = '2001-02-03 04:05:06+00'  # optional: stop there; with the time zone's offset"
_TARGET_TIMELINE = "# recovery_target_timeline = 'latest'  # optional: follow later promotions; the default is the backup's own timeline"


class RecoveryAdvice(NamedTuple):
    """What to write into a restored data directory; ``signal_file`` is empty when the version has none."""

    signal_file: str
    settings_file: str
    settings: str


def requested_role(pg_wal_parent: str) -> str | None:
    """Tell what the server of this data directory was asked to be.

    Returns "standby", "recovery", or None when it was asked for neither or that cannot be read.
    """
    if os.path.exists(os.path.join(pg_wal_parent, STANDBY_SIGNAL)):
        return STANDBY
    role = RECOVERY if os.path.exists(os.path.join(pg_wal_parent, RECOVERY_SIGNAL)) else None
    try:
        with open(os.path.join(pg_wal_parent, RECOVERY_CONF), "rb") as file:
            lines = file.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return role
    modes = [value for name, value in map(_setting, lines) if name == "standby_mode"]
    return STANDBY if modes and modes[-1] in _TRUE else RECOVERY


def recovery_settings(major: int, restore_command: str, targets: Mapping[str, str] | None = None, role: str = RECOVERY) -> RecoveryAdvice:
    """Say which files make a server of this major version recover with ``restore_command``, or a standby that follows the archive with it.

    ``targets`` are settings by name; without any, recovery goes to the end of the archive.
    ``settings`` is whole lines, to be added to ``settings_file``.
    """
    lines = setting_line("restore_command", restore_command)
    if targets is None:
        targets = {"recovery_target_timeline": "latest"} if major >= 12 else {}
    lines += "".join(setting_line(name, value) for name, value in targets.items())
    if major < 12:
        return RecoveryAdvice("", RECOVERY_CONF, ("standby_mode = 'on'\n" if role == STANDBY else "") + lines)
    return RecoveryAdvice(STANDBY_SIGNAL if role == STANDBY else RECOVERY_SIGNAL, AUTO_CONF, lines)


def setting_line(name: str, value: str) -> str:
    """One line of a configuration file."""
    return f"{name} = {_quoted(value)}\n"


def setting_name(line: str) -> str:
    """The name of the setting on one line of a configuration file, in lower case; empty for other lines."""
    return _setting(line)[0]


def render_advice(advice: RecoveryAdvice, target_directory: str) -> str:
    """Write the advice as lines to paste into a shell, each ended by a newline."""
    import shlex

    def shell_path(name: str) -> str:
        return shlex.quote(os.path.join(target_directory, name))

    optional = [_TARGET_TIME] if advice.signal_file else [_TARGET_TIMELINE, _TARGET_TIME]
    redirection = ">>" if advice.signal_file else ">"  # a standby's recovery.conf came with its backup; its lines must not count
    lines = [f"cat {redirection} {shell_path(advice.settings_file)} <<'EOF'", *advice.settings.splitlines(), *optional, "EOF"]
    if advice.signal_file:
        lines.append(f"touch {shell_path(advice.signal_file)}")
    return "\n".join(lines) + "\n"


def _setting(line: str) -> tuple[str, str]:
    """Split one line of a configuration file into name and value, both in lower case; empty for others."""
    line = line.strip().lower()
    length = 0
    while length < len(line) and (line[length].isalnum() or line[length] == "_"):
        length += 1
    value = line[length:].lstrip().removeprefix("=").lstrip()
    if value.startswith("'"):
        return line[:length], value[1:].partition("'")[0]
    words = value.partition("#")[0].split()
    return line[:length], words[0] if words else ""


def _quoted(value: str) -> str:
    """Quote a value for a configuration file, where a backslash begins an escape inside quotes."""
    return "'" + value.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"
