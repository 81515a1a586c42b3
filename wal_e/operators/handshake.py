"""The hand-shake between ``wal-push`` and the resident archiver, ``wal-archive``.

The archiver listens on ``pg_wal/.wal-e/archiver.sock``, which only the user that runs it may use. The client names a file
and says how it would store it; the answer comes when the file is stored for good, or cannot be::

    request    1  "push"  name  device  inode  settings  deadline_s         or: 1 "ping"
    replies    1  "working"  why it takes so long, or nothing       every few seconds
               1  "stored"
               1  "other"  why it is not this archiver's business
               1  "failed" or "dropped"  class  message  detail  hint

A message is four bytes of length, big-endian, and fields of UTF-8 with NUL between them; the first field is the version.
Whoever sees anything else hangs up, and a client that gets no answer does the work itself: pushing twice is safe.

``wal-push`` runs once per segment for years, so the client imports next to nothing: ``_socket`` and ``_blake2`` are what
``socket`` and ``hashlib`` are made of, at a tenth of their price.
"""

from __future__ import annotations

import os
import sys
import time

from wal_e import errors
from wal_e.errors import StoreUnavailable, WaleError
from wal_e.log import Logger
from wal_e.settings import TABLE, VENDOR_TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket as Socket
    from collections.abc import Callable

    from wal_e.settings import Settings

LOG = Logger(__name__)

DIRECTORY = ".wal-e"
SOCKET = "archiver.sock"
VERSION = "1"
MAX_MESSAGE_BYTES = 64 * 1024
MAX_TEXT = 8000  # characters of one field
MAX_PATH_BYTES = 107  # sun_path of unix(7) has 108 bytes, with a NUL at the end
BEAT_S = 2.0  # the archiver says at least so often that it is alive
SILENCE_S = 15.0  # after which the client takes it for hung
SLACK_S = 10.0  # beyond the deadline, which the archiver itself keeps

_NOT_WHERE_NOR_HOW = frozenset((
    "fetch_deadline_s", "push_deadline_s", "archive_timeout_s", "no_rename", "backlog_limit", "retries", "fetch_status_temporary",
    "fetch_status_failure", "log_destination", "syslog_facility", "log_level", "connect_timeout_s", "read_timeout_s",
))  # fmt: skip
_FOREIGN_VARIABLES = ("AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_HOST", "GNUPGHOME")


def pushed_by_archiver(settings: Settings, path: str) -> bool:
    """Let the resident archiver push a file; False when there is none, or it is not its business.

    Raises: the error that the archiver met, StoreUnavailable when the deadline has passed.
    """
    directory, name = os.path.split(path)
    try:
        found = os.stat(path)
        client = connect(os.path.join(directory, DIRECTORY), SILENCE_S)
    except OSError:
        return False
    try:
        if not _is_ours(client):
            return False
        request = ("push", name, str(found.st_dev), str(found.st_ino), fingerprint(settings), str(settings.push_deadline_s))
        send(client, *request)
        return _understood(client, path, settings.push_deadline_s + SLACK_S)
    except OSError:
        LOG.warning("the resident archiver hung up or is silent", f"{name} is pushed without it.", "See the log of wal-archive.", action="push-wal", seg=name)
        return False
    finally:
        client.close()


def archiver_answers(pg_wal: str) -> bool:
    """Whether a resident archiver works on this ``pg_wal`` and answers."""
    try:
        client = connect(os.path.join(pg_wal, DIRECTORY), 2.0)
        try:
            send(client, "ping")
            return receive(client) == [VERSION, "here"]
        finally:
            client.close()
    except OSError:
        return False


