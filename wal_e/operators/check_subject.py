"""What ``check`` is asked to look at, and what its checks have found and opened so far, for those that come after."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Self

from wal_e.archive.catalog import Backup
from wal_e.errors import StoreError
from wal_e.log import Logger
from wal_e.operators import wal_status
from wal_e.operators.wal_status import Status
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.monitor import Monitor, Position
from wal_e.settings import Settings

if TYPE_CHECKING:
    from wal_e.archive.archive import Archive
    from wal_e.pipeline.process import Waits
    from wal_e.postgres.connection import ArchivingSettings

LOG = Logger(__name__)

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"


class Options(NamedTuple):
    """What the command line says; ``switches`` whether the server may be asked to end a segment, and how long to wait for it."""

    pgdata: str | None
    switches: bool
    timeout_s: float
    max_backup_age: timedelta
    thorough: bool


class Seen(NamedTuple):
    """What a check saw when nothing failed: "ok", "warn" or "skip", in words, and what to do about it. What fails is raised as an error."""

    state: str
    text: str
    hint: str = ""


def ok(text: str) -> Seen:
    """All is well."""
    return Seen(OK, text)


def warn(text: str, hint: str) -> Seen:
    """It works, and somebody should look at it."""
    return Seen(WARN, text, hint)


def skip(why: str) -> Seen:
    """There is nothing to check."""
    return Seen(SKIP, why)


class Subject:
    """What is checked. A context manager: at its end the probes are removed and the session is closed.

    ``archive``, ``session``, ``position`` and ``archiving`` are there once the checks that set them did not fail;
    ``probes`` are keys that may be in the store because of us; ``wrote`` has the times just before and after the first of
    them was stored, None if it was not.
    """

    archive: Archive
    session: Monitor
    position: Position
    archiving: ArchivingSettings

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        waits: Waits,
        open_archive: Callable[[], Archive],
        options: Options,
        now: Callable[[], datetime],
    ) -> None:
        self.settings = settings
        self.environ = environ
        self.waits = waits
        self.open_archive = open_archive
        self.options = options
        self.now = now
        self.cluster: Cluster | None = None
        self.newest: Backup | None = None
        self.probes: list[str] = []
        self.wrote: tuple[datetime, datetime] | None = None
        self.ending = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self.ending.callback(self._remove_probes)
        return self

    def __exit__(self, *exc: object) -> None:
        self.ending.close()

    @property
    def directory(self) -> Cluster:
        """The data directory, after the check that opens it."""
        assert self.cluster is not None
        return self.cluster

    @cached_property
    def status(self) -> Status:
        """What ``wal-status`` knows; its alarm is that of a failing archiver only. Raises: LocalFileError, WrongCluster."""
        return wal_status.look(self.directory, self.environ, 1 << 62, self.now().timestamp())

    def _remove_probes(self) -> None:
        if not self.probes:
            return
        try:
            self.archive.store.hasty().delete(self.probes)
        except StoreError as error:
            LOG.warning("a probe could not be removed", f"{error} It only takes space.", error.hint, action="check")
