"""Call again after temporary trouble, within a number of attempts and a deadline.

Waits grow exponentially with "full jitter": a random part of a doubling ceiling, so that many
clients of a store that was away do not come back in step. No wait passes without a notice.
"""

from __future__ import annotations

import os
import time

from wal_e.errors import DamageError, StoreUnavailable, WaleError
from wal_e.log import Logger
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from wal_e.settings import Settings

    T = TypeVar("T")

_log = Logger(__name__)


def _never() -> bool:
    return False


class Policy(NamedTuple):
    """How often and for how long to try: attempts in all, seconds in all, bounds of one wait.

    ``is_over`` is asked before each wait whether waiting has no sense any more.
    """

    attempts: int
    deadline_s: float
    first_delay_s: float = 0.1
    max_delay_s: float = 20
    is_over: Callable[[], bool] = _never


class Effort(NamedTuple):
    """How hard to try when a store is asked to change something, and when it is only read."""

    writes: Policy
    reads: Policy

    @classmethod
    def of(cls, settings: Settings) -> Effort:
        """The effort that the settings ask for."""
        return cls(Policy(settings.retries, settings.push_deadline_s), Policy(settings.retries, settings.fetch_deadline_s))


HASTY = Effort(Policy(3, 10), Policy(3, 10))  # for tidying up after a failure or a signal, which must not hold up the end


def fraction() -> float:
    """Draw a random number from 0 up to 1, without the price of importing ``random``."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def log_wait(error: WaleError, delay_s: float) -> None:
    """Log why and for how long the program waits before it tries again."""
    _log.warning(f"{error.message}; trying again in {delay_s:.1f} s", error.detail, error.hint)


def once_more(fetch: Callable[[], T]) -> T:
    """Return what the call returns; what arrives damaged is fetched a second time, for it may have happened on the way.

    Raises: DamageError, when it is damaged again.
    """
    try:
        return fetch()
    except DamageError as damage:
        _log.warning(f"{damage.message}; fetching it once more", damage.detail)
    return fetch()


def retrying(
    call: Callable[[], T],
    policy: Policy,
    *,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    jitter: Callable[[], float] = fraction,
    notice: Callable[[WaleError, float], object] = log_wait,
) -> T:
    """Return what the call returns, calling again as long as its errors are transient.

    The last wait is cut so that the last attempt starts at the deadline. A wait that the store asks
    for is kept; after a stale connection the second attempt comes at once. ``jitter`` gives numbers
    from 0 to 1; ``notice`` is told the error and the seconds before each wait.

    Raises: the last error, when it is not transient, or the attempts or the deadline are used up, or waiting has no sense.
    """
    deadline = clock() + policy.deadline_s
    ceiling_s = min(policy.first_delay_s, policy.max_delay_s)
    attempt = 1
    while True:
        try:
            return call()
        except WaleError as error:
            left_s = deadline - clock()
            if not error.transient or attempt >= policy.attempts or left_s <= 0 or policy.is_over():
                raise
            wanted_s = error.wait_s if isinstance(error, StoreUnavailable) else None
            if wanted_s is None or (wanted_s == 0 and attempt > 1):
                wanted_s = jitter() * ceiling_s
            delay_s = min(wanted_s, left_s)
            notice(error, delay_s)
        sleep(delay_s)
        ceiling_s = min(2 * ceiling_s, policy.max_delay_s)
        attempt += 1
