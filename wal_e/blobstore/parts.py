"""A stream of unknown length, cut into the parts that object services take.

A part is 8 MiB: above the 5 MiB that S3 wants of all but the last part, a multiple of the 256 KiB
that GCS wants. Parts double every 500, so that 12 GiB fit the 1000 segments of a Swift manifest, and
S3's 10,000 parts never run out before memory does. What is created is not cut up to 17 MiB, so that one request
stores a WAL segment of the usual size, even if no codec could shrink it.
"""

from __future__ import annotations

from io import BytesIO

from google_crc32c import extend

from wal_e.blobstore.service import CREATE, PUT, Part, Whole

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PART_BYTES = 8 << 20
UNCUT_BYTES = {PUT: PART_BYTES, CREATE: 17 << 20}
DOUBLING_PARTS = 500


class Cut:
    """Iterates over the parts of a stream: one alone if it is short, else parts of growing size. ``whole`` is known after the last."""

    def __init__(self, chunks: Iterable[bytes], uncut_bytes: int) -> None:
        self._chunks = chunks
        self._uncut_bytes = uncut_bytes
        self.whole = Whole(0, 0, 0)

    def __iter__(self) -> Iterator[Part]:
        buffer = BytesIO()  # joins chunks without a second copy of them
        limit = self._uncut_bytes
        number = offset = crc32c = 0
        for chunk in self._chunks:
            crc32c = extend(crc32c, chunk)
            left = memoryview(chunk)
            while buffer.tell() + len(left) > limit:
                room = limit - buffer.tell()
                buffer.write(left[:room])
                left = left[room:]
                whole, buffer, begin = buffer.getvalue(), BytesIO(), 0
                while len(whole) - begin >= (size := _part_bytes(number)):
                    yield Part(number, offset, whole[begin : begin + size], False)
                    number, offset, begin = number + 1, offset + size, begin + size
                buffer.write(whole[begin:])
                del whole
                limit = _part_bytes(number)
            buffer.write(left)
        rest = buffer.getvalue()
        self.whole = Whole(offset + len(rest), number + 1, crc32c)
        yield Part(number, offset, rest, True)


def _part_bytes(number: int) -> int:
    return PART_BYTES << (number // DOUBLING_PARTS)
