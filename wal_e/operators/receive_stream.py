"""The receiver and its life: started where it has to begin, started again when it ends, ended with us."""

from __future__ import annotations

import os
import signal
import time

from wal_e.errors import StoreError, WaleError
from wal_e.log import Logger
from wal_e.operators.outage import Outage, may_pass
from wal_e.operators.receive_start import prepare
from wal_e.pipeline import process
from wal_e.postgres import pg_receivewal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wal_e.archive.archive import Archive
    from wal_e.operators.receive_start import Gaps
    from wal_e.operators.spool import Spool
    from wal_e.pipeline.process import Process
    from wal_e.postgres.replication import Upstream

LOG = Logger(__name__)

LONGEST_PAUSE_S = 10.0
STEADY_S = 2.0  # a receiver that has run for so long was let in
PATIENCE_S = 5.0
POLL_S = 0.05


class Receiver:
    """Keeps ``pg_receivewal`` running; ``introduce`` is told who the server is, each time before it starts."""

    def __init__(self, archive: Archive, spool: Spool, environ: Mapping[str, str], slot: str, gaps: Gaps, introduce: Callable[[Upstream], None]) -> None:
        self._archive = archive
        self._spool = spool
        self._environ = environ
        self._slot = slot
        self._gaps = gaps
        self._introduce = introduce
        self._program = pg_receivewal.find_program()
        self._connection = pg_receivewal.CONNECTION_12
        self._outage = Outage("the server", LONGEST_PAUSE_S, told_after=0)
        self._store_outage = Outage("the store", LONGEST_PAUSE_S, told_after=1)
        self._running: Process | None = None
        self._started = 0.0

    def run(self) -> None:
        """Receive for ever. Raises: what cannot pass, WalGap and WrongCluster among it."""
        while True:
            try:
                self._introduce(prepare(self._archive, self._spool, self._environ, self._slot, self._gaps))
                self._store_outage.over()
                ended = self._receive()
            except WaleError as error:
                ended = error
            if not may_pass(ended):
                raise ended
            outage = self._store_outage if isinstance(ended, StoreError) else self._outage
            time.sleep(outage.failed(ended, ""))

    def watch(self) -> None:
        """Tell, for ever, when the server is back."""
        while True:
            time.sleep(STEADY_S / 4)
            if self._outage.lasts and self._running is not None and time.monotonic() - self._started > STEADY_S:
                self._outage.over()

    def _receive(self) -> WaleError:
        """Run the receiver to its end; return what that means."""
        argv = pg_receivewal.command(self._program, self._spool.directory, self._slot, self._connection)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        running = process.start(argv, null, null)
        self._archive.waits.watch(running)
        os.close(null)
        self._running, self._started = running, time.monotonic()
        try:
            status = self._archive.waits.reap(running)
            self._running = None
            said = process.stderr_text(running)
        finally:
            if self._running is not None:
                self._end(running)
            os.close(running.stderr)
        if "tcp_user_timeout" in said:
            self._connection = pg_receivewal.CONNECTION
        return pg_receivewal.explained(status, said)

    def _end(self, running: Process) -> None:
        """End the receiver as it wants to be ended, or, if that takes too long, at once: it loses nothing by that."""
        self._running = None
        patience_until = time.monotonic() + PATIENCE_S
        try:
            os.kill(running.pid, signal.SIGINT)
            while time.monotonic() < patience_until:
                os.kill(running.pid, 0)
                time.sleep(POLL_S)
            os.kill(running.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._archive.waits.reap(running)
