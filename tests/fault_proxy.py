"""A proxy between an SDK and a real store's server, that breaks what a test tells it to break.

It speaks plain HTTP/1.1 on 127.0.0.1, one upstream connection for each client connection, and passes bodies on as they come.
What it does not break, it leaves alone: the Host header (S3 signs it), keep-alive, ``Expect: 100-continue``, and the way a peer ends a
connection. Only addresses of the upstream in response headers and in small JSON bodies become its own, or clients would go round it.

    from fault_proxy import FaultProxy
    from fault_rules import CutEvery, Rule, slow_down

    with FaultProxy(port) as proxy:
        proxy.add(Rule(slow_down(), method="PUT", probability=0.05), Rule(CutEvery(20_000_000)))
        ...
        assert proxy.overlap > 1

Every rule counts for itself, and all that hit a request apply to it. Offsets are bytes of the body without its framing.
A fault of the proxy itself (or an upstream that is not there) fails the test at the end of the ``with``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import socket
import threading
import time

from fault_connection import Connection
from fault_rules import Record

_CLOSE_PATIENCE_S = 10


class FaultProxy:
    """A proxy on ``url``; ``log`` has a record of each request, ``clear`` forgets the rules and the log."""

    def __init__(self, upstream_port, *, host=None):
        self.upstream_port = upstream_port
        self.host = host
        self.log = []
        self.connections = 0
        self.peak_connections = 0
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._rules = []
        self._open = set()
        self._futures = []
        self._pool = concurrent.futures.ThreadPoolExecutor(512, thread_name_prefix="fault-proxy")
        self._port_holder = _bound(0)
        self.port = self._port_holder.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._listen()

    def add(self, *rules):
        with self._lock:
            self._rules.extend(rules)

    def clear(self):
        with self._lock:
            self._rules.clear()
            self.log.clear()

    @property
    def overlap(self):
        """The largest number of requests that were under way at one moment."""
        changes = sorted(change for record in list(self.log) for change in ((record.start, 1), (record.end, -1)))
        count = peak = 0
        for _, change in changes:
            count += change
            peak = max(peak, count)
        return peak

    @contextlib.contextmanager
    def refusing(self):
        """Refuse connections, and cut those there are."""
        self._stop_listening()
        self._cut_all()
        try:
            yield
        finally:
            self._listen()

    def begin(self, connection, head):
        """Record a request and return its record and the actions for it."""
        method, path, _ = head.start.split(" ")
        record = Record(connection, method, path, time.monotonic())
        with self._lock:
            self.log.append(record)
            return record, [rule.action for rule in self._rules if rule.hits(method, path)]

    def __enter__(self):
        return self

    def __exit__(self, _type, error, _traceback):
        self.stopping.set()
        self._stop_listening()
        self._cut_all()
        self._port_holder.close()
        done, hung = concurrent.futures.wait(self._futures, _CLOSE_PATIENCE_S)
        self._pool.shutdown(wait=not hung)
        faults = [fault for future in done if (fault := future.exception())]
        faults += [RuntimeError("a thread of the proxy did not end") for _ in hung]
        if faults and error is not None:
            error.add_note(f"and the proxy failed too: {faults}")
        elif faults:
            raise ExceptionGroup("the proxy failed", faults)

    def _listen(self):
        self._listener = _bound(self.port)
        self._listener.listen(128)
        self._acceptor = self._pool.submit(self._accept, self._listener)
        self._futures.append(self._acceptor)

    def _stop_listening(self):
        self._listener.shutdown(socket.SHUT_RDWR)  # a plain close would leave accept() waiting
        concurrent.futures.wait([self._acceptor], _CLOSE_PATIENCE_S)
        self._listener.close()

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return
                raise
            with self._lock:
                self.connections += 1
                connection = Connection(self, self.connections, sock)
                self._open.add(connection)
                self.peak_connections = max(self.peak_connections, sum(known.client_stays() for known in self._open))
            self._futures.append(self._pool.submit(self._serve, connection))

    def _serve(self, connection):
        try:
            connection.run()
        finally:
            with self._lock:
                self._open.remove(connection)

    def _cut_all(self):
        with self._lock:
            for connection in self._open:
                connection.wake()


def _bound(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    return sock
