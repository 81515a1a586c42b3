"""Sets of whole numbers as ranges: a million segments that follow each other take the room of one."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Range(NamedTuple):
    """Whole numbers from the first to the last, both in it."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many numbers."""
        return self.last - self.first + 1


class Ranges:
    """A set of whole numbers. Its memory goes with the gaps in it, about 100 bytes for each, and not with the numbers."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Add a number, or all from the first to the last; in any order, fastest in ascending."""
        last = first if last is None else last
        if self._lasts and first == self._lasts[-1] + 1:
            self._lasts[-1] = last
            return
        begin = bisect_left(self._lasts, first - 1)
        end = bisect_right(self._firsts, last + 1)
        if begin < end:
            first, last = min(first, self._firsts[begin]), max(last, self._lasts[end - 1])
        self._firsts[begin:end] = [first]
        self._lasts[begin:end] = [last]

    def __contains__(self, number: int) -> bool:
        at = bisect_left(self._lasts, number)
        return at < len(self._lasts) and self._firsts[at] <= number

    def __iter__(self) -> Iterator[Range]:
        return map(Range, self._firsts, self._lasts)

    def __bool__(self) -> bool:
        return bool(self._firsts)

    @property
    def total(self) -> int:
        """How many numbers are in the set."""
        return sum(one.length for one in self)

    @property
    def first(self) -> int:
        """The lowest number of a set that has one."""
        return self._firsts[0]

    @property
    def last(self) -> int:
        """The highest number of a set that has one."""
        return self._lasts[-1]

    def gaps(self) -> Iterator[Range]:
        """Yield what is absent between the lowest and the highest number."""
        for last, first in zip(self._lasts, self._firsts[1:], strict=False):
            yield Range(last + 1, first - 1)

    def first_missing(self, first: int, last: int) -> int | None:
        """The lowest number from ``first`` to ``last`` that is not in the set."""
        at = bisect_left(self._lasts, first)
        missing = self._lasts[at] + 1 if at < len(self._lasts) and self._firsts[at] <= first else first
        return missing if missing <= last else None

    def total_below(self, number: int) -> int:
        """How many numbers of the set are lower than this one."""
        return sum(min(last, number - 1) - first + 1 for first, last in self if first < number)
