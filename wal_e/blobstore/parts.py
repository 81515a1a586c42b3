"""A stream of unknown length, cut into the parts that object services take.

A part is 8 MiB: above the 5 MiB that S3 wants of all but the last part, a multiple of the 256 KiB
that GCS wants. Parts double every 500, so that 12 GiB fit the 1000 segments of a Swift manifest, and
S3's 10,000 parts never run out before memory does. A stream of up to 17 MiB, a WAL segment
of the usual size that no codec could shrink for instance, is not cut: one request stores it.
"""

from __future__ import annotations

from google_crc32c import extend

from wal_e.blobstore.service import Part, Whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PART_BYTES = 8 << 20
UNCUT_BYTES = 17 << 20
DOUBLING_PARTS = 500


class Cut:
    """Iterates over the parts of a stream: one alone if it is short, else parts of growing size. ``whole`` is known after the last."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks
        self.whole = Whole(0, 0, 0)

    def __iter__(self) -> Iterator[Part]:
        buffer: list[bytes] = []
        buffered = number = offset = crc32c = 0
        limit = UNCUT_BYTES
        for chunk in self._chunks:
            crc32c = extend(crc32c, chunk)
            buffer.append(chunk)
            buffered += len(chunk)
            while buffered > limit:
                data, buffer = _taken(buffer, _part_bytes(number))
                buffered -= len(data)
                yield Part(number, offset, data, False)
                number, offset = number + 1, offset + len(data)
                limit = _part_bytes(number)
        self.whole = Whole(offset + buffered, number + 1, crc32c)
        yield Part(number, offset, b"".join(buffer), True)


def _part_bytes(number: int) -> int:
    return PART_BYTES << (number // DOUBLING_PARTS)


def _taken(buffer: list[bytes], size: int) -> tuple[bytes, list[bytes]]:
    """The first ``size`` bytes of the buffer, which holds more, and the rest of it."""
    taken: list[bytes] = []
    for position, chunk in enumerate(buffer):
        if len(chunk) > size:
            return b"".join([*taken, chunk[:size]]), [chunk[size:], *buffer[position + 1 :]]
        taken.append(chunk)
        size -= len(chunk)
    raise AssertionError("the buffer holds less than was asked for")
