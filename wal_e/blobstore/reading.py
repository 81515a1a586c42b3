"""One blob on its way out of an object service: in one version, whole, or with an error."""

from __future__ import annotations

from google_crc32c import extend

from wal_e.errors import BlobNotFound, DamageError, StoreError, StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from wal_e.blobstore.base import Chunks
    from wal_e.blobstore.service import Opened, Service

SMALL_BYTES = 1 << 20  # what is smaller is checked before it is handed out
TRICKLE_S, TRICKLE_BYTES = 60.0, 64 * 1024


class BlobRead:
    """One blob on its way here: what its first answer said, and how to ask for the rest of that same version."""

    def __init__(self, service: Service, key: str, start: int, length: int | None, clock: Callable[[], float]) -> None:
        self._service = service
        self._key = key
        self._start = start
        self._length = length
        self._clock = clock
        self._first: Opened | None = None
        self._unused: Opened | None = None

    def open(self) -> Opened:
        """Ask for the first time. Raises: BlobNotFound, BlobFrozen."""
        self._first = self._unused = self._service.open(self._key, self._start, self._length, None)
        return self._first

    def whole(self) -> bytes:
        """Read a small blob and check it before it is handed out; trouble on the way is worth another try."""
        opened = self._opened(0)
        content = b"".join(self._chunks(opened, 0))
        if opened.crc32c not in (None, extend(0, content)):
            raise StoreUnavailable(f"{self._url} arrived changed", "Its bytes do not have the checksum that was stored with them.")
        return content

    def from_offset(self, offset: int) -> Chunks:
        """Ask for the bytes from an offset on."""
        return self._chunks(self._opened(offset), offset)

    def require(self, crc32c: int) -> None:
        """Raise DamageError unless the blob has the checksum that was stored with it."""
        assert self._first is not None
        if self._first.crc32c not in (None, crc32c):
            raise DamageError(
                f"{self._key} did not arrive as it was stored",
                f"The checksum of what came from {self._url} is another than the one that was stored with it.",
                "Try again; if it stays so, the object is damaged: use another backup, or another copy of the store.",
            )

    @property
    def _url(self) -> str:
        return f"{self._service.url}/{self._key}"

    def _opened(self, offset: int) -> Opened:
        opened, self._unused = self._unused, None
        if opened is not None:
            return opened
        assert self._first is not None
        try:
            return self._service.open(self._key, offset, self._left(offset), self._first.version)
        except BlobNotFound as error:
            raise StoreError(f"{self._url} was deleted while it was read", error.detail) from None

    def _left(self, offset: int) -> int | None:
        return None if self._length is None else self._start + self._length - offset

    def _chunks(self, opened: Opened, offset: int) -> Chunks:
        """Pass the chunks on; a stream that ends too early, or hardly moves, is as good as broken."""
        left = self._left(offset)
        end = opened.size if left is None else min(opened.size, offset + left)
        since, arrived = self._clock(), 0
        try:
            for chunk in opened.chunks:
                offset, arrived = offset + len(chunk), arrived + len(chunk)
                yield chunk
                if arrived >= TRICKLE_BYTES:
                    since, arrived = self._clock(), 0
                elif self._clock() - since > TRICKLE_S:
                    raise StoreUnavailable(f"{self._url} hardly moves", f"Less than {TRICKLE_BYTES} bytes came in {TRICKLE_S:.0f} seconds.")
        finally:
            close = getattr(opened.chunks, "close", None)
            if close is not None:
                close()
        if offset < end:
            raise StoreUnavailable(f"the connection broke while {self._url} was read", f"{end - offset} bytes were still to come.")
