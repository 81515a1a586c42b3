"""Which waiting WAL file an archiver pushes next; nothing here waits, reads a clock or touches a file.

History files come first, then segments in ascending order, as the server takes them; a file that somebody waits for comes
before those. A file that is refused is tried again at growing intervals and holds up nobody, with these exceptions, all about timelines:

- Files of a timeline are held back until its history is stored, so that no reader of the store finds segments that it cannot place. If
  the history is refused, those that are asked for go.
- Of two servers on one timeline (split brain) the second must not add to what the first one stored. So the first file of a timeline that is taken
  while no other of it is in flight is its scout: nothing follows before the scout was seen to be absent from the store, or has been dealt with. And
  when the store holds something else under its name, nothing later of the timeline goes until that is cured.

When the store is away, one file at a time is the probe, after growing waits with jitter, each time another one. The first success ends the outage.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from wal_e.postgres.wal import wal_kind

MAX_NAMES = 16384  # known at once, about 200 bytes each; more are found when some of these are done
FIRST_PROBE_S = 0.5
MAX_PROBE_S = 20.0
FIRST_REFUSAL_S = 5.0
MAX_REFUSAL_S = 300.0
MAX_CULPRIT_S = 60.0

_READY, _LATER, _FLYING = "ready", "later", "flying"


def server_order(name: str) -> tuple[bool, str]:
    """A sort key: the order in which the server takes files."""
    return wal_kind(name) != "history", name


class Outage(NamedTuple):
    """The store is away: since when, the ceiling of the next wait, when the next probe is due, which file is the probe now."""

    since: float
    ceiling_s: float
    probe_at: float
    probe: str | None


class Schedule:
    """The waiting files that are known, up to :data:`MAX_NAMES`, and what is being done about each. Moments are those of one clock, in seconds."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.outage: Outage | None = None
        self._jitter = jitter
        self._states: dict[str, str] = {}
        self._ready: dict[str, list[str]] = {}  # by timeline
        self._later: list[tuple[float, str]] = []
        self._asked: deque[str] = deque()
        self._wanted: set[str] = set()
        self._flying: dict[str, int] = {}  # by timeline, how many
        self._scouts: dict[str, str] = {}  # by timeline
        self._blockers: dict[str, set[str]] = {}  # by timeline
        self._tried: dict[str, None] = {}  # in this outage, in order
        self._refusals: dict[str, int] = {}
        self._culprits: dict[str, int] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._states

    def __len__(self) -> int:
        return len(self._states)

    def is_busy(self) -> bool:
        """Whether there are files to push now, or being pushed."""
        return any(state in (_READY, _FLYING) for state in self._states.values())

    def offer(self, names: Iterable[str]) -> None:
        """Take note of files that wait."""
        for name in names:
            if name not in self._states and len(self._states) < MAX_NAMES:
                self._make_ready(name)

    def want(self, name: str) -> None:
        """Put a file before all others: somebody waits for it."""
        self._wanted.add(name)
        if self._states.get(name) != _FLYING:
            self._states[name] = _READY
            self._asked.append(name)

    def leave(self, name: str) -> None:
        """Nobody waits for this file any more."""
        self._wanted.discard(name)

    def retain(self, names: set[str]) -> None:
        """Forget the files that do not wait any more, but for those that are being pushed or asked for."""
        for name in [name for name, state in self._states.items() if name not in names and name not in self._wanted and state != _FLYING]:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Take no more note of a file: it is stored, or gone."""
        self._land(name)
        for known in (self._states, self._refusals, self._culprits):
            known.pop(name, None)
        self._wanted.discard(name)
        self._blockers.get(_timeline(name), set()).discard(name)

    def take(self, now: float) -> str | None:
        """The next file to push now; None while there is none."""
        while self._later and self._later[0][0] <= now:
            due = heapq.heappop(self._later)[1]
            if self._states.get(due) == _LATER:
                self._make_ready(due)
        if self.outage is None:
            return self._next()
        if self.outage.probe is not None or now < self.outage.probe_at:
            return None
        name = self._next()
        if name is None and self._tried:
            self._retry_tried()
            name = self._next()
        self.outage = self.outage._replace(probe=name)
        return name

    def pause(self, now: float) -> float | None:
        """Seconds until there may be something to take without any other event; None for ever."""
        moments = [self._later[0][0]] if self._later else []
        if self.outage is not None and self.outage.probe is None and self.outage.probe_at > now:
            moments.append(self.outage.probe_at)
        return max(min(moments) - now, 0.001) if moments else None

    def needs_lookup(self, name: str) -> bool:
        """Whether others can follow this file as soon as it is known to be absent from the store."""
        return self._scouts.get(_timeline(name)) == name and len(self._states) > 1

    def absent(self, name: str) -> None:
        """Note that the store has nothing under this file's name, and so nothing later of its timeline."""
        if self._scouts.get(_timeline(name)) == name:
            del self._scouts[_timeline(name)]

    def refused(self, name: str, now: float) -> None:
        """Note that this file could not be pushed for a reason of its own: it comes again later."""
        self._land(name)
        count = self._refusals[name] = self._refusals.get(name, 0) + 1
        self._put_off(name, now + min(FIRST_REFUSAL_S * 2 ** min(count - 1, 20), MAX_REFUSAL_S))

    def conflicting(self, name: str, now: float) -> None:
        """Note that the store holds something else under this name: nothing later of the timeline may go."""
        self.refused(name, now)
        self._blockers.setdefault(_timeline(name), set()).add(name)

    def blocker(self, name: str) -> str | None:
        """The first conflicting file that this one must not overtake, if there is one."""
        return min((found for found in self._blockers.get(_timeline(name), ()) if found < name), default=None)

    def unavailable(self, name: str, now: float) -> None:
        """Note that this file was not pushed because the store is away."""
        is_probe = self.outage is not None and self.outage.probe == name
        self._land(name)
        self._states[name] = _READY
        self._tried[name] = None
        if self.outage is None:
            self._culprits[name] = self._culprits.get(name, 0) + 1
            self.outage = Outage(now, FIRST_PROBE_S, now + self._jitter() * FIRST_PROBE_S, None)
        elif is_probe:
            ceiling_s = min(2 * self.outage.ceiling_s, MAX_PROBE_S)
            self.outage = Outage(self.outage.since, ceiling_s, now + self._jitter() * ceiling_s, None)

    def answered(self, now: float) -> float | None:
        """Note that the store did what it was asked; return how many seconds it was away, if it was.

        A file that keeps ending the store's good times all alone is put off.
        """
        if self.outage is None:
            return None
        away_s = now - self.outage.since
        self.outage = None
        self._retry_tried()
        for name, count in self._culprits.items():
            if count > 1 and self._states.get(name) == _READY and name not in self._wanted:
                self._put_off(name, now + min(2.0**count, MAX_CULPRIT_S))
        return away_s

    def _next(self) -> str | None:
        for name in self._asked:
            if self._states.get(name) == _READY and not self._is_held(name, (_READY, _FLYING)):
                return self._fly(name)
        for line in sorted(self._ready):
            names = self._ready[line]
            while names:
                if self._states.get(names[0]) != _READY or (self.outage is not None and names[0] in self._tried):
                    heapq.heappop(names)
                elif self._is_held(names[0], (_READY, _FLYING, _LATER)):
                    break
                else:
                    return self._fly(heapq.heappop(names))
            else:
                del self._ready[line]
        return None

    def _is_held(self, name: str, history_states: tuple[str, ...]) -> bool:
        line = _timeline(name)
        return bool(line) and (line in self._scouts or self.blocker(name) is not None or self._states.get(f"{line}.history") in history_states)

    def _fly(self, name: str) -> str:
        line = _timeline(name)
        self._states[name] = _FLYING
        self._asked = deque(asked for asked in self._asked if asked != name)
        if line and line not in self._flying:
            self._scouts[line] = name
        self._flying[line] = self._flying.get(line, 0) + 1
        return name

    def _land(self, name: str) -> None:
        """End whatever goes on with a file."""
        line = _timeline(name)
        if self._states.get(name) == _FLYING:
            self._flying[line] -= 1
            if not self._flying[line]:
                del self._flying[line]
            self.absent(name)
        if self.outage is not None and self.outage.probe == name:
            self.outage = self.outage._replace(probe=None)

    def _make_ready(self, name: str) -> None:
        self._states[name] = _READY
        heapq.heappush(self._ready.setdefault(_timeline(name), []), name)

    def _put_off(self, name: str, until: float) -> None:
        self._states[name] = _LATER
        heapq.heappush(self._later, (until, name))

    def _retry_tried(self) -> None:
        tried, self._tried = self._tried, {}
        for name in tried:
            if self._states.get(name) == _READY:
                if name in self._wanted:
                    self._asked.append(name)
                self._make_ready(name)


def _timeline(name: str) -> str:
    """The timeline of a segment, as in its name; a history file is on none."""
    return "" if wal_kind(name) == "history" else name[:8]
