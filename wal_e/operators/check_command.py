"""Whether an ``archive_command`` calls this tool, as far as its text tells: what else archives, and what hides a failure."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping

from wal_e import log
from wal_e.errors import ServerRefused
from wal_e.operators.check_subject import Seen, ok

SCRIPT_BYTES = 64 * 1024
EXAMPLE = "Set archive_command = 'wal-e --envdir /etc/wal-e wal-push %p' and reload the server."

_WORDS = re.compile(r"[\s;&|()'\"]+")
_SECRET = re.compile(r"(\w*(?:SECRET|PASSWORD|TOKEN|KEY)\w*=)\S+", re.IGNORECASE)
_HIDES_FAILURE = re.compile(r"(\|\||;)\s*(/bin/|/usr/bin/)?(true|:|exit\s+0)\s*;?\s*$")


def judge(command: str, environ: Mapping[str, str]) -> Seen:
    """Judge a command. Raises: ServerRefused when it is not ours, or cannot do what is meant."""
    shown = _SECRET.sub(r"\1********", log.masked(command))
    if not command.strip():
        raise ServerRefused("archive_command is empty", "The server keeps its WAL until somebody sets it, and its disk fills.", EXAMPLE)
    script = "" if _calls_us(command) else _script_that_calls_us(command, environ)
    if not (script or _calls_us(command)):
        raise ServerRefused("archive_command does not call wal-e wal-push", f"It is: {shown}", EXAMPLE)
    if "%p" not in command.replace("%%", ""):
        raise ServerRefused("archive_command does not say which file", f"It has no %p: {shown}", EXAMPLE)
    if _HIDES_FAILURE.search(command):
        raise ServerRefused(
            "archive_command hides its failures",
            f"It always ends with 0, and the server then removes WAL that was never stored: {shown}",
            "Let the status of wal-push be the command's own.",
        )
    return ok(shown + (f" (in {script})" if script else ""))


def _calls_us(text: str) -> bool:
    words = _WORDS.split(text)
    return "wal-push" in words and any(os.path.basename(word) in ("wal-e", "wal_e") for word in words)


def _script_that_calls_us(command: str, environ: Mapping[str, str]) -> str:
    """The path of a script among the command's words, if that calls us; else ""."""
    for word in filter(None, _WORDS.split(command)):
        path: str | None = shutil.which(word, path=environ.get("PATH"))
        try:
            if path and os.path.getsize(path) <= SCRIPT_BYTES:
                with open(path, encoding="utf-8") as stream:
                    if _calls_us(stream.read()):
                        return path
        except (OSError, UnicodeDecodeError):
            continue
    return ""
