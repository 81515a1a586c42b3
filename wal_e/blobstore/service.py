"""What a vendor's module implements: one object service, one request at a time.

A service knows how a key becomes an object's name, speaks through its SDK, and translates what the
SDK raises: its methods raise :class:`~wal_e.errors.StoreError` or one of its kinds and nothing else.
It does not retry, cut streams into parts or start threads; :class:`~wal_e.blobstore.objects.ObjectStore`
does, once for all services. Methods may be called from several threads (or greenlets) at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from wal_e.errors import StoreError
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from wal_e.blobstore.base import Blob, Chunks, Leftover

PUT = "put"  # replace what is there
CREATE = "create"  # only where nothing is: BlobExists otherwise


_CONTENT_TYPES = {"json": "application/json", "txt": "text/plain"}


def content_type(key: str) -> str:
    """What an object of this key is said to hold; as WAL-E said it."""
    return _CONTENT_TYPES.get(key.rpartition(".")[2], "application/octet-stream")


class Part(NamedTuple):
    """A piece of a stream: its number and its offset in bytes, both from 0; the data; whether it is the last one."""

    number: int
    offset: int
    data: bytes
    last: bool


class Whole(NamedTuple):
    """What is known of a stream that has ended: size in bytes, number of parts, CRC32C of all bytes."""

    size: int
    parts: int
    crc32c: int


class Opened(NamedTuple):
    """A blob that is being read.

    ``version`` is the service's ETag or generation; ``size`` (bytes) and ``crc32c`` are of the whole blob, the latter
    None where the service does not keep it. ``chunks`` yields the bytes asked for as they come, in pieces of at most 1 MiB;
    when the connection breaks it raises StoreUnavailable, or just ends too early. It is closed after use.
    """

    version: str
    size: int
    crc32c: int | None
    chunks: Chunks


class Page(NamedTuple):
    """One page of a listing, in byte order; ``following`` continues it, None after the last page."""

    blobs: Sequence[Blob]
    following: str | None


class UploadLost(StoreError):
    """What was sent of an upload is gone, or was changed on its way: only the whole stream sent anew helps."""


class Upload(ABC):
    """One upload in parts, invisible until it is completed."""

    @abstractmethod
    def send(self, part: Part) -> None:
        """Store one part; called again with the same part after transient trouble."""

    @abstractmethod
    def complete(self, whole: Whole) -> None:
        """Make the blob visible under its key, when all parts are sent; called again after transient trouble.

        Raises: BlobExists when the upload was begun to create and the key is taken.
        """

    @abstractmethod
    def abort(self) -> None:
        """Remove what was sent; nothing visible or billable stays. No part is being sent any more."""


class Service(ABC):
    """One bucket or container, below one prefix."""

    #: parts of one upload that may be sent at once; 1 where they must come in order
    parts_at_once: int = 8
    #: keys in one delete request
    delete_batch: int = 1

    @property
    @abstractmethod
    def url(self) -> str:
        """The prefix as a user would write it, without secrets."""

    @abstractmethod
    def write(self, key: str, data: bytes, crc32c: int, verb: str) -> None:
        """Store a whole blob in one request; ``verb`` is PUT or CREATE. Raises: BlobExists."""

    @abstractmethod
    def begin(self, key: str, verb: str) -> Upload:
        """Begin an upload in parts."""

    @abstractmethod
    def open(self, key: str, start: int, length: int | None, version: str | None) -> Opened:
        """Ask for the bytes from ``start``, all or ``length`` (1 or more) of them; no chunks where start is at or past the end.

        With a version, only that one will do: StoreError otherwise.

        Raises: BlobNotFound only when the service said "no such key" (not: no such bucket), BlobFrozen.
        """

    @abstractmethod
    def stat(self, key: str) -> Blob:
        """Return size and time. Raises: BlobNotFound, as in :meth:`open`."""

    @abstractmethod
    def page(self, prefix: str, following: str | None) -> Page:
        """Return the first page of the keys that start with the prefix, or the page that follows."""

    @abstractmethod
    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Delete up to ``delete_batch`` keys; return why for each that is left. Absent keys are fine.

        Raises: StoreError when the request as a whole failed.
        """

    @abstractmethod
    def leftovers(self) -> Iterator[Leftover]:
        """Yield unfinished uploads below the prefix."""

    @abstractmethod
    def discard(self, leftover: Leftover) -> None:
        """Remove an unfinished upload; that it is gone is no error."""
