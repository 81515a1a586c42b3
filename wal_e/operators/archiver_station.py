"""Where a resident archiver can be found: its lock and its socket beside the cluster, and the clients it attends to.

Both live in ``pg_wal/.wal-e``: ``archiver.lock``, held (flock) for life, so that there is one archiver per cluster, and
``archiver.sock``, put over whatever a killed predecessor left there. At most :data:`MAX_CLIENTS` are attended to at once; one more is
sent away and does its work itself. See :mod:`wal_e.operators.handshake` for what is said.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from threading import Thread
from typing import NamedTuple

from wal_e.errors import LockHeld, UsageError, local_error
from wal_e.operators import handshake

LOCK = "archiver.lock"
MAX_CLIENTS = 64
MAX_DEADLINE_S = 1e9
REQUEST_S = 5.0  # for a client to say what it wants

_Place = tuple[int, int]


class Request(NamedTuple):
    """A client's wish: the file by name, device and inode; the digest of its settings; for how long it will wait."""

    name: str
    device: int
    inode: int
    settings: str
    deadline_s: float


Answer = Callable[[Request], Generator[tuple[str, ...]]]


class Station:
    """The lock and the socket of the one archiver of a ``pg_wal``.

    Raises, when opened: LockHeld, UsageError, LocalFileError.
    """

    def __init__(self, pg_wal: str, answer: Answer) -> None:
        self.pg_wal = pg_wal
        self._answer = answer
        self._directory = os.path.join(pg_wal, handshake.DIRECTORY)
        self._socket = os.path.join(self._directory, handshake.SOCKET)
        self._clients = 0
        try:
            _require_owner(pg_wal)
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o755)
            self._lock = _locked(os.path.join(self._directory, LOCK))
            try:
                self._listener = _listening(self._directory)
            except OSError:
                os.close(self._lock)
                raise
            self._places = self._found()
        except OSError as error:
            raise local_error(error, f"listening in {self._directory}") from None
        Thread(target=self._receive, daemon=True).start()

    def is_intact(self) -> bool:
        """Whether lock and socket are still where clients and other archivers look for them."""
        try:
            return self._found() == self._places
        except OSError:
            return False

    def close(self) -> None:
        """Remove the socket, if it is still this one, and release the lock."""
        if self.is_intact():
            with suppress(OSError):
                os.unlink(self._socket)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        os.close(self._lock)

    def _found(self) -> list[_Place]:
        return [_place(os.stat(path)) for path in (os.path.join(self._directory, LOCK), self._socket)]

    def _receive(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                if self._listener.fileno() < 0 or not self.is_intact():
                    return
                time.sleep(0.1)  # out of descriptors, most likely: clients wait or go away
                continue
            if self._clients >= MAX_CLIENTS:
                client.close()
            else:
                self._clients += 1
                Thread(target=self._attend, args=(client,), daemon=True).start()

    def _attend(self, client: socket.socket) -> None:
        try:
            with client, suppress(OSError):
                client.settimeout(REQUEST_S)
                for reply in self._replies(handshake.receive(client)):
                    handshake.send(client, *reply)
        finally:
            self._clients -= 1

    def _replies(self, message: list[str] | None) -> Iterator[tuple[str, ...]]:
        """What to say to a message; nothing, and hang up, if it is none."""
        if not message:
            return
        if message == [handshake.VERSION, "ping"]:
            yield ("here",)
        elif request := _parsed(message):
            with closing(self._answer(request)) as replies:
                yield from replies
        else:
            yield ("unknown",)


def _parsed(message: list[str]) -> Request | None:
    if message[:2] != [handshake.VERSION, "push"] or len(message) != 7:
        return None
    name, device, inode, settings, deadline_s = message[2:]
    try:
        request = Request(name, int(device), int(inode), settings, float(deadline_s))
    except ValueError:
        return None
    return request if 0 <= request.deadline_s < MAX_DEADLINE_S else None


def _place(found: os.stat_result) -> _Place:
    return found.st_dev, found.st_ino


def _require_owner(pg_wal: str) -> None:
    """Refuse to work as another user than the server: it could not use what that one makes here."""
    owner = os.stat(pg_wal).st_uid
    if os.geteuid() != owner:
        raise UsageError(
            "wal-archive must run as the user that owns the data directory",
            f"{pg_wal} belongs to the user with the number {owner}; this process runs as {os.geteuid()}.",
            "Start it as that user, usually postgres.",
        )


def _locked(path: str) -> int:
    """Take the lock, on the file that others will find; return its descriptor. Raises: LockHeld, OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            flock(fd, LOCK_EX | LOCK_NB)
            if _place(os.stat(path)) == _place(os.fstat(fd)):
                return fd
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(fd)
            raise LockHeld(
                "another archiver works on this cluster",
                f"It holds {path}.",
                f"There is one wal-archive per cluster. To see it: fuser {path}",
            ) from None
        os.close(fd)


def _listening(directory: str) -> socket.socket:
    """Listen on a socket that appears ready, under its name, with nobody else's permission. Raises: OSError."""
    new = os.path.join(directory, handshake.SOCKET + ".new")
    with suppress(FileNotFoundError):
        os.unlink(new)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        handshake.with_short_path(directory, handshake.SOCKET + ".new", listener.bind)
        os.chmod(new, 0o600)
        listener.listen(MAX_CLIENTS)
        os.rename(new, os.path.join(directory, handshake.SOCKET))
    except OSError:
        listener.close()
        raise
    return listener
