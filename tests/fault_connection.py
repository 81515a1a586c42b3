"""One client's connection through the fault proxy, its twin to the server, and what passes between them."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import time

from fault_http import Head, Wire, body, framed, readable
from fault_rules import Severed

_JSON_MAX_BYTES = 1024 * 1024


class Connection:
    """A client's connection, its twin to the server, and the request that is under way."""

    def __init__(self, proxy, number, sock):
        self._proxy = proxy
        self._number = number
        self._client = Wire(sock)
        self._server = None
        self._head = None
        self._actions = []
        self._persists = True
        self.record = None

    def run(self):
        how = "fin"
        try:
            while self._persists and self._next_request():
                self._exchange()
        except Severed as cut:
            how = str(cut)
        except (EOFError, OSError) as error:
            if self.record:
                self.record.broken = repr(error)
            how = "rst" if isinstance(error, ConnectionResetError) else "fin"
        finally:
            if self.record and self.record.end == math.inf:
                self.record.end = time.monotonic()
            for wire in self._wires():
                wire.close(how)

    def wake(self):
        """End both connections under the thread that waits on them; that one closes them."""
        for wire in self._wires():
            with contextlib.suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)

    def client_stays(self):
        return self._client.open_within(0)

    def _wires(self):
        return [wire for wire in (self._client, self._server) if wire]

    # For actions.

    def note(self, action):
        if action not in self.record.faults:
            self.record.faults.append(action)

    def sleep(self, seconds):
        self._proxy.stopping.wait(seconds)

    def hold(self, stall):
        self.note(stall)
        stall.reached.set()
        while not stall.released.is_set():
            if not self._client.open_within(20):
                raise EOFError("the client left a stalled request")

    def answer(self, status, content, headers):
        if self._head.expects:
            self._persists = False  # its body may come or not
        else:
            for _ in self._request_body():
                pass
        head = Head(f"HTTP/1.1 {status} Fault")
        head.fields = [*headers.items(), ("Content-Length", str(len(content)))]
        self._send_answer(head, [] if self.record.method == "HEAD" else [content])

    # One request, in order.

    def _next_request(self):
        """Wait for a request; false when a side has closed the idle connection."""
        if self._server in readable(self._wires()):
            return False
        try:
            self._head = self._client.head()
        except (EOFError, ConnectionResetError):
            return False
        self.record, self._actions = self._proxy.begin(self._number, self._head)
        return True

    def _exchange(self):
        if any(action.before(self) for action in self._actions):
            return
        self._connect()
        if self._proxy.host:
            self._head.set("Host", self._proxy.host)
        self._server.sock.sendall(self._head.encoded())
        answer = self._answer_before_body()
        if answer:
            self._persists = False
        else:
            self._send_request_body()
            answer = self._server.head()
        while answer.status < 200:
            self._client.sock.sendall(answer.encoded())
            answer = self._server.head()
        self._pass_answer(answer)

    def _connect(self):
        if self._server is None:
            try:
                self._server = Wire(socket.create_connection(("127.0.0.1", self._proxy.upstream_port)))
            except OSError as error:
                raise RuntimeError(f"the upstream on port {self._proxy.upstream_port} cannot be reached") from error
        if self._proxy.stopping.is_set():
            raise EOFError("the proxy ends")

    def _answer_before_body(self):
        """Return the answer that came instead of ``100 Continue``; a client that waits for neither, or no longer, sends its body."""
        if not self._head.expects or self._server not in readable(self._wires()):
            return None
        answer = self._server.head()
        if answer.status != 100:
            return answer
        self._client.sock.sendall(answer.encoded())
        return None

    def _request_body(self):
        for piece in body(self._client, self._head):
            self.record.bytes_in += len(piece)
            yield piece

    def _send_request_body(self):
        server_listens = True
        for piece in framed(self._head, self._through_actions("request", self._request_body())):
            if server_listens:
                try:
                    self._server.sock.sendall(piece)
                except OSError:  # it may have answered and closed: then the client shall see that answer
                    server_listens = self._persists = False

    def _pass_answer(self, head):
        self.record.upstream_status = head.status
        bodiless = self.record.method == "HEAD" or head.status in (204, 304)
        pieces = iter(()) if bodiless else body(self._server, head, is_answer=True)
        for action in self._actions:
            action.answered(self, pieces)
        ours = f"//127.0.0.1:{self._proxy.port}"
        theirs = rf"//(?:127\.0\.0\.1|localhost):{self._proxy.upstream_port}\b"
        head.fields = [(name, re.sub(theirs, ours, value)) for name, value in head.fields]
        if "json" in head.get("Content-Type") and 0 < (head.length or 0) < _JSON_MAX_BYTES and not bodiless:
            content = re.sub(theirs.encode(), ours.encode(), b"".join(pieces))
            head.set("Content-Length", str(len(content)))
            pieces = iter([content])
        self._send_answer(head, pieces)

    def _send_answer(self, head, pieces):
        if not self._persists:
            head.set("Connection", "close")
        self.record.status = head.status
        self.record.end = time.monotonic()
        self._client.sock.sendall(head.encoded())
        for piece in framed(head, self._counted(self._through_actions("response", pieces))):
            self.record.end = time.monotonic()
            self._client.sock.sendall(piece)

    def _counted(self, pieces):
        for piece in pieces:
            self.record.bytes_out += len(piece)
            yield piece

    def _through_actions(self, side, pieces):
        for action in self._actions:
            pieces = action.body(self, side, pieces)
        return pieces
