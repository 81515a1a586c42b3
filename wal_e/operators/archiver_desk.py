"""Who waits for which file at the archiver, and what they are told in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Event

from wal_e import log
from wal_e.errors import StoreUnavailable, WaleError
from wal_e.operators.handshake import BEAT_S

LINGER_S = 0.5  # a batch of some forty segments on two cores
LOOK_S = 0.01

Reply = tuple[str, ...]
STORED: Reply = ("stored",)


def told(kind: str, error: WaleError) -> Reply:
    """An error as a reply, without secrets."""
    return (kind, type(error).__name__, log.masked(error.message), log.masked(error.detail), log.masked(error.hint))


class _Waiter:
    def __init__(self) -> None:
        self.answered = Event()
        self.reply: Reply = ()


class Desk:
    """Clients that wait, by the name of their file."""

    def __init__(self) -> None:
        self._waiters: dict[str, list[_Waiter]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._waiters

    def names(self) -> list[str]:
        """The files that somebody waits for."""
        return list(self._waiters)

    def tell(self, name: str, reply: Reply) -> None:
        """Give everybody who waits for this file the last reply."""
        for waiter in self._waiters.get(name, ()):
            waiter.reply = reply
            waiter.answered.set()

    def wait(self, name: str, deadline_s: float, begin: Callable[[], None], trouble: Callable[[], WaleError | None]) -> Iterator[Reply]:
        """Yield a sign of life every few seconds, then the last reply: by the deadline, the trouble that there is.

        ``begin`` is called when the waiter can be told.
        """
        waiter = _Waiter()
        self._waiters.setdefault(name, []).append(waiter)
        try:
            begin()
            deadline = time.monotonic() + deadline_s
            if (error := trouble()) is not None:
                yield ("working", _why(error))
            while not waiter.answered.wait(min(BEAT_S, max(deadline - time.monotonic(), 0))):
                error = trouble()
                if time.monotonic() >= deadline:
                    yield told("failed", error or _too_slow(name, deadline_s))
                    return
                yield ("working", _why(error) if error else "")
            yield waiter.reply
        finally:
            self._waiters[name].remove(waiter)
            if not self._waiters[name]:
                del self._waiters[name]


def linger(is_busy: Callable[[], bool], *, sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic) -> None:
    """Hold back an answer for a moment while more files are on their way.

    The server goes on with the next file that is not marked done: in a burst it then starts one ``wal-push`` for
    many files, instead of one for every few.
    """
    deadline = clock() + LINGER_S
    while is_busy() and clock() < deadline:
        sleep(LOOK_S)


def _why(error: WaleError) -> str:
    return log.masked(f"{error.message[:1].upper()}{error.message[1:]}. {error.detail}")


def _too_slow(name: str, deadline_s: float) -> StoreUnavailable:
    return StoreUnavailable(
        f"{name} was not stored within {deadline_s:g} s",
        "The resident archiver is still at it; the store answers, but slowly.",
        "PostgreSQL will ask again.",
    )
