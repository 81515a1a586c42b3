"""How things go: for real, or only in the report. The verbs of deletion are written once, for either hand.

For real, keys go in batches, in the order they are given. A batch that fails does not keep the ones after it
from being tried; what is left is told at the end.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import NamedTuple

from wal_e.blobstore.base import Blob, BlobStore, Leftover
from wal_e.errors import StoreError
from wal_e.log import Logger
from wal_e.operators.backup_claim import mark_deleted
from wal_e.progress import LINE_EVERY_S, shown_bytes

LOG = Logger(__name__)

BATCH_KEYS = 1000  # as many as S3 takes in one request
MAX_FAILURES_IN_A_ROW = 5  # each has waited for its own deadline; a store that is away is not asked for hours


class Erased(NamedTuple):
    """What went, objects and their bytes; and how many objects may be left because the store refused."""

    objects: int = 0
    size_bytes: int = 0
    left: int = 0

    def plus(self, other: Erased) -> Erased:
        """Add up."""
        return Erased(self.objects + other.objects, self.size_bytes + other.size_bytes, self.left + other.left)


class Hand(ABC):
    """What lets things go; ``seen`` is told the key or the description of each."""

    def __init__(self, seen: Callable[[str], object]) -> None:
        self.seen = seen

    @abstractmethod
    def mark(self, backup: str) -> bool:
        """Note that this backup goes, before anything of it does; false when that failed."""

    @abstractmethod
    def erase(self, blobs: Iterable[Blob]) -> Erased:
        """Let the blobs go, in this order; return what went."""

    @abstractmethod
    def discard(self, leftover: Leftover) -> Erased:
        """Let a leftover go; return what went."""

    @abstractmethod
    def finish(self) -> None:
        """Raise what went wrong, if anything did."""


class Rehearsal(Hand):
    """Only counts."""

    def mark(self, backup: str) -> bool:  # noqa: ARG002
        """Do nothing."""
        return True

    def erase(self, blobs: Iterable[Blob]) -> Erased:
        """Count the blobs."""
        total = Erased()
        for batch in _batches(blobs):
            for blob in batch:
                self.seen(blob.key)
            total = total.plus(_sum(batch))
        return total

    def discard(self, leftover: Leftover) -> Erased:
        """Count it."""
        self.seen(leftover.description)
        return Erased(1, leftover.size or 0)

    def finish(self) -> None:
        """Do nothing: nothing can have failed."""


class Deletion(Hand):
    """Deletes from the store, and logs once a minute how far it is."""

    def __init__(self, store: BlobStore, seen: Callable[[str], object], *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(seen)
        self._store = store
        self._clock = clock
        self._next_line = clock() + LINE_EVERY_S
        self._total = Erased()
        self._failures: list[StoreError] = []
        self._in_a_row = 0

    def mark(self, backup: str) -> bool:
        """Write into the backup's claim that it goes."""
        return self._try(lambda: mark_deleted(self._store, backup))

    def erase(self, blobs: Iterable[Blob]) -> Erased:
        """Delete the blobs in batches; a batch of which any key failed counts as left."""
        went = Erased()
        for batch in _batches(blobs):
            keys = [blob.key for blob in batch]
            succeeded = self._try(partial(self._store.delete, keys))
            went = went.plus(self._count(keys, _sum(batch)) if succeeded else Erased(left=len(batch)))
        return went

    def discard(self, leftover: Leftover) -> Erased:
        """Remove it from the store."""
        if not self._try(lambda: self._store.discard(leftover)):
            return Erased(left=1)
        return self._count([leftover.description], Erased(1, leftover.size or 0))

    def finish(self) -> None:
        """Raise the errors as one, of their common kind. Raises: StoreError."""
        if not self._failures:
            return
        first = self._failures[0]
        kinds = {type(failure) for failure in self._failures}
        kind = type(first) if len(kinds) == 1 else StoreError
        details = " ".join(dict.fromkeys(f"{failure.message}: {failure.detail}" if failure.detail else f"{failure.message}." for failure in self._failures[:3]))
        raise kind(
            "not everything could be deleted",
            f"{self._total.objects} objects are gone; {len(self._failures)} times the store refused. {details}",
            f"{first.hint} Then run the same command again; it finishes the work.".lstrip(),
        )

    def _count(self, names: Iterable[str], went: Erased) -> Erased:
        for name in names:
            self.seen(name)
        self._total = self._total.plus(went)
        if self._clock() >= self._next_line:
            self._next_line = self._clock() + LINE_EVERY_S
            LOG.info(f"{self._total.objects} objects are deleted so far, {shown_bytes(self._total.size_bytes)}", action="delete")
        return went

    def _try(self, call: Callable[[], object]) -> bool:
        """Call, and remember an error; give up on a store that fails again and again. Raises: StoreError."""
        try:
            call()
        except StoreError as error:
            self._failures.append(error)
            self._in_a_row += 1
            if self._in_a_row >= MAX_FAILURES_IN_A_ROW:
                self.finish()
            return False
        self._in_a_row = 0
        return True


def _batches(blobs: Iterable[Blob]) -> Iterator[list[Blob]]:
    source = iter(blobs)
    while batch := list(islice(source, BATCH_KEYS)):
        yield batch
        time.sleep(0)  # a signal is acted on by the event loop, which a store of files never enters


def _sum(batch: list[Blob]) -> Erased:
    return Erased(len(batch), sum(blob.size for blob in batch))
