"""Where receiving begins: after what was received before, else after what the store has, else where the slot keeps WAL.

The slot alone does not tell. It moves on with what was flushed into the receiver's directory; when that
is lost with its host, WAL that was not stored yet lies before the slot. The server may still have it.
"""

from __future__ import annotations

from functools import partial

from wal_e.errors import StoreError, WalGap, WrongCluster
from wal_e.log import Logger
from wal_e.operators.inventory import wal_files
from wal_e.postgres import monitor, replication
from wal_e.postgres.wal import Lsn, segment_start, segment_timeline, wal_kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Literal

    from wal_e.archive.archive import Archive
    from wal_e.operators.spool import Spool
    from wal_e.postgres.replication import Lineage, Upstream

    Gaps = Literal["refuse", "accept"]

LOG = Logger(__name__)

_GAP_HINT = (
    "Nothing was skipped. If something else can still store that WAL (see wal-e wal-verify, and wal-push --missing on the server), start again afterwards. "
    "Else recovery cannot pass the gap: start with an empty directory and --accept-gap, and make a base backup at once."
)


def prepare(archive: Archive, spool: Spool, environ: Mapping[str, str], slot_name: str, gaps: Gaps) -> Upstream:
    """See whom we receive from and that it may be stored here; make the slot; decide where to begin.

    ``gaps`` says whether WAL that the store lacks and the slot does not keep may be left out.

    Raises: WrongCluster, WalGap; ServerUnavailable, ServerRefused; LocalFileError; what the store raises.
    """
    upstream = replication.identify(environ)
    _require_same_cluster(spool, upstream)
    spool.tidy(upstream.lineage.segment_size)
    is_empty = not (spool.finished() or spool.partials())
    try:
        archive.claim(upstream.system_identifier)
    except StoreError:
        if is_empty:
            raise  # where to begin depends on what is stored
    kept_from = _slot_start(environ, slot_name, gaps) or upstream.lsn
    if is_empty:
        still_sends = partial(replication.still_sends, environ)
        spool.begin_with(first_segment(archive, upstream.lineage, kept_from, gaps, still_sends))
    return upstream


def _require_same_cluster(spool: Spool, upstream: Upstream) -> None:
    here = spool.system_identifier()
    if here not in (None, upstream.system_identifier):
        raise WrongCluster(
            "the server and the directory belong to different clusters",
            f"The server has system identifier {upstream.system_identifier}; {spool.directory} holds WAL of {here}.",
            "Check PGHOST, PGPORT and PGSERVICE, and the directory on the command line.",
        )


def _slot_start(environ: Mapping[str, str], slot_name: str, gaps: Gaps) -> Lsn | None:
    """Make the slot if it is not there; return from where it keeps WAL, None when it has not begun to."""
    with monitor.connect(environ) as server:
        slot = server.slot(slot_name)
        if slot is not None and slot.wal_status == "lost":
            if gaps == "refuse":
                raise WalGap(
                    f"the server removed WAL that the replication slot {slot_name} should have kept",
                    "Nobody received for so long that max_slot_wal_keep_size was exceeded.",
                    _GAP_HINT,
                )
            server.drop_slot(slot_name)
            slot = None
        if slot is None:
            server.create_slot(slot_name)
            slot = server.slot(slot_name)
            LOG.info(f"the replication slot {slot_name} was created", "The server keeps WAL for it from now on.", action="wal-receive")
    return slot.restart_lsn if slot else None


def first_segment(archive: Archive, lineage: Lineage, kept_from: Lsn, gaps: Gaps, still_sends: Callable[[int, Lsn], bool]) -> str:
    """Name the first segment to receive into an empty directory: the slot's, or an earlier one that follows what is stored.

    ``still_sends`` tells whether the server has WAL of a timeline from a position on.

    Raises: WalGap when it does not, unless gaps are accepted; what the store raises.
    """
    first = kept_from - kept_from % lineage.segment_size
    name = lineage.segment_at(first)
    if gaps == "accept" or first < lineage.segment_size or archive.has_wal(lineage.segment_at(first - lineage.segment_size)):
        return name
    newest = max((start for start in _stored_starts(archive, lineage) if start < first), default=None)
    if newest is None:
        return name
    wanted = lineage.segment_at(newest + lineage.segment_size)
    if not still_sends(segment_timeline(wanted), segment_start(wanted, lineage.segment_size)):
        raise WalGap(
            f"neither the store nor the server has the WAL from {wanted} on",
            f"The slot keeps WAL from {kept_from} on. What lies before it was received into a directory that was lost, or never.",
            _GAP_HINT,
        )
    LOG.info(
        f"receiving begins with {wanted}, which the store lacks and the server still has", f"The slot keeps WAL from {kept_from} on.", action="wal-receive"
    )
    return wanted


def _stored_starts(archive: Archive, lineage: Lineage) -> Iterator[int]:
    """Yield the positions of stored segments that the server's history is made of."""
    for name, _ in wal_files(archive):
        if name is not None and wal_kind(name) == "segment":
            start = segment_start(name, lineage.segment_size)
            if lineage.segment_at(start) == name:
                yield start
