"""The way from the spool into the store: finished segments for good, the unfinished one again and again.

``SEGMENT.streaming`` bounds what is lost with the receiver's host; it is replaced until SEGMENT is there,
then deleted. A segment leaves the spool only after the store has it.
"""

from __future__ import annotations

import os
import time

from wal_e.archive import layout
from wal_e.errors import BacklogAlarm, WaleError, local_error
from wal_e.log import Logger
from wal_e.operators.inventory import wal_files
from wal_e.operators.outage import LINE_EVERY_S, Outage, may_pass
from wal_e.operators.wal_push import ONCE, push
from wal_e.pipeline import pool
from wal_e.postgres.pg_receivewal import PARTIAL
from wal_e.postgres.wal import WAL_HEADER_SIZE, segment_start
from wal_e.postgres.wal_file import inspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.archive.archive import Archive
    from wal_e.operators.spool import Spool
    from wal_e.postgres.replication import Upstream

LOG = Logger(__name__)

LOOK_EVERY_S = 0.2
LONGEST_PAUSE_S = 30.0
SETTLED_S = 0.1  # a file's time of modification advances in steps of up to 10 ms: two writes within one look like one


class Pusher:
    """Pushes what is in the spool; ``limit`` is how many finished segments may wait there without an alarm."""

    def __init__(self, archive: Archive, spool: Spool, lanes: int, limit: int) -> None:
        self._upstream: Upstream | None = None
        self._archive = archive
        self._spool = spool
        self._lanes = lanes
        self._limit = limit
        self._outage = Outage("the store", LONGEST_PAUSE_S, told_after=1)
        self._next_alarm = 0.0
        self._stored: set[str] = set()  # files in the spool that the store has
        self._streaming: set[str] = set()  # segments whose unfinished form the store may have
        self._doomed: set[str] = set()  # those of them that it has whole
        self._put: dict[str, int] = {}  # when unfinished segments that were put had been modified, in ns
        self._swept = False

    def introduce(self, upstream: Upstream) -> None:
        """Learn whose WAL this is."""
        self._upstream = upstream

    def run(self) -> None:
        """Push what gets finished, for ever. Raises: what cannot pass, WrongCluster and WalConflict among it."""
        while True:
            pause_s = LOOK_EVERY_S
            try:
                self._sweep()
                if self._push_round(1 if self._outage.lasts else self._lanes):
                    self._outage.over()
            except WaleError as error:
                pause_s = self._failed(error)
            self._alarm()
            time.sleep(pause_s)

    def run_partials(self, every_s: float) -> None:
        """Put what is unfinished every so many seconds, if it has grown. Raises: what cannot pass."""
        while True:
            time.sleep(every_s)
            try:
                if self._put_partials():
                    self._outage.over()
            except WaleError as error:
                self._failed(error)

    def finish(self) -> None:
        """Put and push once more what is there, nothing else running; what does not get through stays for the next start."""
        try:
            self._put_partials()
            self._push_round(self._lanes)
        except WaleError as error:
            LOG.warning(
                "not all that was received is stored",
                f"{error} {len(self.waiting())} finished segments, and what is unfinished, stay in {self._spool.directory}.",
                "The next wal-receive there goes on with it.",
            )

    @property
    def is_kept_waiting(self) -> bool:
        """Whether the store is away."""
        return self._outage.lasts

    def waiting(self) -> list[str]:
        """Finished segments that the store does not have yet, oldest first. Raises: LocalFileError."""
        return [name for name in self._spool.finished() if name not in self._stored]

    def _failed(self, error: WaleError) -> float:
        if not may_pass(error):
            raise error
        waiting = self.waiting()
        consequence = f"{len(waiting)} finished segments wait in {self._spool.directory}, from {waiting[0]} on; nothing is lost." if waiting else ""
        return self._outage.failed(error, consequence)

    def _alarm(self) -> None:
        waiting, now = self.waiting(), time.monotonic()
        if len(waiting) > self._limit and now >= self._next_alarm:
            self._next_alarm = now + LINE_EVERY_S
            LOG.error(
                BacklogAlarm(
                    f"{len(waiting)} received segments wait to be stored",
                    f"The limit is {self._limit}. The oldest is {waiting[0]}, in {self._spool.directory}.",
                    "See above for what is wrong with the store, and watch the free space there: receiving stops when it is used up.",
                ),
                action="wal-receive",
            )

    def _push_round(self, lanes: int) -> bool:
        """Push all that waits, histories first; tell whether there was anything. Raises: the first error."""
        worked = self._delete_doomed() | self._push_histories()
        waiting = self.waiting()
        for position, name in enumerate(waiting):
            if not self._archive.has_wal(name):
                self._push_at_once(waiting[position:], lanes)
                break
            # Of a server that was copied, the store may have other segments: none goes up beside one that is still to be compared.
            push(self._archive, self._spool.path(name), ONCE)
            self._settle(name)
        return self._delete_doomed() or worked or bool(waiting)

    def _push_at_once(self, names: list[str], lanes: int) -> None:
        """Push side by side. After a failure that may pass, what has begun goes on, and nothing else begins; after any other, all is broken off."""
        failures: list[WaleError] = []

        def push_one(name: str) -> None:
            try:
                push(self._archive, self._spool.path(name), ONCE)
            except WaleError as error:
                failures.append(error)
                raise

        for outcome in pool.run(push_one, (name for name in names if not failures), lanes):
            if outcome.error is None:
                self._settle(outcome.item)
            elif not (isinstance(outcome.error, WaleError) and may_pass(outcome.error)):
                raise outcome.error
        if failures:
            raise failures[0]

    def _push_histories(self) -> bool:
        waiting = [name for name in self._spool.histories() if name not in self._stored]
        identifier = self._upstream.system_identifier if self._upstream else self._spool.system_identifier()
        if not waiting or identifier is None:
            return False
        self._archive.claim(identifier)  # a history does not say itself whose it is
        for name in waiting:
            push(self._archive, self._spool.path(name), ONCE)
            self._stored.add(name)
        return True

    def _settle(self, name: str) -> None:
        """Forget what a stored segment makes superfluous: unfinished forms of it, here and in the store, and older segments here."""
        self._stored.add(name)
        self._doomed |= {segment for segment in self._streaming if _is_superseded(segment, name)}
        for segment in self._spool.partials():
            if _is_superseded(segment, name):
                self._spool.remove(segment + PARTIAL)
        for old in self._spool.finished()[:-1]:
            if old in self._stored:
                self._spool.remove(old)
                self._stored.discard(old)

    def _put_partials(self) -> bool:
        """Put unfinished segments that were written to since; tell whether there were any. Raises: WrongCluster, LocalFileError, what the store raises."""
        partials = self._spool.partials()
        self._put = {segment: modified for segment, modified in self._put.items() if segment in partials}
        put = [segment for segment in partials if self._put_partial(segment)]
        return bool(put)

    def _put_partial(self, segment: str) -> bool:
        path = self._spool.path(segment + PARTIAL)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False  # it was finished
        except OSError as error:
            raise local_error(error, f"reading {path}") from None
        try:
            modified = os.fstat(fd).st_mtime_ns
            if self._put.get(segment) == modified or not any(os.pread(fd, WAL_HEADER_SIZE, 0)):
                return False
            identifier = inspect(fd, segment + PARTIAL, path)
            assert identifier is not None
            self._archive.claim(identifier)
            self._streaming.add(segment)
            # It may grow meanwhile: a reader finds WAL up to some point, which is all that recovery needs.
            self._archive.store.put(layout.streaming_key(segment, self._archive.pipeline.suffix), self._archive.pipeline.encode_file(fd))
        finally:
            os.close(fd)
        if time.time_ns() - modified > SETTLED_S * 1e9:
            self._put[segment] = modified
        if not os.path.exists(path) and (segment in self._stored or not os.path.exists(self._spool.path(segment))):
            self._doomed.add(segment)  # it was stored whole while we put it
        LOG.debug(f"put the unfinished {segment}", seg=segment, action="wal-receive")
        return True

    def _delete_doomed(self) -> bool:
        """Delete from the store the unfinished forms of what it has whole; tell whether there were any."""
        if not self._doomed:
            return False
        doomed, self._doomed = self._doomed, set()  # a put that ends while this deletes dooms its segment again
        try:
            self._archive.store.delete([layout.streaming_key(segment, suffix) for segment in sorted(doomed) for suffix in self._archive.wal_suffixes()])
        except WaleError:
            self._doomed |= doomed
            raise
        self._streaming -= doomed
        return True

    def _sweep(self) -> None:
        """Find, once, what earlier runs left in the store unfinished, here or on another host; what is there whole by now is deleted."""
        if self._swept or self._upstream is None:
            return
        names = [name for name, _ in wal_files(self._archive) if name is not None and layout.is_streaming(name)]
        for segment in (name.removesuffix(layout.STREAMING) for name in names):
            self._streaming.add(segment)
            lineage = self._upstream.lineage
            successor = lineage.segment_at(segment_start(segment, lineage.segment_size))
            if any(self._archive.has_wal(name) for name in {segment, max(segment, successor)}):
                self._doomed.add(segment)
        self._swept = True


def _is_superseded(segment: str, stored: str) -> bool:
    """Whether a stored segment makes this one's unfinished form superfluous: it is the same, or a later timeline's at the same position."""
    return segment[8:] == stored[8:] and segment <= stored
