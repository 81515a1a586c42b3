"""``wal-receive``: WAL into the store while it is written, by streaming replication.

``pg_receivewal`` receives into a directory, and this pushes what is finished there and puts what is not.
A slot makes the server keep what was not received yet. Works from any host that may connect for
replication, needs no archive_command, and bears one beside it: both store the same bytes.
"""

from __future__ import annotations

from wal_e.errors import Terminated, WaleError
from wal_e.log import Logger
from wal_e.operators.receive_push import Pusher
from wal_e.operators.receive_report import Reporter
from wal_e.operators.receive_stream import Receiver
from wal_e.operators.spool import Spool
from wal_e.pipeline import pool
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wal_e.archive.archive import Archive
    from wal_e.operators.receive_start import Gaps

LOG = Logger(__name__)


class ReceiveOptions(NamedTuple):
    """The slot's name, seconds between puts of what is unfinished, segments pushed at once, how many may wait, gaps, path of metrics or ""."""

    slot: str
    partial_interval_s: float
    lanes: int
    backlog_limit: int
    gaps: Gaps
    metrics_path: str


def receive(archive: Archive, directory: str, options: ReceiveOptions, environ: Mapping[str, str]) -> None:
    """Receive and push until a signal ends this; then put and push what is there once more.

    Raises: Terminated; LockHeld, TargetRefused, ToolMissing; WalGap, WrongCluster, WalConflict and what else cannot pass.
    """
    spool = Spool(directory)
    pusher = Pusher(archive, spool, options.lanes, options.backlog_limit)
    receiver = Receiver(archive, spool, environ, options.slot, options.gaps, pusher.introduce)
    reporter = Reporter(spool, pusher, options.slot, environ, options.metrics_path)
    reporter.publish(None)
    LOG.info(
        f"receiving WAL through the slot {options.slot} into {spool.directory}",
        f"Finished segments go to {archive.store.url}, the unfinished one every {options.partial_interval_s:g} s.",
        action="wal-receive",
    )
    loops: list[Callable[[], None]] = [receiver.run, receiver.watch, pusher.run, lambda: pusher.run_partials(options.partial_interval_s), reporter.run]
    try:
        for outcome in pool.run(_call, loops, len(loops)):
            outcome.value()
    except (Terminated, WaleError):
        pusher.finish()
        raise


def _call(loop: Callable[[], None]) -> None:
    loop()
