"""How far receiving is: a line in the log once a minute, and a file for a monitoring system."""

from __future__ import annotations

import time

from wal_e.errors import ServerUnavailable, WaleError, local_error
from wal_e.log import Logger
from wal_e.operators.metrics import Metric, exposition, publish
from wal_e.postgres import monitor, replication
from wal_e.postgres.pg_receivewal import PARTIAL, received_up_to
from wal_e.postgres.wal import Lsn, segment_start
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from wal_e.operators.receive_push import Pusher
    from wal_e.operators.spool import Spool

LOG = Logger(__name__)

LINE_EVERY_S = 60.0
METRICS_EVERY_S = 15.0


class Progress(NamedTuple):
    """How far the server is, what was received of that, what is stored, and from where on the slot keeps WAL, if that is known."""

    server: Lsn
    received: Lsn
    stored: Lsn
    kept_from: Lsn | None

    @property
    def behind_bytes(self) -> int:
        """How much of the server's WAL was not received yet."""
        return max(self.server - self.received, 0)

    @property
    def kept_bytes(self) -> int | None:
        """How much WAL the slot makes the server keep."""
        return None if self.kept_from is None else max(self.server - self.kept_from, 0)


class Reporter:
    """Tells the progress; ``metrics_path`` is empty where no file is wanted."""

    def __init__(self, spool: Spool, pusher: Pusher, slot: str, environ: Mapping[str, str], metrics_path: str) -> None:
        self._spool = spool
        self._pusher = pusher
        self._slot = slot
        self._environ = environ
        self._metrics_path = metrics_path

    def run(self) -> None:
        """Tell for ever. What hinders that hinders nothing else."""
        next_line = time.monotonic() + LINE_EVERY_S
        while True:
            time.sleep(METRICS_EVERY_S if self._metrics_path else LINE_EVERY_S)
            is_due = time.monotonic() >= next_line
            next_line += LINE_EVERY_S if is_due else 0
            try:
                progress = self._measured()
                self.publish(progress)
                if progress is not None and is_due:
                    self._log(progress)
            except WaleError as error:
                if is_due:
                    LOG.warning(f"the progress cannot be told: {error.message}", error.detail, error.hint, action="wal-receive")

    def measure(self) -> Progress | None:
        """Compare the server with what is here; None before anything was received. Raises: ServerUnavailable, ServerRefused, LocalFileError."""
        upstream = replication.identify(self._environ)
        with monitor.connect(self._environ) as server:
            slot = server.slot(self._slot)
        size = upstream.lineage.segment_size
        finished, partials, waiting = self._spool.finished(), self._spool.partials(), self._pusher.waiting()
        end_of_finished = Lsn(segment_start(finished[-1], size) + size) if finished else None
        received = self._received(partials[-1], size) if partials else None
        received = received or end_of_finished
        if received is None:
            return None
        stored = segment_start(waiting[0], size) if waiting else end_of_finished or segment_start(partials[0], size)
        return Progress(upstream.lsn, received, stored, slot.restart_lsn if slot else None)

    def publish(self, progress: Progress | None) -> None:
        """Replace the file for a monitoring system; what is not known is left out. Raises: LocalFileError, DiskFull."""
        if self._metrics_path:
            known = progress or Progress(Lsn(0), Lsn(0), Lsn(0), None)
            of_progress = [
                Metric("receive_server_position_bytes", "gauge", "Position of the server in its WAL.", int(known.server)),
                Metric("receive_received_position_bytes", "gauge", "Position up to which WAL was received.", int(known.received)),
                Metric("receive_stored_position_bytes", "gauge", "Position up to which WAL is stored in finished segments.", int(known.stored)),
                Metric("receive_behind_bytes", "gauge", "WAL of the server that was not received yet.", known.behind_bytes),
                Metric("receive_slot_kept_bytes", "gauge", "WAL that the replication slot makes the server keep.", known.kept_bytes),
            ]
            always = [
                Metric("receive_waiting_segments", "gauge", "Received segments that wait to be stored.", len(self._pusher.waiting())),
                Metric("receive_store_available", "gauge", "1 while the store answers, 0 while it is away.", int(not self._pusher.is_kept_waiting)),
                Metric("receive_server_available", "gauge", "1 while the server answers, 0 while it is away.", int(progress is not None)),
                Metric("receive_measured_timestamp_seconds", "gauge", "When this was written.", time.time()),
            ]
            publish(self._metrics_path, exposition("", [*(of_progress if progress else []), *always]))

    def _measured(self) -> Progress | None:
        try:
            return self.measure()
        except ServerUnavailable:
            return None  # whoever receives tells that

    def _received(self, segment: str, size: int) -> Lsn | None:
        path = self._spool.path(segment + PARTIAL)
        try:
            return received_up_to(path, segment, size)
        except FileNotFoundError:
            return None  # it was finished this moment
        except OSError as error:
            raise local_error(error, f"reading {path}") from None

    def _log(self, progress: Progress) -> None:
        kept = "" if progress.kept_bytes is None else f" The slot keeps {progress.kept_bytes} bytes on the server."
        LOG.info(
            f"received up to {progress.received}, {progress.behind_bytes} bytes behind the server",
            f"The server is at {progress.server}; all before {progress.stored} is stored; {len(self._pusher.waiting())} finished segments wait.{kept}",
            action="wal-receive",
        )
