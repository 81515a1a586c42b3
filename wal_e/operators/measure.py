"""Size and SHA-256 of a stream that passes by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator


class Measured:
    """Chunks that are counted and summed while they are consumed; ``size`` in bytes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self._hash = hashlib.sha256()
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    @property
    def sha256(self) -> str:
        """Hash of all chunks so far, in hex."""
        return self._hash.hexdigest()
