"""Every setting, its variable, its default and its meaning. No other module names ``WALE_*``.

Settings come from the environment, from ``--envdir DIR`` and from a few global options. They
are read when asked for, so that a command complains only about what it uses. The table
below is also the source of the configuration page of the documentation.
"""

from __future__ import annotations

import os

from wal_e.errors import ConfigurationError, local_error
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Setting(NamedTuple):
    """One row of the table: attribute, variable, parser, default (as text) and documentation."""

    field: str
    variable: str
    parse: Callable[[str], object]
    default: str
    doc: str


def _text(value: str) -> str:
    return value


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < 1e9:
        raise ValueError("a number of seconds above zero")
    return seconds


def _status(value: str) -> int:
    status = int(value)
    if not 1 <= status <= 255:
        raise ValueError("an exit status from 1 to 255")
    return status


def _count(value: str) -> int:
    count = int(value)
    if count < 1:
        raise ValueError("a whole number of 1 or more")
    return count


def _level(value: str) -> str:
    if value.lower() not in ("", "debug", "info", "warning", "error"):
        raise ValueError("debug, info, warning or error")
    return value.lower()


def _destinations(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(",") if name.strip())
    if not names or not set(names) <= {"stderr", "syslog"}:
        raise ValueError("stderr, syslog, or both with a comma")
    return names


def _gpg_key(value: str) -> str:
    if value and (not value.strip() or value.strip().startswith("-")):
        raise ValueError("a key id, a fingerprint or an address that gpg knows")
    return value.strip()


TABLE = (
    Setting("gpg_key_id", "WALE_GPG_KEY_ID", _gpg_key, "",
            "Recipient key. When set, everything pushed is encrypted for it with gpg; nothing is ever stored in plain."),
    Setting("fetch_deadline_s", "WALE_FETCH_DEADLINE", _seconds, "60",
            "Seconds during which wal-fetch tries again when the store is temporarily away."),
    Setting("push_deadline_s", "WALE_PUSH_DEADLINE", _seconds, "300",
            "Seconds during which wal-push tries again when the store is temporarily away."),
    Setting("archive_timeout_s", "WALE_ARCHIVE_TIMEOUT", _seconds, "3600",
            "Seconds that backup-push waits for the WAL its backup needs to arrive in the store."),
    Setting("retries", "WALE_RETRIES", _count, "100",
            "At most so many attempts of one operation on the store, within its deadline."),
    Setting("fetch_status_temporary", "WALE_FETCH_STATUS_TEMPORARY", _status, "75",
            "Exit status of wal-fetch for a temporary failure when a standby asks; up to 125 lets the standby ask again."),
    Setting("fetch_status_failure", "WALE_FETCH_STATUS_FAILURE", _status, "200",
            "Exit status of wal-fetch for any other failure; above 125 stops the server instead of letting it promote."),
    Setting("log_destination", "WALE_LOG_DESTINATION", _destinations, "stderr,syslog",
            "Where log records go: stderr, syslog, or both with a comma."),
    Setting("syslog_facility", "WALE_SYSLOG_FACILITY", _text, "user",
            "Syslog facility: user, daemon, local0 to local7."),
    Setting("log_level", "WALE_LOG_LEVEL", _level, "",
            "debug, info, warning or error. Unset: info, and warning for wal-push, wal-fetch and wal-prefetch."),
)  # fmt: skip

PREFIXES = {
    "file_prefix": "WALE_FILE_PREFIX",
    "gs_prefix": "WALE_GS_PREFIX",
    "s3_prefix": "WALE_S3_PREFIX",
    "swift_prefix": "WALE_SWIFT_PREFIX",
    "wabs_prefix": "WALE_WABS_PREFIX",
}

PREFIX_DOC = "Store URL of one cluster, one of these five at a time; the URL's scheme decides the store."

_ROWS = {row.field: row for row in TABLE}


class Settings:
    """The settings of one run: an environment, with options of the command line on top."""

    gpg_key_id: str
    fetch_deadline_s: float
    push_deadline_s: float
    archive_timeout_s: float
    retries: int
    fetch_status_temporary: int
    fetch_status_failure: int
    log_destination: tuple[str, ...]
    syslog_facility: str
    log_level: str

    def __init__(self, environ: Mapping[str, str], options: Mapping[str, str] | None = None) -> None:
        self._environ = environ
        self._options = {field: value for field, value in (options or {}).items() if value}

    def __getattr__(self, field: str) -> object:
        row = _ROWS.get(field)
        if row is None:
            raise AttributeError(field)
        text = self._options.get(field) or self._environ.get(row.variable, "") or row.default
        try:
            value = row.parse(text)
        except ValueError as error:
            reason = str(error) if str(error)[:1].islower() and "invalid" not in str(error) and "convert" not in str(error) else "a number"
            raise ConfigurationError(
                f"{row.variable} cannot be used",
                f"Its value is {text!r}; it takes {reason}.",
                f"Correct or unset {row.variable}. {row.doc}",
            ) from None
        setattr(self, field, value)
        return value

    @property
    def prefix(self) -> str:
        """The one store URL that is configured; options win over the environment.

        Raises: ConfigurationError when there is none, or when there are two different ones.
        """
        option_name = {field: "--" + field.replace("_", "-") for field in PREFIXES}
        given = [(option_name[field], self._options[field]) for field in PREFIXES if field in self._options]
        found = given or [(name, self._environ[name]) for name in PREFIXES.values() if self._environ.get(name)]
        if not found:
            raise ConfigurationError(
                "no storage prefix is set",
                "None of " + ", ".join(PREFIXES.values()) + " is set, and no --*-prefix option was given.",
                "Set one, for example WALE_FILE_PREFIX=file://localhost/var/backups/pg, or keep it in a directory of variables and pass --envdir DIR.",
            )
        if len({url for _, url in found}) > 1:
            raise ConfigurationError(
                "two storage prefixes are set",
                "These disagree: " + ", ".join(name for name, _ in found) + ".",
                "Keep exactly one of them, so that it is certain where backups and WAL go.",
            )
        return found[0][1]

    def prefix_variable(self) -> dict[str, str]:
        """The prefix as the one variable that says the same to a child process."""
        return {PREFIXES["file_prefix"]: self.prefix}

    def unknown_variables(self) -> list[str]:
        """Names in the environment that look like ours and are not, sorted."""
        known = {row.variable for row in TABLE} | set(PREFIXES.values())
        return sorted(name for name in self._environ if name.startswith("WALE_") and name not in known)


def read_envdir(path: str) -> dict[str, str | None]:
    """Read a directory in which each file is a variable, as daemontools' envdir does.

    The value is the first line without trailing white space, NUL bytes become newlines, and
    an empty file means "unset" (``None``). Names starting with a dot are passed over.

    Raises: ConfigurationError when the directory or a file in it cannot be read.
    """
    variables: dict[str, str | None] = {}
    file = path
    try:
        for name in sorted(os.listdir(path)):
            if name.startswith(".") or "=" in name:
                continue
            file = os.path.join(path, name)
            if os.path.isdir(file):
                continue
            with open(file, "rb") as stream:
                content = stream.read()
            line = content.split(b"\n", 1)[0].rstrip().replace(b"\0", b"\n")
            variables[name] = os.fsdecode(line) if content else None
    except OSError as error:
        explained = local_error(error, f"reading {file} for --envdir")
        raise ConfigurationError(explained.message, explained.detail, "Check the path and that this user may read every file in it.") from None
    return variables
