"""What every store can do: six verbs on keys and bytes.

A key is a relative path below the prefix: parts joined by ``/``, none of them empty, none
starting with a dot (anything else is a ``ValueError``). No key is another one's directory, for
a store of files cannot hold both. Keys are listed in byte order. A blob is visible only when
whole. ``tests/blobstore/test_contract.py`` says all this in a form that runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from wal_e.errors import StoreError
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


class Leftover(NamedTuple):
    """What a killed writer left where no listing shows it, for instance an unfinished upload.

    ``address`` is the store's own; ``description`` is for people; ``size`` is in bytes, None where the
    store does not tell; ``started`` is aware and UTC.
    """

    address: str
    description: str
    size: int | None
    started: datetime


class SelfWriting(ABC):
    """Chunks that, where a blob is a file, can be written by whoever makes them, without passing through this process."""

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]:
        """Yield the chunks."""

    @abstractmethod
    def write_to(self, descriptor: int) -> None:
        """Write all of them into an open file, instead of yielding them."""


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
    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under the key, replacing what is there; durable on return. Return their size in bytes."""

    @abstractmethod
    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist; the service decides, atomically. Return their size in bytes.

        Raises: BlobExists, having stored nothing.
        """

    @abstractmethod
    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes from offset ``start``, all or ``length`` of them, in order.

        An offset at or past the end yields nothing.

        Raises: BlobNotFound (by the call or instead of the first chunk, never later), BlobFrozen.
        """

    def open_file(self, key: str) -> int | None:  # noqa: ARG002  # for those that are files
        """Open the file that a blob is, for a program to read it itself; None where blobs are no files.

        The descriptor is the caller's. Raises: BlobNotFound.
        """
        return None

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

    @abstractmethod
    def leftovers(self) -> Iterator[Leftover]:
        """Yield what writers that were killed left below the prefix, invisible to :meth:`list`; live writers' too."""

    @abstractmethod
    def discard(self, leftover: Leftover) -> None:
        """Remove one leftover; that it is gone already is no error."""

    def hasty(self) -> BlobStore:
        """The same store for tidying up: what does not succeed within seconds is given up."""
        return self

    def url_of(self, key: str) -> str:
        """The full address of a key, for messages."""
        return f"{self.url.rstrip('/')}/{key}"


def undeleted(url: str, failures: dict[str, StoreError]) -> StoreError:
    """The error that says which keys are left after a delete; ``failures`` is not empty."""
    kinds = {type(error) for error in failures.values()}
    kind = kinds.pop() if len(kinds) == 1 else StoreError
    first = next(iter(failures.values()))
    named = ", ".join(sorted(failures)[:10]) + (", ..." if len(failures) > 10 else "")
    return kind(f"could not delete all that was asked in {url}", f"{len(failures)} left: {named}. The first: {first.message}. {first.detail}", first.hint)
