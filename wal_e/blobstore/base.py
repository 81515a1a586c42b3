"""What every store can do: six verbs on keys and bytes.

A key is a relative path below the prefix: parts joined by ``/``, none of them empty, none
starting with a dot (anything else is a ``ValueError``). No key is another one's directory, for
a store of files cannot hold both. Keys are listed in byte order. A blob is visible only when
whole. ``tests/blobstore/test_contract.py`` says all this in a form that runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    Chunks = Iterator[bytes]


class Blob(NamedTuple):
    """One stored object: key below the prefix, size in bytes, modification time (aware, UTC)."""

    key: str
    size: int
    modified: datetime


class BlobStore(ABC):
    """Bytes under keys. A blob is visible only when whole: if the chunks raise, nothing is stored.

    All methods raise :class:`~wal_e.errors.StoreError` or one of its kinds, and whatever the
    given chunks raise.
    """

    @property
    @abstractmethod
    def url(self) -> str:
        """The prefix as a user would write it, without secrets."""

    @abstractmethod
    def put(self, key: str, chunks: Iterable[bytes]) -> Blob:
        """Store the chunks under the key, replacing what is there; durable on return."""

    @abstractmethod
    def create(self, key: str, chunks: Iterable[bytes]) -> Blob:
        """Store the chunks under a key that must not exist; the service decides, atomically.

        Raises: BlobExists, having stored nothing.
        """

    @abstractmethod
    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes from offset ``start``, all or ``length`` of them, in order.

        An offset at or past the end yields nothing.

        Raises: BlobNotFound (by the call or instead of the first chunk, never later), BlobFrozen.
        """

    @abstractmethod
    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs whose key starts with the prefix, recursively, in byte order of key."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys; an absent key is no error, any other failure of any key is.

        All keys are tried before the error is raised, which names those that are left.
        """

    def url_of(self, key: str) -> str:
        """The full address of a key, for messages."""
        return f"{self.url.rstrip('/')}/{key}"
