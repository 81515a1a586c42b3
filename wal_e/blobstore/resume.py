"""Reading on after a break: at the byte where it stopped."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Protocol, TypeVar

    T = TypeVar("T")

    class Retry(Protocol):
        """Calls again after transient trouble."""

        def __call__(self, call: Callable[[], T], /) -> T:
            """Return what the call returns."""


def resumed(from_offset: Callable[[int], Iterator[bytes]], start: int, retry: Retry) -> Iterator[bytes]:
    """Yield the bytes from an offset on; ``from_offset`` is asked again when its stream breaks.

    Attempts and deadline are counted anew from each chunk that arrives.
    """
    offset = start
    stream: Iterator[bytes] | None = None

    def next_chunk() -> bytes | None:
        nonlocal stream
        try:
            if stream is None:
                stream = from_offset(offset)
            return next(stream, None)
        except BaseException:
            stream = None
            raise

    while (chunk := retry(next_chunk)) is not None:
        offset += len(chunk)
        yield chunk
