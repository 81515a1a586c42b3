"""A store over an object service: streams cut into parts, every request retried, broken reads resumed.

The four vendors differ in requests, not in what a store does with them, so this is written once.
An upload that fails, or is cancelled, is aborted; what a killed process leaves is a leftover. A read
that breaks goes on at the byte where it stopped, in the same version of the blob or not at all.
"""

from __future__ import annotations

import time

from google_crc32c import extend

from wal_e.blobstore.base import BlobStore, undeleted
from wal_e.blobstore.parts import UNCUT_BYTES, Cut
from wal_e.blobstore.reading import SMALL_BYTES, BlobRead
from wal_e.blobstore.resume import resumed
from wal_e.blobstore.service import CREATE, PUT, UploadLost
from wal_e.blobstore.url import checked_key
from wal_e.errors import BlobExists, BlobNotFound, DamageError, StoreError, StoreUnavailable
from wal_e.log import Logger
from wal_e.retry import HASTY, log_wait, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from typing import TypeVar

    from wal_e.blobstore.base import Blob, Chunks, Leftover
    from wal_e.blobstore.service import Part, Service, Upload, Whole
    from wal_e.errors import WaleError
    from wal_e.retry import Effort

    T = TypeVar("T")

LOG = Logger(__name__)

PART_GRACE_S = 120.0


