"""Several programs at work at once, without an event loop: the twin of :class:`wal_e.pipeline.process.Blocking` for a batch.

Each lane is a bare greenlet. It gives way at one place only, where it waits for a program to end;
all else blocks the process, while the programs of the other lanes go on. That is enough where
programs read and write files themselves, and starts in a tenth of the time that gevent takes.
"""

from __future__ import annotations

import os

from greenlet import GreenletExit, getcurrent, greenlet

from wal_e.pipeline.process import Blocking, Ended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from wal_e.pipeline.process import Process

    T = TypeVar("T")


class SideBySide(Blocking):
    """Waits by letting other lanes go on while programs run."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._main = getcurrent()
        self._statuses: dict[int, int] = {}
        self._waiting: dict[int, greenlet] = {}
        self._is_ending = False

    def reap(self, process: Process) -> int:
        """Wait for the process; return its exit status, negative for a signal."""
        if process.pid not in self._statuses and getcurrent() is not self._main and not self._is_ending:
            self._waiting[process.pid] = getcurrent()
            self._main.switch()
        if process.pid not in self._statuses:
            return super().reap(process)
        return os.waitstatus_to_exitcode(self._statuses.pop(process.pid))

    def run(self, work: Callable[[str], object], items: Iterable[str]) -> Iterator[Ended]:
        """Work on items in all lanes; yield what became of each. A signal ends the lanes, too."""
        source, ended = iter(items), list[Ended]()
        working: set[greenlet] = set()

        def lane(item: str) -> None:
            ended.extend(Blocking.run(self, work, [item]))

        try:
            while True:
                while len(working) < self.lanes and (item := next(source, None)) is not None:
                    one = greenlet(lane)
                    working.add(one)
                    one.switch(item)
                    working = {one for one in working if not one.dead}
                while ended:
                    yield ended.pop(0)
                if not working:
                    return
                pid, status = os.waitpid(-1, 0)
                self._statuses[pid] = status
                if pid in self._waiting:
                    self._waiting.pop(pid).switch()
                    working = {one for one in working if not one.dead}
        finally:
            self._is_ending = True
            for one in working:
                if not one.dead:
                    one.throw(GreenletExit)
