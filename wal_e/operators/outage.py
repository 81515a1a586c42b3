"""Trouble that may pass, told as often as a person can bear: when it begins, once a minute while it lasts, and when it is over."""

from __future__ import annotations

import time

from wal_e.errors import EXIT_NEVER, StoreError, WaleError
from wal_e.log import Logger
from wal_e.progress import shown_seconds
from wal_e.retry import fraction

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LOG = Logger(__name__)

LINE_EVERY_S = 60.0
FIRST_PAUSE_S = 0.5


def may_pass(error: WaleError) -> bool:
    """Whether trying again can help, now or after somebody has repaired a store, a server or a disk."""
    return error.transient or isinstance(error, StoreError) or error.status != EXIT_NEVER


class Outage:
    """The troubles with one party, "the store" or "the server"; pauses between attempts grow up to ``longest_pause_s``.

    So many failures in a row, ``told_after``, are no trouble yet: a connection had merely gone stale.
    """

    def __init__(self, party: str, longest_pause_s: float, told_after: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._party = party
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._told_after = told_after
        self._failures = 0
        self._since = self._next_line = 0.0
        self._told = False
        self._ceiling_s = FIRST_PAUSE_S

    @property
    def lasts(self) -> bool:
        """Whether the last attempt failed."""
        return self._failures > 0

    def failed(self, error: WaleError, consequence: str) -> float:
        """Take note of a failure, tell it if that is due, and return the seconds until the next attempt."""
        now = self._clock()
        if not self._failures:
            self._since = self._next_line = now
        self._failures += 1
        if self._failures > self._told_after and now >= self._next_line:
            lasting = f" for {shown_seconds(now - self._since)}" if self._told else ""
            detail = " ".join(part for part in (f"{error.message[:1].upper()}{error.message[1:]}.", error.detail, consequence) if part)
            LOG.warning(f"{self._party} is away{lasting}; trying again until it is back", detail, error.hint, action="wal-receive")
            self._next_line, self._told = now + LINE_EVERY_S, True
        pause_s = (0.5 + fraction() / 2) * self._ceiling_s
        self._ceiling_s = min(2 * self._ceiling_s, self._longest_pause_s)
        return pause_s

    def over(self) -> None:
        """Take note of a success, and tell it if there was trouble."""
        if self._told:
            LOG.info(f"{self._party} is back after {shown_seconds(self._clock() - self._since)}", action="wal-receive")
        self._failures, self._told, self._ceiling_s = 0, False, FIRST_PAUSE_S
