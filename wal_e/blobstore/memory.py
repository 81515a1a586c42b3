"""A store in memory: for tests, and the shortest statement of what a store does."""

from __future__ import annotations

from datetime import UTC, datetime

from wal_e.blobstore.base import Blob, BlobStore, Leftover
from wal_e.blobstore.url import checked_key
from wal_e.errors import BlobExists, BlobNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from wal_e.blobstore.base import Chunks

_CHUNK_BYTES = 1 << 20


class MemoryStore(BlobStore):
    """Blobs are the values of a dictionary, whose own operations are atomic; threads may share it."""

    def __init__(self) -> None:
        self._contents: dict[str, tuple[bytes, datetime]] = {}

    @property
    def url(self) -> str:
        """The prefix, for messages."""
        return "memory://localhost"

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under the key, replacing what is there."""
        checked_key(key)
        content = _content(chunks)
        self._contents[key] = content
        return len(content[0])

    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist. Raises: BlobExists."""
        if checked_key(key) in self._contents:
            raise BlobExists(f"{self.url_of(key)} exists already")
        content = _content(chunks)
        if self._contents.setdefault(key, content) is not content:
            raise BlobExists(f"{self.url_of(key)} exists already")
        return len(content[0])

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes in chunks of up to 1 MiB. Raises: BlobNotFound, with the first chunk."""
        content, _ = self._found(key)
        end = len(content) if length is None else min(start + length, len(content))
        for offset in range(start, end, _CHUNK_BYTES):
            yield content[offset : min(offset + _CHUNK_BYTES, end)]

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        return _blob(key, self._found(key))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs that were there when the listing began, in byte order of key."""
        for key, content in sorted(self._contents.items()):
            if key.startswith(prefix):
                yield _blob(key, content)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys; an absent key is no error."""
        for key in keys:
            self._contents.pop(checked_key(key), None)

    def leftovers(self) -> Iterator[Leftover]:
        """Yield nothing: what a killed process had in memory is gone."""
        return iter(())

    def discard(self, leftover: Leftover) -> None:
        """Do nothing: there are no leftovers."""

    def _found(self, key: str) -> tuple[bytes, datetime]:
        try:
            return self._contents[checked_key(key)]
        except KeyError:
            raise BlobNotFound(f"there is no {self.url_of(key)}") from None


def _content(chunks: Iterable[bytes]) -> tuple[bytes, datetime]:
    return b"".join(chunks), datetime.now(UTC)


def _blob(key: str, content: tuple[bytes, datetime]) -> Blob:
    return Blob(key, len(content[0]), content[1])
