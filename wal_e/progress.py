"""How far a long command has come: counters that lanes add to, and a line a minute."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

LINE_EVERY_S = 60.0


class Progress:
    """Bytes done of bytes expected; ``add`` may be called from native threads."""

    def __init__(self, total_bytes: int, clock: Callable[[], float]) -> None:
        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._clock = clock
        self._started = clock()
        self._next_line = self._started + LINE_EVERY_S

    def add(self, size: int) -> None:
        """Count bytes; an estimate, since threads may count at the same moment."""
        self.done_bytes += size

    @contextlib.contextmanager
    def attempt(self) -> Iterator[Callable[[int], None]]:
        """Count the bytes of one attempt; those of one that fails are taken back, for they come again."""
        counted = 0

        def count(size: int) -> None:
            nonlocal counted
            counted += size
            self.add(size)

        try:
            yield count
        except BaseException:
            self.add(-counted)
            raise

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return max(self._clock() - self._started, 1e-6)

    def line_due(self) -> str | None:
        """Return a sentence once a minute, else None."""
        if self._clock() < self._next_line:
            return None
        self._next_line += LINE_EVERY_S
        return self.line()

    def line(self) -> str:
        """How far it is, how fast, and how long it will take, in a sentence."""
        rate = self.done_bytes / self.seconds
        share = 100 * self.done_bytes / self.total_bytes if self.total_bytes else 0
        left_s = max(self.total_bytes - self.done_bytes, 0) / rate if rate else 0
        return f"{shown_bytes(self.done_bytes)} of {shown_bytes(self.total_bytes)} ({share:.0f}%), {shown_bytes(rate)}/s, about {shown_seconds(left_s)} to go"


def shown_bytes(size: float) -> str:
    """Bytes for a person: ``1.4 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def shown_seconds(seconds: float) -> str:
    """A duration for a person: ``1 h 04 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
