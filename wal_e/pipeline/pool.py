"""Work in parallel lanes: items in, outcomes out, in the order they are ready."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import inf
from time import monotonic
from typing import Generic, NamedTuple, TypeVar

import gevent
from gevent.lock import Semaphore
from gevent.queue import Empty, Queue

Item = TypeVar("Item")
Result = TypeVar("Result")


class Outcome(NamedTuple, Generic[Item, Result]):
    """What became of one item: a result, or the error that its work raised."""

    item: Item
    result: Result | None
    error: Exception | None

    def value(self) -> Result:
        """Return the result, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]  # there is no error, so there is a result


class Tick(NamedTuple):
    """Something to do in the caller's greenlet every so many seconds while lanes work."""

    every_s: float
    do: Callable[[], None]


def run(work: Callable[[Item], Result], items: Iterable[Item], lanes: int, tick: Tick | None = None) -> Iterator[Outcome[Item, Result]]:
    """Yield an outcome per item. Items are taken as lanes get free, never earlier.

    Closing the iterator, or an error in the caller, cancels the lanes and waits until each has
    cleaned up. An error while taking items is raised here.
    """
    source = iter(items)
    turn = Semaphore(1)
    outcomes: Queue[Outcome[Item, Result] | BaseException | None] = Queue()

    def lane() -> None:
        while True:
            try:
                with turn:
                    item = next(source)
            except StopIteration:
                break
            except Exception as error:
                outcomes.put(error)
                break
            try:
                outcomes.put(Outcome(item, work(item), None))
            except Exception as error:
                outcomes.put(Outcome(item, None, error))
        outcomes.put(None)

    greenlets = [gevent.spawn(lane) for _ in range(lanes)]
    working = lanes
    due = monotonic() + tick.every_s if tick else inf
    try:
        while working:
            if tick and monotonic() >= due:
                tick.do()
                due = monotonic() + tick.every_s
            try:
                outcome = outcomes.get(timeout=max(due - monotonic(), 0.001) if tick else None)
            except Empty:
                continue
            if outcome is None:
                working -= 1
            elif isinstance(outcome, Outcome):
                yield outcome
            else:
                raise outcome
    finally:
        gevent.killall(greenlets)
