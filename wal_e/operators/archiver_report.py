"""What the archiver tells of itself: each thing once in the log, and numbers for the metrics."""

from __future__ import annotations

import time

from wal_e.errors import ConfigurationError, LocalFileError, WaleError
from wal_e.log import Logger
from wal_e.operators.backlog import Backlog, alarm
from wal_e.operators.metrics import ArchiverState, write
from wal_e.postgres.wal import wal_kind
from wal_e.progress import shown_seconds

LOG = Logger("wal_e.operators.wal_archive")

METRICS_S = 15.0
REMIND_S = 60.0


class Report:
    """The record of one run. Moments are those of one clock, in seconds."""

    def __init__(self, pgdata: str, backlog_limit: int, metrics_path: str | None) -> None:
        self._backlog_limit = backlog_limit
        self._metrics_path = metrics_path
        self._backlog = Backlog((), 0)
        self._state = ArchiverState(0, 0, 0, 0, 0.0, None, None, 0, pgdata)
        self._said: dict[str, str] = {}
        self.is_alarmed = False
        self._metrics_due = 0.0
        self._reminder_due = 0.0

    def begun(self, data_directory: str) -> None:
        """Work begins."""
        LOG.info(f"archiving {data_directory}", f"{len(self._backlog.names)} files wait.", action="wal-archive")

    def stored(self, name: str, size_bytes: int) -> None:
        """A file is stored."""
        self._said.pop(name, None)
        state = self._state
        self._state = state._replace(pushed_files=state.pushed_files + 1, pushed_bytes=state.pushed_bytes + size_bytes, last_pushed_at=time.time())

    def failed(self) -> None:
        """A file could not be stored this time."""
        self._state = self._state._replace(failed_attempts=self._state.failed_attempts + 1)

    def dropped(self) -> None:
        """A file was given up."""
        self._state = self._state._replace(dropped_files=self._state.dropped_files + 1)

    def went_away(self, error: WaleError, now: float) -> None:
        """The store does not do its part any more."""
        self._state = self._state._replace(store_away_since=time.time())
        self._reminder_due = now + REMIND_S
        LOG.warning(f"archiving stands still: {error.message}", error.detail, error.hint, error=type(error).__name__)

    def is_back(self, away_s: float) -> None:
        """The store does its part again."""
        self._state = self._state._replace(store_away_since=None)
        LOG.warning(f"archiving goes on after {shown_seconds(away_s)}", f"{len(self._backlog.names)} files waited when last counted.", action="wal-archive")

    def remind(self, error: WaleError, away_s: float, now: float) -> None:
        """Say once a minute that the store is still away."""
        if now >= self._reminder_due:
            self._reminder_due = now + REMIND_S
            LOG.warning(
                f"archiving has stood still for {shown_seconds(away_s)}: {error.message}",
                f"{len(self._backlog.names)} files wait. {error.detail}".strip(),
                error.hint,
                error=type(error).__name__,
            )

    def once(self, topic: str, error: WaleError) -> None:
        """Log an error that belongs to a topic, a file perhaps, unless it was the last one of that topic."""
        if self._said.get(topic) != error.message:
            self._said[topic] = error.message
            LOG.error(error)

    def settled(self, topic: str) -> None:
        """Nothing is wrong with this topic any more."""
        self._said.pop(topic, None)

    def counted(self, backlog: Backlog) -> None:
        """All that waits was counted: raise the alarm or end it, forget what was said of files that are gone."""
        self._backlog = backlog
        waiting = set(backlog.names)
        self._said = {topic: text for topic, text in self._said.items() if wal_kind(topic) is None or topic in waiting}
        raised = alarm(backlog, self._backlog_limit)
        if raised is not None and not self.is_alarmed:
            LOG.error(raised)
        elif raised is None and self.is_alarmed:
            LOG.warning("the backlog is within its limit again", f"{len(backlog.names)} files wait.", action="wal-archive")
        self.is_alarmed = raised is not None

    def publish(self, now: float) -> None:
        """Write the metrics, when it is time."""
        if self._metrics_path is None or now < self._metrics_due:
            return
        self._metrics_due = now + METRICS_S
        try:
            write(self._metrics_path, self._state._replace(backlog_files=len(self._backlog.names), backlog_oldest_s=self._backlog.oldest_age_s))
            self.settled("metrics")
        except WaleError as error:
            self.once("metrics", error)

    def no_cluster(self, data_directory: str) -> None:
        """There is nothing to work on yet, or any more."""
        self.once("cluster", LocalFileError(f"there is no cluster in {data_directory} yet", "It has no global/pg_control.", "The archiver waits for it."))


def other_settings() -> ConfigurationError:
    """What is said of clients that would store elsewhere, or in another form."""
    return ConfigurationError(
        "wal-push was called with other settings than wal-archive",
        "It does its work itself, more slowly.",
        "Give both the same prefix, key and credentials, and start wal-archive again. It does not read them anew.",
    )
