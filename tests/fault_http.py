"""HTTP/1.1 messages for the fault proxy.

Framing (RFC 9112) is understood just far enough to know where bodies end; a chunked body is chunked anew, piece by piece.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct

_PIECE_BYTES = 256 * 1024
_CRLF = b"\r\n"


class Head:
    """A start line and its fields, in their order and spelling."""

    def __init__(self, text):
        self.start, *lines = text.split("\r\n")
        self.fields = [(name, value.strip()) for name, value in (line.split(":", 1) for line in lines)]
        self.trailers = b""

    def get(self, name):
        return ", ".join(value for known, value in self.fields if known.lower() == name.lower())

    def set(self, name, value):
        self.fields = [*((known, kept) for known, kept in self.fields if known.lower() != name.lower()), (name, value)]

    def encoded(self):
        lines = [self.start, *(f"{name}: {value}" for name, value in self.fields), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    @property
    def status(self):
        return int(self.start.split(" ")[1])

    @property
    def expects(self):
        return self.get("Expect").lower() == "100-continue"

    @property
    def chunked(self):
        return "chunked" in self.get("Transfer-Encoding").lower()

    @property
    def length(self):
        return int(self.get("Content-Length")) if self.get("Content-Length") else None


class Wire:
    """A socket with what was read ahead of it."""

    def __init__(self, sock):
        self.sock = sock
        self.ahead = b""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def some(self, most=_PIECE_BYTES):
        """Return what is there, at least a byte."""
        data = self.ahead or self.sock.recv(_PIECE_BYTES)
        if not data:
            raise EOFError("the peer closed its connection")
        self.ahead = data[most:]
        return data[:most]

    def until(self, mark):
        """Return what comes before a mark, and pass the mark."""
        while mark not in self.ahead:
            data = self.sock.recv(_PIECE_BYTES)
            if not data:
                raise EOFError("the peer closed its connection")
            self.ahead += data
        found, self.ahead = self.ahead.split(mark, 1)
        return found

    def head(self):
        return Head(self.until(_CRLF * 2).decode("latin-1"))

    def open_within(self, wait_ms):
        """Whether neither end closes it in that time."""
        descriptor = self.sock.fileno()
        if descriptor < 0:
            return False
        watch = select.poll()
        watch.register(descriptor, select.POLLRDHUP)
        return not watch.poll(wait_ms)

    def close(self, how):
        if how == "rst":
            with contextlib.suppress(OSError):
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def readable(wires):
    """Wait until a wire has something to read, be it its end, and return those that have."""
    if ahead := [wire for wire in wires if wire.ahead]:
        return ahead
    watch = select.poll()
    for wire in wires:
        watch.register(wire.sock, select.POLLIN)
    ready = [number for number, _ in watch.poll()]
    return [wire for wire in wires if wire.sock.fileno() in ready]


def body(wire, head, *, is_answer=False):
    """Read a body without its framing, as it comes; an answer that does not say how long it is ends with its connection."""
    if head.chunked:
        while left := int(wire.until(_CRLF).split(b";")[0], 16):
            while left:
                piece = wire.some(left)
                left -= len(piece)
                yield piece
            wire.until(_CRLF)
        while trailer := wire.until(_CRLF):
            head.trailers += trailer + _CRLF
    elif head.length is not None:
        left = head.length
        while left:
            piece = wire.some(left)
            left -= len(piece)
            yield piece
    elif is_answer:
        with contextlib.suppress(EOFError):
            while True:
                yield wire.some()


def framed(head, pieces):
    for piece in filter(None, pieces):
        yield b"%x\r\n%b\r\n" % (len(piece), piece) if head.chunked else piece
    if head.chunked:
        yield b"0\r\n" + head.trailers + _CRLF
