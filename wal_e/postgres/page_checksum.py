"""The checksum of a page, of many at once: what ``pg_checksum_page()`` in ``storage/checksum_impl.h`` computes.

A page is rows of 32 words of 32 bits. Each column is summed on its own, with a variant of FNV-1a, and starts with a
constant of its own; two rows of zeros follow, so that the last words reach all bits; then the columns
are folded into one word, with the number of the block, and that into 16 bits, never 0. The checksum's own
field counts as 0. Columns and pages do not depend on each other, so numpy takes all of them in one step per row.
It holds no lock of the interpreter meanwhile.
"""

from __future__ import annotations

import numpy as np

TYPE_CHECKING = False
if TYPE_CHECKING:
    from numpy.typing import NDArray

COLUMNS = 32  # N_SUMS
_PRIME = np.uint32(16777619)  # FNV_PRIME
_SHIFT = np.uint32(17)
_BASE = np.array(
    [
        0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
        0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
        0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
        0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
    ],
    dtype=np.uint32,
)  # fmt: skip  # checksumBaseOffsets

_CHECKSUM_WORD = 2  # pd_checksum and pd_flags share the third word of a page
_FLAGS = np.uint32(0xFFFF0000)
_CHECKSUM_FIELD, _UPPER_FIELD = 4, 7  # pd_checksum and pd_upper, in units of 16 bits


def checksums(data: bytes | memoryview, block_size: int, first_block: int) -> NDArray[np.uint32]:
    """Compute the checksum of each whole page in the data; the first is block ``first_block`` of its relation."""
    number = len(data) // block_size
    rows = np.frombuffer(data, dtype="<u4", count=number * block_size // 4).reshape(number, -1, COLUMNS).transpose(1, 0, 2)
    sums = np.tile(_BASE, (number, 1))
    mixed = np.empty_like(sums)
    first = rows[0].copy()
    first[:, _CHECKSUM_WORD] &= _FLAGS
    _mix(sums, mixed, first)
    for row in rows[1:]:
        _mix(sums, mixed, row)
    for _ in range(2):
        _mix(sums, mixed, np.uint32(0))
    folded: NDArray[np.uint32] = np.bitwise_xor.reduce(sums, axis=1)
    folded ^= np.arange(first_block, first_block + number, dtype=np.uint32)
    return folded % np.uint32(65535) + np.uint32(1)


def wrong_pages(data: bytes | memoryview, block_size: int, first_block: int) -> list[int]:
    """Which of the whole pages in the data are not what their checksum says, by index, in order.

    A page of zeros was never written and is good; one that has no data (``pd_upper`` is 0) must be of zeros,
    as the server demands of each that it reads (``PageIsVerified()``).
    """
    number = len(data) // block_size
    if not number:
        return []
    fields = np.frombuffer(data, dtype="<u2", count=number * block_size // 2).reshape(number, -1)
    differs = fields[:, _CHECKSUM_FIELD] != checksums(data, block_size, first_block)
    differs |= fields[:, _UPPER_FIELD] == 0
    return [int(index) for index in np.flatnonzero(differs) if fields[index, _UPPER_FIELD] or fields[index].any()]


def _mix(sums: NDArray[np.uint32], mixed: NDArray[np.uint32], row: NDArray[np.uint32] | np.uint32) -> None:
    """Take one row into the sums; ``mixed`` is room to work in."""
    np.bitwise_xor(sums, row, out=mixed)
    np.right_shift(mixed, _SHIFT, out=sums)
    np.multiply(mixed, _PRIME, out=mixed)
    np.bitwise_xor(sums, mixed, out=sums)