def _understood(client: Socket, path: str, deadline_s: float) -> bool:
    """Wait for the last reply; tell whether the file is stored. Raises: what the archiver met, OSError."""
    directory, name = os.path.split(path)
    deadline, told = time.monotonic() + deadline_s, False
    while True:
        reply = receive(client)
        if reply is None:
            raise ConnectionError("no answer")
        version, kind, *rest = [*reply, "", ""][: max(len(reply), 2)]
        if version != VERSION or (kind, len(rest)) not in (("working", 1), ("stored", 0), ("other", 1), ("failed", 4), ("dropped", 4)):
            LOG.info("the resident archiver is of another version", f"{name} is pushed without it.", action="push-wal", seg=name)
            return False
        if kind == "stored":
            return True
        if kind == "other":
            LOG.info("the resident archiver does not push this file", rest[0], action="push-wal", seg=name)
            return False
        if kind == "failed":
            raise _rebuilt(*rest)
        if kind == "dropped":
            LOG.error(_rebuilt(*rest), seg=name)
            return True
        _require_patience(directory, name, rest[0], deadline)
        if rest[0] and not told:
            told = True
            LOG.warning(f"{name} waits for the resident archiver", rest[0], action="push-wal", seg=name)


def _require_patience(directory: str, name: str, reason: str, deadline: float) -> None:
    """Raise StoreUnavailable when there is no time to wait any longer."""
    from wal_e.postgres.postmaster import is_stopping

    if time.monotonic() > deadline:
        raise StoreUnavailable(f"the resident archiver did not store {name} in time", reason)
    if reason and is_stopping(directory):
        raise StoreUnavailable(f"{name} is not stored, and the server is shutting down", reason, "PostgreSQL will ask again after its next start.")


def _rebuilt(kind: str, message: str, detail: str, hint: str) -> WaleError:
    """The error as the archiver had it; one of a class that is unknown here is a plain one."""
    found = getattr(errors, kind, None)
    if isinstance(found, type) and issubclass(found, WaleError):
        return found(message, detail, hint)
    return WaleError(message, detail, hint)


def connect(directory: str, timeout_s: float) -> Socket:
    """Connect to the archiver whose directory this is. Raises: OSError when there is none."""
    os.stat(os.path.join(directory, SOCKET))  # without one, which is the rule, nothing need be imported
    import _socket

    client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        client.settimeout(timeout_s)
        with_short_path(directory, SOCKET, client.connect)
    except OSError:
        client.close()
        raise
    return client


def _is_ours(client: Socket) -> bool:
    """Whether the listener runs as the same user: no other one is believed when it says that a file is stored."""
    import _socket

    credentials = client.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return int.from_bytes(credentials[4:8], sys.byteorder) == os.geteuid()


def with_short_path(directory: str, name: str, call: Callable[[str], object]) -> None:
    """Call with the path of a socket; through a descriptor of its directory where the path is too long for a socket. Raises: OSError."""
    path = os.path.join(directory, name)
    if len(os.fsencode(path)) <= MAX_PATH_BYTES:
        call(path)
        return
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call(f"/proc/self/fd/{fd}/{name}")
    finally:
        os.close(fd)


def fingerprint(settings: Settings) -> str:
    """A digest of everything that decides where and how a file is stored: equal for two programs that do the same.

    Raises: ConfigurationError.
    """
    import _blake2

    rows = [(row.field, str(getattr(settings, row.field))) for row in (*TABLE, *VENDOR_TABLE) if row.field not in _NOT_WHERE_NOR_HOW]
    foreign = sorted((name, value) for name, value in os.environ.items() if name.startswith(_FOREIGN_VARIABLES))
    text = repr((settings.prefix, rows, foreign))
    return _blake2.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=32).hexdigest()


def send(peer: Socket, *fields: str) -> None:
    """Send one message. Raises: OSError."""
    texts = (field.replace("\0", "")[:MAX_TEXT] for field in (VERSION, *fields))
    payload = "\0".join(texts).encode("utf-8", "surrogateescape")
    peer.sendall(len(payload).to_bytes(4, "big") + payload)


def receive(peer: Socket) -> list[str] | None:
    """Return the fields of one message; None at the end, or when what came is none. Raises: OSError, TimeoutError among them."""
    header = _received(peer, 4)
    size = int.from_bytes(header, "big")
    if len(header) < 4 or not 0 < size <= MAX_MESSAGE_BYTES:
        return None
    payload = _received(peer, size)
    return payload.decode("utf-8", "surrogateescape").split("\0") if len(payload) == size else None


def _received(peer: Socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := peer.recv(size - len(data))):
        data += more
    return data
