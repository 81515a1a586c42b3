"""Who may create a blob in Swift, where two writers at once can both pass ``If-None-Match: *``.

Swift looks whether an object is there before it takes the body, and of two bodies that come at the same time it keeps the one
that was begun later: both writers are told 201. So a writer announces itself first, with an empty object whose name begins with that of the key
and ends with one of its own, and then lists the announcements for the key. A writer that sees only its own goes on: whoever comes later will see
it and wait. Those that see each other step back, but for the one whose name is lowest; it waits until the others
are gone. A waiting writer gives up as soon as the blob is there. That costs three small requests for each blob that is created.

What remains: a listing comes from one copy of the container's database and may lag where Swift is overloaded or a disk is away. Then two
writers can miss each other, and what is read back after the write (see ``service.py``) is all that tells them, unless the later
one's body was still on its way. The same goes for a writer that needs longer than ``PATIENCE_S`` for its one request: it is taken for
dead, for the announcement of a killed one stays too, and must not stop the archiving of its segment for ever.
"""

from __future__ import annotations

import contextlib
import time

from wal_e.errors import BlobExists, BlobNotFound, StoreError
from wal_e.log import Logger
from wal_e.retry import Policy, fraction, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from wal_e.blobstore.swift.container import Container

LOG = Logger(__name__)

PATIENCE_S = 30.0
LEAVING = Policy(3, 5)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0
EXPIRY_S = 24 * 3600  # seconds, after which Swift's expirer, where one runs, removes what we could not


class Claim:
    """The announcement of one writer; ``place`` is the beginning of all names for this blob, ``name`` is this writer's own, ``url`` is the blob's.

    ``exists`` tells whether the blob is there.
    """

    def __init__(
        self,
        container: Container,
        place: str,
        name: str,
        url: str,
        exists: Callable[[], bool],
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._container = container
        self._place = place
        self._name = name
        self._url = url
        self._exists = exists
        self._sleep = sleep
        self._clock = clock

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Be the only writer in the block. Raises: BlobExists, when another one was first."""
        try:
            self._enter()
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        # Swift may be in trouble, and the next attempt must not take this announcement for another writer's
        try:
            retrying(lambda: self._retract(self._name), LEAVING, sleep=self._sleep, clock=self._clock)
        except StoreError as error:
            self._container.abandoned.add(self._name)
            LOG.warning(f"the announcement that {self._url} is being created could not be removed", str(error))

    def _enter(self) -> None:
        deadline = self._clock() + PATIENCE_S
        wait_s = 0.0
        self._announce()
        while others := self._others():
            if self._clock() > deadline:
                self._bury(others)
                return
            wait_s = self._wait(wait_s)
            if min(others) < self._name:
                self._retract(self._name)
                while self._clock() <= deadline and min(self._others(), default=self._name) < self._name:
                    wait_s = self._wait(wait_s)
                self._announce()

    def _announce(self) -> None:
        self._container.put(self._name, self._url, b"", {"X-Delete-After": str(EXPIRY_S), "Content-Type": "application/octet-stream"})

    def _others(self) -> list[str]:
        mine = {self._name, *self._container.abandoned}
        names = (entry["name"] for entry in self._container.page(self._place, self._url))
        return [name for name in names if name not in mine and "/" not in name.removeprefix(self._place)]

    def _wait(self, last_s: float) -> float:
        """Wait a little longer than the last time, unless the blob is there by now."""
        if self._exists():
            raise BlobExists(f"{self._url} exists already", "Another process created it at the same time.")
        if not last_s:
            LOG.info(f"another process is creating {self._url}; waiting for it")
        wait_s = min(LONGEST_WAIT_S, last_s * 1.5 or FIRST_WAIT_S)
        self._sleep(wait_s * (0.5 + fraction() / 2))
        return wait_s

    def _bury(self, others: list[str]) -> None:
        LOG.warning(
            f"a process that began to create {self._url} did not end within {PATIENCE_S:.0f} seconds; going on without it",
            f"It announced itself as {', '.join(others)} in the container {self._container.name}, which is removed now.",
        )
        for name in others:
            self._retract(name)

    def _retract(self, name: str) -> None:
        with contextlib.suppress(BlobNotFound):
            self._container.delete(name, self._url)
