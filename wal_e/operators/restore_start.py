"""``restore --start``: the server on a directory that was just restored, started to stay, and watched until it is where it should be."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from typing import NamedTuple

from wal_e.log import Logger
from wal_e.postgres.instance import CONSISTENT, ENDED, FREE, Launch, Reached, start
from wal_e.postgres.programs import Programs
from wal_e.postgres.recovery import STANDBY

LOG = Logger(__name__)

_HINT = "All is restored, and need not be restored again: put right what the log says, and start the server on that directory."


class Started(NamedTuple):
    """Where the server is, and its log until it writes one of its own."""

    reached: Reached
    log_path: str


def start_restored(data_directory: str, programs: Programs, role: str, settings: Mapping[str, str], environ: Mapping[str, str]) -> Started:
    """Start the server, with these settings on its command line, wait for the end of its recovery, or for consistent data on a standby, and let it go on.

    Raises: ServerRefused, ServerUnavailable, both with the end of the server's log; LocalFileError.
    """
    log_path = _log_path(data_directory)
    LOG.info(f"starting the server on {data_directory}", f"It writes to {log_path} until its configuration says something else.", action="restore")
    with start(Launch(data_directory, programs, log_path, settings, environ, FREE, _HINT)) as server:
        reached = server.wait(CONSISTENT if role == STANDBY else ENDED)
        server.leave()
    return Started(reached, log_path)


def _log_path(data_directory: str) -> str:
    """Beside the data directory: in it, the log would go along into backups."""
    parent, name = os.path.split(data_directory)
    place = parent if os.access(parent, os.W_OK) else tempfile.gettempdir()
    return os.path.join(place, f"{name}.restore.log")
