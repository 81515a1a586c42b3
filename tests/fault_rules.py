"""What the fault proxy can do to requests, and which of them it does it to."""

from __future__ import annotations

import math
import random
import re
import threading
from dataclasses import dataclass, field


class Severed(Exception):
    """A rule cuts the connections.

    "fin": all that was sent arrives, though a peer that still sends sees "rst" all the same. "rst": what is still in buffers may be lost.
    """


@dataclass(eq=False)
class Record:
    """One request: ``status`` went to the client, ``upstream_status`` came from the server; None if there was none.

    What is here was noted before the client could see it, so a test may look as soon as the client has its answer.
    ``end`` is the time of the last byte sent to the client, infinite before the first; ``broken`` says how a connection ended that no rule cut.
    """

    connection: int
    method: str
    path: str
    start: float
    end: float = math.inf
    status: int | None = None
    upstream_status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    faults: list = field(default_factory=list)
    broken: str = ""


class Action:
    """What happens to a request: each hook may change it, wait, or raise Severed."""

    def before(self, exchange):
        """Act on the head, before anything is forwarded; true if the request was answered."""
        return False

    def answered(self, exchange, pieces):
        """Act when the server's answer is there and nothing of it was passed on."""

    def body(self, exchange, side, pieces):
        """Pass on the body of side "request" or "response"."""
        return pieces


@dataclass(eq=False)
class Answer(Action):
    """Answer instead of the server, which hears nothing of the request."""

    status: int
    content: bytes = b""
    headers: dict = field(default_factory=dict)

    def before(self, exchange):
        exchange.note(self)
        exchange.answer(self.status, self.content, self.headers)
        return True


@dataclass(eq=False)
class Cut(Action):
    """Cut both connections when more than ``after`` bytes of a body want to pass."""

    after: int
    of: str = "response"
    how: str = "rst"

    def body(self, exchange, side, pieces):
        if side != self.of:
            yield from pieces
            return
        for at, piece in aligned(pieces, self.after):
            if at >= self.after:
                exchange.note(self)
                raise Severed(self.how)
            yield piece


@dataclass(eq=False)
class CutEvery(Action):
    """Cut a connection with each ``every`` bytes of body that passed, both ways: on it, or over all the connections of this action."""

    every: int
    how: str = "rst"
    over_all: bool = False

    def __post_init__(self):
        self._lock = threading.Lock()
        self._passed = {}

    def body(self, exchange, side, pieces):
        key = None if self.over_all else exchange.record.connection
        for piece in pieces:
            with self._lock:
                left = self.every - self._passed.get(key, 0)
                self._passed[key] = 0 if len(piece) >= left else self.every - left + len(piece)
            if len(piece) >= left:
                exchange.note(self)
                yield piece[:left]
                raise Severed(self.how)
            yield piece


@dataclass(eq=False)
class LoseAnswer(Action):
    """Let the server do the whole request, then cut instead of passing on its answer: was it done?"""

    how: str = "rst"

    def answered(self, exchange, pieces):
        for _ in pieces:
            pass
        exchange.note(self)
        raise Severed(self.how)


@dataclass(eq=False)
class Stall(Action):
    """Say nothing until ``released`` is set or the client leaves: before forwarding, or at an offset of a body."""

    after: int | None = None
    of: str = "response"
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def before(self, exchange):
        if self.after is None:
            exchange.hold(self)
        return False

    def body(self, exchange, side, pieces):
        if side != self.of or self.after is None:
            yield from pieces
            return
        for at, piece in aligned(pieces, self.after):
            if at == self.after:
                exchange.hold(self)
            yield piece


@dataclass(eq=False)
class Slow(Action):
    """Pass bodies at so many bytes a second, for each request."""

    bytes_per_second: int

    def body(self, exchange, side, pieces):
        exchange.note(self)
        step = max(1, self.bytes_per_second // 50)
        for piece in pieces:
            for start in range(0, len(piece), step):
                part = piece[start : start + step]
                exchange.sleep(len(part) / self.bytes_per_second)
                yield part


@dataclass(eq=False)
class Delay(Action):
    """Wait before the request is forwarded."""

    seconds: float

    def before(self, exchange):
        exchange.note(self)
        exchange.sleep(self.seconds)
        return False


@dataclass(eq=False)
class Corrupt(Action):
    """Flip the bits of the byte at an offset; lengths stay right."""

    at: int = 0
    of: str = "response"

    def body(self, exchange, side, pieces):
        for at, piece in aligned(pieces, self.at):
            if side == self.of and at == self.at:
                exchange.note(self)
                yield bytes([piece[0] ^ 0xFF]) + piece[1:]
            else:
                yield piece


def truncate(after):
    """End a response after so many bytes as if that were all, though its head promised more."""
    return Cut(after, how="fin")


def slow_down():
    """Answer as S3 does to too many requests."""
    content = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    return Answer(503, content, {"Content-Type": "application/xml"})


def too_many_requests(retry_after_s=1):
    """Answer as Google and Azure do to too many requests."""
    return Answer(429, headers={"Retry-After": str(retry_after_s)})


@dataclass(eq=False)
class Rule:
    """Which requests an action applies to.

    ``method`` matches whole and ``path`` (with its query) anywhere, as regular expressions. Of the requests that match, ``skip`` the first ones,
    take only the ``nth`` (from 1), ``every`` k-th, or each with a ``probability``; at most ``limit`` of them.
    """

    action: Action
    method: str = ".*"
    path: str = ""
    skip: int = 0
    nth: int | None = None
    every: int = 1
    probability: float = 1.0
    seed: int = 0
    limit: int | None = None
    matched: int = 0
    applied: int = 0

    def __post_init__(self):
        self._random = random.Random(self.seed)

    def hits(self, method, path):
        if not (re.fullmatch(self.method, method) and re.search(self.path, path)):
            return False
        self.matched += 1
        lucky = self._random.random() < self.probability
        chosen = self.matched > self.skip and self.nth in (None, self.matched) and (self.matched - self.skip) % self.every == 0
        hit = lucky and chosen and (self.limit is None or self.applied < self.limit)
        self.applied += hit
        return hit


def aligned(pieces, mark):
    """Yield each piece with its offset, splitting the one around ``mark`` there."""
    at = 0
    for piece in pieces:
        if at < mark < at + len(piece):
            yield at, piece[: mark - at]
            yield mark, piece[mark - at :]
        else:
            yield at, piece
        at += len(piece)
