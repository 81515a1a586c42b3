"""``wal-archive``: the resident archiver of one cluster. It pushes what is ready before the server asks, and answers ``wal-push``.

It keeps one archive open, with warm connections, watches ``archive_status``, and marks a file done only after it is stored for good. It can
be killed at any moment: all truth is in ``archive_status`` and in the store. In memory are names only: at most
:data:`wal_e.operators.archiver_schedule.MAX_NAMES` that wait and as many that were stored, 10 MB together; a listing holds all names that wait, for a moment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from threading import Condition, Lock
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.identity import read_identity
from wal_e.errors import BlobFrozen, BlobNotFound, DamageError, LocalFileError, StoreError, WalConflict, WalDropped, WaleError, WalRefused
from wal_e.operators import backlog
from wal_e.operators.archiver_desk import STORED, Desk, Reply, linger, told
from wal_e.operators.archiver_marks import FileIdentity, Marks, Stored, file_identity
from wal_e.operators.archiver_report import Report, other_settings
from wal_e.operators.archiver_schedule import MAX_NAMES, Schedule
from wal_e.operators.archiver_station import Request, Station
from wal_e.operators.archiver_watch import Watch
from wal_e.operators.wal_push import ONCE, push
from wal_e.pipeline import pool
from wal_e.postgres import archive_status
from wal_e.postgres.wal import wal_kind
from wal_e.retry import fraction

TICK_S = 0.5
SCAN_S = 10.0
SCAN_IN_TROUBLE_S = 2.0  # alarms shall not begin or end late
RENEW_S = 10.0  # how long the store is away before it is opened anew

_OF_THE_FILE = (WalRefused, WalConflict, DamageError, LocalFileError, BlobFrozen, BlobNotFound)
_ANSWERS = (WalConflict, DamageError, BlobFrozen, BlobNotFound)  # the store was asked, and did its part


class Plan(NamedTuple):
    """What to do: for which data directory, in how many lanes, under which digest of settings, and what was asked for by name."""

    data_directory: str
    lanes: int
    settings: str
    backlog_limit: int
    no_rename: bool = False
    drop_after: int | None = None
    metrics_path: str | None = None


class Archiver:
    """One run of the archiver. ``open_archive`` opens the prefix, with few retries; ``notify`` tells the service manager."""

    def __init__(self, plan: Plan, open_archive: Callable[[], Archive], notify: Callable[[str], None]) -> None:
        self._plan = plan
        self._open_archive = open_archive
        self._notify = notify
        self._pg_wal = os.path.join(plan.data_directory, "pg_wal")
        self._archive: Archive | None = None
        self._opening = Lock()
        self._turn = Condition()
        self._schedule = Schedule(fraction)
        self._stored = Stored()
        self._marks = Marks(self._pg_wal)
        self._desk = Desk()
        self._report = Report(plan.data_directory, plan.backlog_limit, plan.metrics_path)
        self._station: Station | None = None
        self._watch: Watch | None = None
        self._trouble: WaleError | None = None
        self._conflicts: dict[str, WalConflict] = {}
        self._scan_due = 0.0

    def run(self) -> None:
        """Archive until a signal ends the process.

        Raises: ConfigurationError; LockHeld or UsageError when this cluster is not for this process.
        """
        try:
            self._opened()
        except StoreError as error:
            self._report.once("store", error)  # it may be there in a moment
        try:
            self._tick()
            self._notify("READY=1")
            self._report.begun(self._plan.data_directory)
            for outcome in pool.run(self._push, self._names(), self._plan.lanes, pool.Tick(TICK_S, self._tick)):
                outcome.value()
        finally:
            self._notify("STOPPING=1")
            if self._station is not None:
                self._station.close()

    def _names(self) -> Iterator[str]:
        while True:
            with self._turn:
                while (name := self._schedule.take(time.monotonic())) is None:
                    self._turn.wait(self._schedule.pause(time.monotonic()))
            yield name

    def _wake(self) -> None:
        with self._turn:
            self._turn.notify()

    def _opened(self) -> Archive:
        """The open archive. When the store is away for long, a new one, provided that it is of a prefix that is in use."""
        with self._opening:
            outage = self._schedule.outage
            if self._archive is None:
                self._archive = self._open_archive()
            elif outage is not None and time.monotonic() - outage.since > RENEW_S:
                renewed = self._open_archive()
                if read_identity(renewed.store) is not None:
                    self._archive = renewed
            return self._archive

    def _push(self, name: str) -> None:
        """Push one file, in a lane."""
        path = os.path.join(self._pg_wal, name)
        before = file_identity(path)
        try:
            archive = self._opened()
            if self._schedule.needs_lookup(name) and not archive.has_wal(name):
                self._schedule.absent(name)
                self._wake()
            push(archive, path, ONCE)
        except WaleError as error:
            self._note_failed(name, path, error, time.monotonic())
        else:
            self._note_stored(name, before if before == file_identity(path) else None, time.monotonic())
        self._wake()
        self._settle()

    def _note_stored(self, name: str, identity: FileIdentity | None, now: float) -> None:
        self._note_answer(now)
        self._schedule.forget(name)
        self._report.stored(name, identity[3] if identity else 0)
        if identity is not None:
            self._stored.add(name, identity)
            self._marks.stored(name, now)
        self._desk.tell(name, STORED)

    def _note_failed(self, name: str, path: str, error: WaleError, now: float) -> None:
        self._report.failed()
        if not os.path.exists(path):
            self._schedule.forget(name)
            self._desk.tell(name, told("failed", error))
        elif isinstance(error, _OF_THE_FILE):
            if isinstance(error, _ANSWERS):
                self._note_answer(now)
            self._report.once(name, error)
            self._desk.tell(name, told("failed", error))
            if isinstance(error, WalConflict):
                self._note_conflict(name, error, now)
            else:
                self._schedule.refused(name, now)
        else:
            self._note_trouble(name, error, now)

    def _note_conflict(self, name: str, error: WalConflict, now: float) -> None:
        self._schedule.conflicting(name, now)
        self._conflicts = {name: self._conflicts[name] for name in self._conflicts if name in self._schedule} | {name: error}
        for later in self._desk.names():
            if self._schedule.blocker(later) == name:
                self._desk.tell(later, told("failed", error))

    def _note_trouble(self, name: str, error: WaleError, now: float) -> None:
        """Note an error that every file would meet now."""
        if self._schedule.outage is None:
            self._report.went_away(error, now)
            self._scan_due = now + SCAN_IN_TROUBLE_S
        self._trouble = error
        self._schedule.unavailable(name, now)
        if not error.transient:
            self._desk.tell(name, told("failed", error))
        for dropped in () if self._plan.drop_after is None else backlog.drop(self._pg_wal, self._plan.drop_after):
            self._report.dropped()
            self._schedule.forget(dropped)
            self._desk.tell(dropped, told("dropped", WalDropped(f"{dropped} was dropped", "The resident archiver runs with --drop-after.", "See its log.")))

    def _note_answer(self, now: float) -> None:
        away_s = self._schedule.answered(now)
        if away_s is not None:
            self._trouble = None
            self._scan_due = 0.0
            self._report.is_back(away_s)

    def _settle(self) -> None:
        """Tell the server of what is stored, unless it is asking itself."""
        if self._plan.no_rename:
            return
        for name in self._marks.due(time.monotonic(), self._desk):
            try:
                archive_status.mark_done(self._pg_wal, name)
            except WaleError as error:
                self._report.once("mark", error)

    def _tick(self) -> None:
        """What is done twice a second, beside the lanes. Raises: LockHeld, UsageError."""
        now = time.monotonic()
        if self._takes_place() or self._scan_due <= now:
            self._scan_due = now + (SCAN_IN_TROUBLE_S if self._schedule.outage is not None or self._report.is_alarmed else SCAN_S)
            self._scan()
        self._settle()
        if self._schedule.outage is not None and self._trouble is not None:
            self._report.remind(self._trouble, now - self._schedule.outage.since, now)
        self._report.publish(now)

    def _has_cluster(self) -> bool:
        """Whether there is a whole cluster: a restore writes pg_control last, and nothing may be put into its way."""
        return os.path.exists(os.path.join(self._plan.data_directory, "global", "pg_control"))

    def _takes_place(self) -> bool:
        """Take our place beside the cluster, where it is not taken; tell whether there is another directory to look at. Raises: LockHeld, UsageError."""
        if self._station is not None and not self._station.is_intact():
            self._station.close()
            self._station = None
            return False  # whoever removed it may be at work on the rest: not before the next time
        if not self._has_cluster():
            return False
        try:
            if self._station is None:
                self._station = Station(self._pg_wal, self._answer)
            if self._watch is None:
                self._watch = Watch(os.path.join(self._pg_wal, "archive_status"), self._offer)
            is_new = self._watch.arm()
        except LocalFileError as error:
            self._report.once("place", error)
        except OSError as error:
            self._report.once("place", LocalFileError("archive_status cannot be watched", f"The system says: {error.strerror}.", "It is listed instead."))
        else:
            self._report.settled("place")
            return is_new
        return False

    def _scan(self) -> None:
        """Look at everything that waits."""
        if not self._has_cluster():
            self._report.no_cluster(self._plan.data_directory)
            return
        try:
            found = backlog.measure(self._pg_wal)
        except WaleError as error:
            self._report.once("cluster", error)
            return
        self._report.settled("cluster")
        window = found.names[:MAX_NAMES]
        self._schedule.retain(set(window))
        self._marks.restart(window)
        self._offer(window)
        names = tuple(name for name in found.names if name not in self._stored)
        self._report.counted(backlog.Backlog(names, found.oldest_age_s if names else 0.0))

    def _offer(self, names: Iterable[str]) -> None:
        """Take note of files that are ready."""
        now = time.monotonic()
        for name in filter(wal_kind, names):
            self._marks.waits(name)
            if self._stored.holds(name, os.path.join(self._pg_wal, name)):
                self._marks.stored(name, now)
            else:
                self._schedule.offer([name])
        self._wake()

    def _answer(self, request: Request) -> Generator[Reply]:
        """Reply to a client, at last when the file is stored for good or cannot be."""
        path = os.path.join(self._pg_wal, request.name)
        found = file_identity(path) if wal_kind(request.name) else None
        if request.settings != self._plan.settings:
            self._report.once("settings", other_settings())
            yield ("other", "It was started with other settings: another prefix, key, endpoint or credential.")
        elif found is None or found[:2] != (request.device, request.inode):
            yield ("other", f"It works on {self._pg_wal}, which is not where this file is.")
        elif self._stored.holds(request.name, path):
            yield self._stored_reply(request.name)
        elif (blocker := self._schedule.blocker(request.name)) is not None:
            yield told("failed", self._conflicts[blocker])
        else:
            try:
                for reply in self._desk.wait(request.name, request.deadline_s, lambda: self._ask(request.name), lambda: self._trouble):
                    yield self._stored_reply(request.name) if reply == STORED else reply
            finally:
                if request.name not in self._desk:
                    self._schedule.leave(request.name)

    def _stored_reply(self, name: str) -> Reply:
        self._marks.asked(name, time.monotonic())
        linger(self._is_in_a_burst)
        return STORED

    def _is_in_a_burst(self) -> bool:
        return not self._plan.no_rename and self._schedule.outage is None and self._schedule.is_busy()

    def _ask(self, name: str) -> None:
        self._schedule.want(name)
        self._wake()