class ObjectStore(BlobStore):
    """The verbs of a store, made of the requests of a service; each upload sends up to ``parts_at_once`` parts at once."""

    def __init__(
        self,
        service: Service,
        effort: Effort,
        parts_at_once: int,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        notice: Callable[[WaleError, float], object] = log_wait,
    ) -> None:
        self._service = service
        self._effort = effort
        self._parts_at_once = min(parts_at_once, service.parts_at_once)
        self._sleep = sleep
        self._clock = clock
        self._notice = notice

    @property
    def url(self) -> str:
        """The prefix as a user would write it."""
        return self._service.url

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under the key, replacing what is there."""
        return self._store(key, chunks, PUT)

    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist. Raises: BlobExists."""
        return self._store(key, chunks, CREATE)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes; whole blobs are compared with the checksum that was stored with them.

        Raises: BlobNotFound, BlobFrozen, with the first chunk; DamageError after the last.
        """
        if length == 0:
            self.stat(key)
            return
        read = BlobRead(self._service, checked_key(key), start, length, self._clock)
        first = self._reading(read.open)
        if start == 0 and length is None and first.size <= SMALL_BYTES:
            content = self._reading(read.whole)
            if content:
                yield content
            return
        crc32c = 0
        for chunk in resumed(read.from_offset, start, self._reading):
            crc32c = extend(crc32c, chunk)
            yield chunk
        if start == 0 and length is None:
            read.require(crc32c)

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        checked_key(key)
        return self._reading(lambda: self._service.stat(key))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs, page by page; objects that are no blobs of ours are passed over."""
        following: str | None = None
        while True:
            page = self._reading(lambda: self._service.page(prefix, following))  # noqa: B023  # called before the next turn
            yield from (blob for blob in page.blobs if _is_key(blob.key))
            following = page.following
            if following is None:
                return

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys in batches; what is left of all of them is named at the end."""
        failures: dict[str, StoreError] = {}
        for batch in _batches(keys, self._service.delete_batch):
            failures |= self._delete(batch)
        if failures:
            raise undeleted(self.url, failures)

    def leftovers(self) -> Iterator[Leftover]:
        """Yield unfinished uploads below the prefix; they are few, and read in one go."""
        return iter(self._reading(lambda: tuple(self._service.leftovers())))

    def discard(self, leftover: Leftover) -> None:
        """Remove an unfinished upload."""
        self._writing(lambda: self._service.discard(leftover))

    def hasty(self) -> ObjectStore:
        """The same store for tidying up."""
        return ObjectStore(self._service, HASTY, 1, sleep=self._sleep, clock=self._clock, notice=self._notice)

    def _store(self, key: str, chunks: Iterable[bytes], verb: str) -> int:
        checked_key(key)
        cut = Cut(chunks, UNCUT_BYTES[verb])
        parts = iter(cut)
        first = next(parts)
        if first.last:
            self._write(key, verb, first.data, cut.whole)
        else:
            begun = [first]
            del first  # or it would stay in memory until the last one is sent
            self._upload(key, verb, cut, _again(begun, parts))
        return cut.whole.size

    def _write(self, key: str, verb: str, data: bytes, whole: Whole) -> None:
        self._deciding(lambda: self._service.write(key, data, whole.crc32c, verb), key, whole)

    def _upload(self, key: str, verb: str, cut: Cut, parts: Iterator[Part]) -> None:
        if verb == CREATE:
            self._require_free(key)
        upload = self._writing(lambda: self._service.begin(key, verb))
        try:
            self._send(upload, parts)
            self._deciding(lambda: upload.complete(cut.whole), key, cut.whole)
        except UploadLost as error:
            self._abort(upload, key)
            raise StoreUnavailable(error.message, error.detail, error.hint) from None
        except BaseException:
            self._abort(upload, key)
            raise

    def _require_free(self, key: str) -> None:
        """Look before the body of a large blob is sent in vain; the service decides all the same."""
        try:
            self.stat(key)
        except BlobNotFound:
            return
        raise BlobExists(f"{self.url_of(key)} exists already")

    def _deciding(self, write: Callable[[], None], key: str, whole: Whole) -> None:
        """Make a write that decides. When an answer was lost, the next attempt may meet what the first one stored."""
        lost = False

        def attempt() -> None:
            nonlocal lost
            try:
                write()
            except BlobExists:
                if not (lost and self._holds(key, whole)):
                    raise
            except StoreUnavailable:
                lost = True
                raise

        self._writing(attempt)

    def _holds(self, key: str, whole: Whole) -> bool:
        crc32c = size = 0
        try:
            for chunk in self.get(key):
                crc32c = extend(crc32c, chunk)
                size += len(chunk)
        except (StoreError, DamageError):
            return False
        return (size, crc32c) == (whole.size, whole.crc32c)

    def _send(self, upload: Upload, parts: Iterator[Part]) -> None:
        """Send the parts, some at once, while the next one is filled."""
        from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

        patience_s = self._effort.writes.deadline_s + PART_GRACE_S
        sending: set[Future[None]] = set()
        executor = ThreadPoolExecutor(self._parts_at_once, thread_name_prefix="part")
        try:
            part = next(parts, None)
            while part is not None or sending:
                if part is not None and len(sending) < self._parts_at_once:
                    sending.add(executor.submit(self._send_one, upload, part))
                    part = next(parts, None)
                    continue
                done, sending = wait(sending, patience_s, FIRST_COMPLETED)
                if not done:
                    raise StoreUnavailable(f"{self.url} takes nothing any more", f"No part of an upload was stored within {patience_s:.0f} seconds.")
                for future in done:
                    future.result()
        finally:
            for future in sending:
                future.cancel()
            wait(sending, HASTY.writes.deadline_s)
            executor.shutdown(wait=False)

    def _send_one(self, upload: Upload, part: Part) -> None:
        self._writing(lambda: upload.send(part))

    def _abort(self, upload: Upload, key: str) -> None:
        try:
            retrying(upload.abort, HASTY.writes, sleep=self._sleep, clock=self._clock, notice=self._notice)
        except StoreError as error:
            LOG.warning(
                f"an unfinished upload of {self.url_of(key)} could not be removed",
                str(error),
                "It is not visible, but may cost money; wal-e delete garbage removes it later.",
            )

    def _delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Delete one batch; what fails for a moment is tried again, alone."""
        left = tuple(keys)
        failures: dict[str, StoreError] = {}

        def attempt() -> None:
            nonlocal left
            refused = self._service.delete(left)
            failures.update({key: error for key, error in refused.items() if not error.transient})
            left = tuple(key for key, error in refused.items() if error.transient)
            if left:
                raise refused[left[0]]

        try:
            self._writing(attempt)
        except StoreError as error:
            failures.update(dict.fromkeys(left, error))
        return failures

    def _writing(self, request: Callable[[], T]) -> T:
        return retrying(request, self._effort.writes, sleep=self._sleep, clock=self._clock, notice=self._notice)

    def _reading(self, request: Callable[[], T]) -> T:
        return retrying(request, self._effort.reads, sleep=self._sleep, clock=self._clock, notice=self._notice)


def _again(begun: list[Part], others: Iterator[Part]) -> Iterator[Part]:
    """Yield what was taken to look at it, without keeping it, and the others."""
    yield begun.pop()
    yield from others


def _is_key(text: str) -> bool:
    try:
        checked_key(text)
    except ValueError:
        return False
    return True


def _batches(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for key in dict.fromkeys(map(checked_key, keys)):
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
