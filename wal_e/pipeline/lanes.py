"""How lanes wait under gevent: the cooperative twin of :class:`wal_e.pipeline.process.Blocking`.

The event loop reads and writes pipes without blocking and yields after every chunk, so that no
lane starves another. Raw sides run in a native thread pool of our own: the hub's pool also
resolves names, and lanes that fill it deadlock. Children are reaped through the loop's
own child watchers, since the loop reaps whatever it is told of by SIGCHLD.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent.event import AsyncResult
from gevent.hub import get_hub
from gevent.os import make_nonblocking
from gevent.socket import wait_read, wait_write
from gevent.threadpool import ThreadPool

from wal_e.pipeline import pool
from wal_e.pipeline.process import Ended, Process

T = TypeVar("T")


class Cooperative:
    """Waits by switching to other lanes; ``lanes`` native threads for raw sides, and one for blocking calls each."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._raw = ThreadPool(lanes)
        self._blocking = ThreadPool(lanes)
        self._children: dict[int, tuple[Any, AsyncResult[int]]] = {}
        get_hub().loop.install_sigchld()

    def own(self, fd: int) -> None:
        """Make our end of a pipe non-blocking; the other end is another description and stays as it is."""
        make_nonblocking(fd)

    def read(self, fd: int, size: int) -> bytes:
        """Return up to ``size`` bytes, b"" at the end."""
        gevent.sleep(0)
        while True:
            try:
                return os.read(fd, size)
            except BlockingIOError:
                wait_read(fd)

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it."""
        gevent.sleep(0)
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                wait_write(fd)

    def watch(self, process: Process) -> None:
        """Watch the child before the loop can run: it forgets the status of a child nobody watches."""
        ended: AsyncResult[int] = AsyncResult()
        watcher = get_hub().loop.child(process.pid)
        watcher.start(lambda: ended.set(watcher.rstatus))
        self._children[process.pid] = (watcher, ended)

    def reap(self, process: Process) -> int:
        """Wait for the process; return its exit status, negative for a signal."""
        watcher, ended = self._children[process.pid]
        status = os.waitstatus_to_exitcode(ended.get())
        del self._children[process.pid]
        watcher.stop()
        watcher.close()
        return status

    def start(self, work: Callable[[], None]) -> _Native:
        """Run code beside the caller, in a native thread of the lanes."""
        return _Native(self._raw.spawn(_outcome, work))

    def offload(self, call: Callable[[], T]) -> T:
        """Run one blocking call in a native thread. Even a lane that is killed waits for its end: the call uses what the lane then closes."""
        results: list[T] = []
        running = _Native(self._blocking.spawn(_outcome, lambda: results.append(call())))
        try:
            failure = running.join()
        except BaseException:
            running.join()
            raise
        if failure is not None:
            raise failure
        return results[0]

    def run(self, work: Callable[[str], object], items: Iterable[str]) -> Iterator[Ended]:
        """Work on items in all lanes; yield what became of each."""
        for outcome in pool.run(work, items, self.lanes):
            yield Ended(outcome.item, outcome.error)


class _Native:
    def __init__(self, result: AsyncResult[BaseException | None]) -> None:
        self._result = result

    def join(self) -> BaseException | None:
        failure: BaseException | None = self._result.get()
        return failure


def _outcome(work: Callable[[], None]) -> BaseException | None:
    """Return what the work raises: an error raised in a pool thread would be printed by the hub."""
    try:
        work()
    except BaseException:
        return sys.exc_info()[1]
    return None


_original_sleep = monkey.get_original("time", "sleep")


def native_sleep(seconds: float) -> None:
    """Pause a native thread; the patched sleep would start an event loop of its own there."""
    _original_sleep(seconds)
