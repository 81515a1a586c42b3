"""Stores around a store: one that tries again, one that counts, and one that refuses to write."""

from __future__ import annotations

import time

from wal_e.blobstore.base import Blob, BlobStore
from wal_e.blobstore.resume import resumed
from wal_e.errors import BlobNotFound, StoreError, UsageError
from wal_e.retry import HASTY, log_wait, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from wal_e.blobstore.base import Chunks, Leftover
    from wal_e.errors import WaleError
    from wal_e.retry import Effort, Policy

    T = TypeVar("T")


class Retrying(BlobStore):
    """Calls again after transient trouble what can be replayed whole, and resumes a broken read.

    ``put`` and ``create`` are called again only when the chunks are a list or a tuple, for a
    stream is used up by the first attempt. A ``create`` that is called again may meet the blob
    that its first attempt stored, and then raises ``BlobExists``.
    """

    def __init__(
        self,
        store: BlobStore,
        effort: Effort,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        notice: Callable[[WaleError, float], object] = log_wait,
    ) -> None:
        self._store = store
        self._effort = effort
        self._sleep = sleep
        self._clock = clock
        self._notice = notice

    @property
    def url(self) -> str:
        """The prefix of the store within."""
        return self._store.url

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks, again after trouble if they can be replayed."""
        if isinstance(chunks, (list, tuple)):
            return self._writing(lambda: self._store.put(key, chunks))
        return self._store.put(key, chunks)

    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist, again after trouble if they can be replayed."""
        if isinstance(chunks, (list, tuple)):
            return self._writing(lambda: self._store.create(key, chunks))
        return self._store.create(key, chunks)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes; a stream that breaks is opened again at the byte where it stopped.

        Attempts and deadline are counted anew from each chunk that arrives.
        """

        def from_offset(offset: int) -> Chunks:
            left = None if length is None else start + length - offset
            try:
                yield from self._store.get(key, start=offset, length=left)
            except BlobNotFound as error:
                if offset == start:
                    raise
                raise StoreError(f"{self.url_of(key)} was deleted while it was read") from error

        return resumed(from_offset, start, self._reading)

    def open_file(self, key: str) -> int | None:
        """Open the file that a blob is, if it is one. Raises: BlobNotFound."""
        return self._reading(lambda: self._store.open_file(key))

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        return self._reading(lambda: self._store.stat(key))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs; the listing is begun again only until its first blob has arrived."""

        def begin() -> tuple[Blob | None, Iterator[Blob]]:
            blobs = self._store.list(prefix)
            return next(blobs, None), blobs

        first, others = self._reading(begin)
        if first is not None:
            yield first
            yield from others

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys; they are held in memory, to begin again."""
        doomed = tuple(keys)
        self._writing(lambda: self._store.delete(doomed))

    def hasty(self) -> Retrying:
        """The same store for tidying up."""
        return Retrying(self._store, HASTY, sleep=self._sleep, clock=self._clock, notice=self._notice)

    def leftovers(self) -> Iterator[Leftover]:
        """Yield what killed writers left."""
        return self._store.leftovers()

    def discard(self, leftover: Leftover) -> None:
        """Remove one leftover."""
        self._writing(lambda: self._store.discard(leftover))

    def _writing(self, call: Callable[[], T]) -> T:
        return self._retry(call, self._effort.writes)

    def _reading(self, call: Callable[[], T]) -> T:
        return self._retry(call, self._effort.reads)

    def _retry(self, call: Callable[[], T], policy: Policy) -> T:
        return retrying(call, policy, sleep=self._sleep, clock=self._clock, notice=self._notice)


class Metered(BlobStore):
    """Counts what passes: calls of the verbs, bytes sent and bytes received."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self.calls = self.sent_bytes = self.received_bytes = 0

    @property
    def url(self) -> str:
        """The prefix of the store within."""
        return self._store.url

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks, replacing what is there."""
        return self._sent(self._store.put(key, chunks))

    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist. Raises: BlobExists."""
        return self._sent(self._store.create(key, chunks))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes. Raises: BlobNotFound."""
        self.calls += 1
        for chunk in self._store.get(key, start=start, length=length):
            self.received_bytes += len(chunk)
            yield chunk

    def open_file(self, key: str) -> int | None:
        """Open the file that a blob is, if it is one. Raises: BlobNotFound."""
        self.calls += 1
        return self._store.open_file(key)

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        self.calls += 1
        return self._store.stat(key)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs in byte order of key."""
        self.calls += 1
        return self._store.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys."""
        self.calls += 1
        self._store.delete(keys)

    def hasty(self) -> Metered:
        """The same store for tidying up."""
        return Metered(self._store.hasty())

    def leftovers(self) -> Iterator[Leftover]:
        """Yield what killed writers left."""
        return self._store.leftovers()

    def discard(self, leftover: Leftover) -> None:
        """Remove one leftover."""
        self._store.discard(leftover)

    def _sent(self, size: int) -> int:
        self.calls += 1
        self.sent_bytes += size
        return size


class ReadOnly(BlobStore):
    """Reads pass; a write is refused, so that a rehearsal cannot change anything."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """The prefix of the store within."""
        return self._store.url

    def put(self, key: str, chunks: Iterable[bytes]) -> int:  # noqa: ARG002  # refused whatever it is
        """Refuse. Raises: UsageError."""
        raise self._refused(f"{self.url_of(key)} was not written.")

    def create(self, key: str, chunks: Iterable[bytes]) -> int:  # noqa: ARG002  # refused whatever it is
        """Refuse. Raises: UsageError."""
        raise self._refused(f"{self.url_of(key)} was not written.")

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes. Raises: BlobNotFound."""
        return self._store.get(key, start=start, length=length)

    def open_file(self, key: str) -> int | None:
        """Open the file that a blob is, if it is one. Raises: BlobNotFound."""
        return self._store.open_file(key)

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        return self._store.stat(key)

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs in byte order of key."""
        return self._store.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:  # noqa: ARG002  # refused whatever it is
        """Refuse. Raises: UsageError."""
        raise self._refused("Nothing was deleted.")

    def hasty(self) -> ReadOnly:
        """The same store for tidying up."""
        return ReadOnly(self._store.hasty())

    def leftovers(self) -> Iterator[Leftover]:
        """Yield what killed writers left."""
        return self._store.leftovers()

    def discard(self, leftover: Leftover) -> None:
        """Refuse. Raises: UsageError."""
        raise self._refused(f"{leftover.description} was not removed.")

    def _refused(self, detail: str) -> UsageError:
        return UsageError("this store is opened read-only", detail)
