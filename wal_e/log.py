"""Log records in WAL-E's layout, to stderr and syslog, and nothing on stdout.

A record is a few lines: ``MSG:``, optional ``DETAIL:`` and ``HINT:``, and ``STRUCTURED:`` with
time, process id and ``key=value`` pairs; continuation lines are indented by eight spaces.
``logging`` is imported with the first record that is emitted: a segment pushed without
anything to say does not pay for it. Only our own logger is configured, never the root.
"""

from __future__ import annotations

import os

from wal_e.errors import WaleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

    from wal_e.settings import Settings

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_SYSLOG_SOCKETS = ("/dev/log", "/var/run/log", "/var/run/syslog")

_threshold = _LEVELS["info"]
_settings: Settings | None = None
_destinations: tuple[str, ...] = ("stderr",)
_root: logging.Logger | None = None
_secrets: set[str] = set()


def configure(settings: Settings, level: str) -> None:
    """Say once how to log; ``level`` counts where the user set none."""
    global _threshold, _settings, _destinations
    _destinations = settings.log_destination
    _settings = settings
    _threshold = _LEVELS[settings.log_level or level]


def hide(secret: str) -> None:
    """Never let this text appear in a record."""
    if len(secret) >= 4:
        _secrets.add(secret)


def masked(text: str) -> str:
    """The text with every known secret replaced."""
    for secret in _secrets:
        text = text.replace(secret, "********")
    return text


class Logger:
    """Where one module logs. Each method takes a message, and detail, hint and pairs."""

    def __init__(self, name: str) -> None:
        self._name = name.replace("operators", "operator", 1)

    def debug(self, message: str, detail: str = "", hint: str = "", **pairs: object) -> None:
        """Log what helps to follow the program."""
        self._emit(10, message, detail, hint, pairs)

    def info(self, message: str, detail: str = "", hint: str = "", **pairs: object) -> None:
        """Log progress and success."""
        self._emit(20, message, detail, hint, pairs)

    def warning(self, message: str, detail: str = "", hint: str = "", **pairs: object) -> None:
        """Log what a user should look at."""
        self._emit(30, message, detail, hint, pairs)

    def error(self, error: WaleError, **pairs: object) -> None:
        """Log an error of the tree, with its detail and hint."""
        self._emit(40, error.message, error.detail, error.hint, {"error": type(error).__name__, **pairs})

    def _emit(self, level: int, message: str, detail: str, hint: str, pairs: dict[str, object]) -> None:
        if level >= _threshold:
            _logger().getChild(self._name.removeprefix("wal_e.")).log(level, "%s", masked(record(message, detail, hint, pairs)))


def record(message: str, detail: str, hint: str, pairs: dict[str, object]) -> str:
    """Render the body of one record."""
    from datetime import UTC, datetime

    lines = [f"MSG: {message}"]
    if detail:
        lines.append(f"DETAIL: {detail}")
    if hint:
        lines.append(f"HINT: {hint}")
    now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
    structured = [f"time={now}-00", f"pid={os.getpid()}"] + [f"{key}={value}" for key, value in sorted(pairs.items())]
    lines.append("STRUCTURED: " + " ".join(structured))
    return "\n".join(lines).replace("\n", "\n        ")


def _logger() -> logging.Logger:
    global _root
    if _root is not None:
        return _root
    import logging
    import logging.handlers

    logging.raiseExceptions = False  # a closed stderr must not change anything
    logger = logging.getLogger("wal_e")
    logger.propagate = False
    logger.setLevel(_threshold)
    if "stderr" in _destinations:
        stream = logging.StreamHandler()
        stream.setFormatter(logging.Formatter("%(name)-12s %(levelname)-8s %(message)s"))
        logger.addHandler(stream)
    socket = next((path for path in _SYSLOG_SOCKETS if os.path.exists(path)), None)
    if "syslog" in _destinations and socket and _settings:
        facilities = logging.handlers.SysLogHandler.facility_names
        facility = facilities.get(_settings.syslog_facility.lower(), facilities["user"])
        try:
            syslog = logging.handlers.SysLogHandler(socket, facility=facility)
        except OSError:
            pass  # nobody listens; stderr, or silence, is what the user has
        else:
            syslog.setFormatter(logging.Formatter("%(name)-12s %(levelname)-8s %(message)s"))
            logger.addHandler(syslog)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    _root = logger
    return logger
