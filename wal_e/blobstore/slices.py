"""A request's body in slices: a socket's time limit counts for one of them, not for megabytes on a slow line.

A body that is handed over whole goes to one ``sendall``, whose limit is that of the whole call, and which is the one for
connecting: at ten seconds for 8 MiB, a line below 0.8 MiB/s could never send it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SLICE_BYTES = 256 << 10


class Slices:
    """Iterates over views of the data; HTTP libraries take it as a body of known length."""

    def __init__(self, data: bytes) -> None:
        self._view = memoryview(data)

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), SLICE_BYTES):
            yield self._view[start : start + SLICE_BYTES]
