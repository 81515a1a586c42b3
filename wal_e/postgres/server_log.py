"""The log of a server that did not do what it was started for: its last words, and whether trying again may help.

A collector of logs (``logging_collector``) outlives its server, and writes what that said last after it has ended. It keeps
the server's first stderr open meanwhile (``syslogger.c``), and with it the lock on the log that was opened here.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock

from wal_e import errors
from wal_e.errors import EXIT_LATER, DiskFull, ServerRefused, ServerUnavailable, WaleError, local_error

TAIL_BYTES = 64 * 1024
MAX_LINES = 8
POLL_S = 0.02
COLLECTED_IN_S = 10.0

_TELLING = re.compile(r"(?:FATAL|PANIC|ERROR|HINT|DETAIL|WARNING|MSG): ")
_NO_SPACE = "No space left on device"  # strerror of ENOSPC, where lc_messages is C
_FATAL = re.compile(r"(?:FATAL|PANIC): ")
_OURS = re.compile(r" error=(\w+)")  # in the records of the wal-fetch that the server ran


def open_log(path: str) -> int:
    """A descriptor for the stdout and stderr of a server, which appends to its log; locked until the last process that has it ends.

    Raises: LocalFileError, DiskFull.
    """
    try:
        log = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise local_error(error, f"writing {path}") from None
    with contextlib.suppress(OSError):  # a file system without locks: then nobody waits
        flock(log, LOCK_SH)
    return log


def explained(message: str, data_directory: str, log_path: str, hint: str) -> WaleError:
    """The error for a server that has ended without doing what it should, with its last words.

    A full disk is a DiskFull. It may succeed later, a ServerUnavailable, when the wal-fetch that the server called failed for such a
    reason; else a ServerRefused.
    """
    _wait_for_collector(log_path)
    text = _tail(data_directory, log_path)
    if _NO_SPACE in _words(text):
        return DiskFull(message, _words(text), "Free some space, or choose another file system, and run it again.")
    told = [getattr(errors, name, None) for name in _OURS.findall(text)[-1:]]
    may_pass = any(isinstance(kind, type) and issubclass(kind, WaleError) and kind.status == EXIT_LATER for kind in told)
    return (ServerUnavailable if may_pass else ServerRefused)(message, _words(text), hint)


def said_in(data_directory: str, log_path: str) -> str:
    """What a server said last, as the detail of an error."""
    return _words(_tail(data_directory, log_path))


def _wait_for_collector(log_path: str) -> None:
    """Wait until nobody has the log of an ended server open."""
    deadline = time.monotonic() + COLLECTED_IN_S
    with contextlib.suppress(OSError), open(log_path, "rb+") as stream:
        while time.monotonic() < deadline:
            try:
                flock(stream, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                time.sleep(POLL_S)
            else:
                return


def _words(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    telling = {number for number, line in enumerate(lines) if _TELLING.search(line)} or set(range(len(lines)))
    telling |= {number - 1 for number, line in enumerate(lines) if number and _FATAL.search(line)}  # which line of a file is wrong, for one
    return f"Its log ends: {' | '.join(lines[number] for number in sorted(telling)[-MAX_LINES:])}" if telling else "It wrote no log."


def _tail(data_directory: str, log_path: str) -> str:
    """The end of our log, and of the one that a server's own collector of logs writes."""
    paths = [log_path]
    try:
        with open(os.path.join(data_directory, "current_logfiles"), errors="surrogateescape") as stream:
            paths += [os.path.join(data_directory, line.split(" ", 1)[1].strip()) for line in stream if line.startswith("stderr ")]
    except (OSError, IndexError):
        pass
    return "\n".join(_end_of(path) for path in paths)


def _end_of(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""
