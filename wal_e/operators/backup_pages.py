"""Page checksums on the way into a backup: ``backup-push --verify-page-checksums``.

Lanes look at the pages while they read the files. A damaged page in the cluster is no reason to have no backup, so the
push goes on, warns, and records in the sentinel which pages these are.
"""

from __future__ import annotations

from wal_e.archive.sentinel import PageChecks
from wal_e.log import Logger
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.page import CHECKSUMS_ON, DamagedPages, LivePages, PageRanges, Suspect, require_numpy
from wal_e.postgres.wal import Lsn

LOG = Logger(__name__)

MAX_RECORDED = 100  # relations, and ranges of each, that the sentinel names


class PushedPages:
    """What all lanes find; each partition has a watch of its own, so that one that is pushed twice counts once."""

    def __init__(self, block_size: int, start: Lsn) -> None:
        self._block_size = block_size
        self._start = start
        self._pages = 0
        self._damaged = PageRanges()
        self._suspects: list[Suspect] = []

    @classmethod
    def of(cls, cluster: Cluster, start: Lsn) -> PushedPages | None:
        """Prepare to look at the pages of a backup that starts here; None, and a warning, for a cluster without checksums.

        Raises: ConfigurationError where numpy is absent.
        """
        if cluster.control.data_checksum_version != CHECKSUMS_ON:
            LOG.warning(
                "this cluster has no page checksums",
                f"--verify-page-checksums has nothing to look at in {cluster.path}.",
                "pg_checksums --enable switches them on in a stopped cluster (12 and later).",
                action="backup-push",
            )
            return None
        require_numpy()
        return cls(cluster.control.block_size, start)

    def watch(self) -> LivePages:
        """Begin a partition."""
        return LivePages(self._block_size, self._start)

    def take(self, live: LivePages) -> None:
        """Count a partition that was pushed."""
        self._pages += live.pages
        self._damaged.extend(live.damaged.damaged())
        self._suspects += live.suspects

    def settle(self, stop: Lsn | None) -> PageChecks:
        """Judge what was left open, now that the end is known, None for a stopped cluster; warn of each damaged relation.

        No page of the backup is newer than its end, and WAL has an image of each that is newer than its start.
        """
        for relation, block, lsn in self._suspects:
            if stop is None or lsn > stop:
                self._damaged.add(relation, block, block)
        damaged = self._damaged.damaged()
        for one in damaged[:MAX_RECORDED]:
            LOG.warning(
                f"{one} of the cluster: wrong checksum",
                f"{one.number} damaged {'page' if one.number == 1 else 'pages'}. They are in the backup as they are.",
                "The disk or what is between it and the server lost data: check the hardware. "
                'An older backup and its WAL bring such a page back: see "A damaged page" in docs/recovery.rst.',
                action="backup-push",
            )
        return PageChecks(self._pages, tuple(DamagedPages(one.relation, one.blocks[:MAX_RECORDED]) for one in damaged[:MAX_RECORDED]))
