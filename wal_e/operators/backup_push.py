"""``backup-push``: a base backup of a cluster, running or stopped, into the store.

Open the backup window; claim the name; list the files; plan the partitions; push them through
the lanes; close the window; push the last partition (label, map, ``pg_control``); wait for the
WAL; write the manifest; write the sentinel. Until the sentinel is there, there is no
backup; whatever goes wrong before it, what was stored is removed again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from wal_e import __version__
from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.manifest import ManifestWriter, StoredPartition
from wal_e.archive.sentinel import Facts, Sentinel, StoredConfiguration, Tablespace, render_sentinel
from wal_e.errors import DamageError
from wal_e.log import Logger
from wal_e.operators.backup_claim import Claim
from wal_e.operators.backup_config import gathered, push_configuration, tell_left_out
from wal_e.operators.backup_pages import PushedPages
from wal_e.operators.backup_window import Closed, OfflineWindow, OnlineWindow, Opened, Window
from wal_e.operators.measure import Measured
from wal_e.operators.wal_wait import wait_for_wal
from wal_e.pipeline import pool
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.config_files import Configuration
from wal_e.postgres.files import FileEntry, walk
from wal_e.postgres.page import LivePages
from wal_e.postgres.wal import segment_name, segment_start, segments_needed
from wal_e.progress import Progress, shown_bytes, shown_seconds
from wal_e.retry import retrying
from wal_e.tar.partition import Partition, Survey, partitions, survey
from wal_e.tar.writer import Member, PartitionWriter, Throttle, write_contents

LOG = Logger(__name__)

PING_EVERY_S = 30.0


class PushOptions(NamedTuple):
    """What the command line says: lanes, bytes per second to read at most (0: no limit), the checkpoint's pace, whether pages are "checked".

    ``configuration`` is "included" when what of it lies outside the data directory is wanted, too.
    """

    pool_size: int
    read_rate_limit: int
    checkpoint: str
    archive_timeout_s: float
    pages: str = "unchecked"
    configuration: str = "told"


class Pushed(NamedTuple):
    """The result: the backup's name; None for ``stored_bytes`` when that backup was there before."""

    name: str
    stored_bytes: int | None


def push_online(archive: Archive, cluster: Cluster, options: PushOptions, environ: Mapping[str, str], native_sleep: Callable[[float], None]) -> Pushed:
    """Back up a running cluster through one protected session.

    Raises: LockHeld, ServerUnavailable, ServerRefused, WrongCluster, BackupInterrupted,
    ArchiveTimeout, StoreError, LocalFileError, UsageError.
    """
    with cluster.lock(), OnlineWindow(cluster, environ, options.checkpoint) as window:
        if options.configuration == "told":
            tell_left_out(cluster, window)
        return _Push(archive, cluster, options, native_sleep).run(window)


def push_offline(archive: Archive, cluster: Cluster, options: PushOptions, native_sleep: Callable[[float], None]) -> Pushed:
    """Back up a cleanly stopped cluster; the segment with its last checkpoint goes into the backup itself.

    Raises: UsageError when it runs or was not shut down cleanly; and as :func:`push_online`.
    """
    with cluster.lock(), OfflineWindow(cluster) as window:
        return _Push(archive, cluster, options, native_sleep).run(window)


class _Push:
    """One base backup on its way."""

    def __init__(self, archive: Archive, cluster: Cluster, options: PushOptions, native_sleep: Callable[[float], None]) -> None:
        self._archive = archive
        self._store = archive.store
        self._cluster = cluster
        self._options = options
        self._native_sleep = native_sleep
        self._notices: set[str] = set()
        self._pages: PushedPages | None = None
        self._configuration: Configuration | None = None
        self._kept: StoredConfiguration | None = None

    def run(self, window: Window) -> Pushed:
        started = datetime.now(UTC)
        if self._options.configuration == "included":
            self._configuration = gathered(self._cluster, window)
        self._archive.claim(self._cluster.control.system_identifier)
        opened = window.open()
        segment = segment_name(opened.timeline, opened.start, self._cluster.control.segment_size)
        name = str(layout.BackupName(segment, opened.start - segment_start(segment, self._cluster.control.segment_size)))
        claim = Claim.take(self._store, name, opened.version_text, self._cluster.path)
        if claim is None:
            hint = "What it keeps of the configuration is what it was then, if that was asked for." if self._configuration else ""
            LOG.warning(f"nothing new since {name}", "The cluster has not moved on since that backup, which is complete.", hint, action="backup-push")
            return Pushed(name, None)
        try:
            with contextlib.closing(ManifestWriter(name, self._cluster.major)) as manifest:
                stored_bytes = self._fill(name, claim, window, opened, manifest, started)
        except BaseException:
            claim.discard()
            raise
        return Pushed(name, stored_bytes)

    def _fill(self, name: str, claim: Claim, window: Window, opened: Opened, manifest: ManifestWriter, started: datetime) -> int:
        LOG.info(f"pushing {name}", f"PostgreSQL {self._cluster.major}, {self._cluster.path}.", action="backup-push", state="begin")
        if self._options.pages == "checked":
            self._pages = PushedPages.of(self._cluster, opened.start)
        found = survey(self._walk(opened))
        progress = Progress(found.total_bytes, time.monotonic)
        stored = self._push_partitions(name, window, opened, found, progress, manifest)
        if self._configuration:
            self._kept = push_configuration(self._archive, name, self._configuration)
        closed = window.close()
        stored.append(self._push_last(name, len(stored), closed, manifest))
        if closed.online:
            self._wait_for_wal(opened, closed, window)
        digest = manifest.finish()
        key = layout.manifest_key(name, self._archive.pipeline.suffix)
        retrying(lambda: self._store.put(key, self._archive.pipeline.encode(manifest.write)), self._archive.push_policy)
        self._require_all(name, stored)
        claim.require()
        stored_bytes = sum(partition.size for partition in stored)
        sentinel = self._sentinel(opened, closed, started, stored, manifest.content_bytes, key, digest)
        self._store.create(layout.sentinel_key(name), [render_sentinel(sentinel)])
        self._summarise(name, opened, sentinel, stored_bytes, progress)
        return stored_bytes

    def _walk(self, opened: Opened) -> Iterator[FileEntry]:
        walked = walk(self._cluster.path, self._cluster.major, self._cluster.control.catalog_version, self._notice)
        return itertools.chain(walked, opened.wal_files)

    def _notice(self, sentence: str) -> None:
        if sentence not in self._notices:
            self._notices.add(sentence)
            LOG.warning(sentence, action="backup-push")

    def _push_partitions(self, name: str, window: Window, opened: Opened, found: Survey, progress: Progress, manifest: ManifestWriter) -> list[StoredPartition]:
        lanes = self._options.pool_size
        work: Iterable[Partition] = partitions(found, lambda: self._walk(opened), lanes)
        stored: list[StoredPartition] = []

        def tick() -> None:
            window.ping()
            if line := progress.line_due():
                LOG.info(line, action="backup-push", state="progress")

        for outcome in pool.run(lambda partition: self._push_partition(name, partition, progress), work, lanes, pool.Tick(PING_EVERY_S, tick)):
            partition, members, live = outcome.value()
            manifest.add(partition, members)
            stored.append(partition)
            if self._pages and live:
                self._pages.take(live)
        return stored

    def _push_partition(self, name: str, partition: Partition, progress: Progress) -> tuple[StoredPartition, list[Member], LivePages | None]:
        """Push one partition; read again from the cluster when the store was away for a moment."""
        key = layout.partition_key(name, partition.number, self._archive.pipeline.suffix)

        def attempt() -> tuple[StoredPartition, list[Member], LivePages | None]:
            throttle = Throttle(self._options.read_rate_limit / self._options.pool_size, self._native_sleep, time.monotonic)
            live = self._pages.watch() if self._pages else None
            writer = PartitionWriter(self._cluster.path, partition.entries, throttle, progress.add, live)
            measured = Measured(self._archive.pipeline.encode(writer.write))
            self._store.put(key, measured)
            return StoredPartition(partition.number, key, measured.size, measured.sha256, len(writer.members)), writer.members, live

        return retrying(attempt, self._archive.push_policy)

    def _push_last(self, name: str, number: int, closed: Closed, manifest: ManifestWriter) -> StoredPartition:
        """Push what must be restored last: label, map, pg_control, in this order."""
        key = layout.partition_key(name, number, self._archive.pipeline.suffix)
        owner = os.stat(self._cluster.path)
        now = int(time.time())
        contents = [(FileEntry(path, "file", len(content), 0o600, now, owner.st_uid, owner.st_gid), content) for path, content in closed.files]

        def attempt() -> tuple[StoredPartition, list[Member]]:
            members: list[Member] = []
            measured = Measured(self._archive.pipeline.encode(lambda stream: members.extend(write_contents(stream, contents))))
            self._store.put(key, measured)
            return StoredPartition(number, key, measured.size, measured.sha256, len(members)), members

        stored, members = retrying(attempt, self._archive.push_policy)
        manifest.add(stored, members)
        return stored

    def _wait_for_wal(self, opened: Opened, closed: Closed, window: Window) -> None:
        names = segments_needed(opened.timeline, opened.start, closed.stop, self._cluster.control.segment_size)
        wait_for_wal(self._archive, names, self._options.archive_timeout_s, window.archiver_failure)

    def _require_all(self, name: str, stored: list[StoredPartition]) -> None:
        """Compare what the store holds with what was pushed, as the last thing before it counts."""
        held = {blob.key: blob.size for blob in self._store.list(layout.backup_prefix(name))}
        for one in (*stored, *((self._kept,) if self._kept else ())):
            if held.get(one.key) != one.size:
                raise DamageError(
                    f"{one.key} is not in the store as it was pushed",
                    f"It was stored with {one.size} bytes; the store now says {held.get(one.key, 'that it is absent')}.",
                    "Something else deletes or overwrites objects under this prefix. No backup was recorded.",
                )

    def _sentinel(
        self, opened: Opened, closed: Closed, started: datetime, stored: list[StoredPartition], expanded_bytes: int, manifest_key: str, digest: str
    ) -> Sentinel:
        segment_size = self._cluster.control.segment_size
        pages = self._pages.settle(closed.stop if closed.online else None) if self._pages else None
        stop_segment = segment_name(opened.timeline, max(closed.stop - 1, opened.start), segment_size)
        facts = Facts(
            started=started, finished=datetime.now(UTC), start_lsn=opened.start, stop_lsn=closed.stop, timeline=opened.timeline,
            system_identifier=self._cluster.control.system_identifier, major=self._cluster.major, segment_size=segment_size,
            partitions=len(stored), stored_bytes=sum(partition.size for partition in stored), manifest_key=manifest_key, manifest_sha256=digest,
            online=closed.online, wal_e_version=__version__, page_checksums=pages, databases=closed.databases,
            configuration=self._kept,
        )  # fmt: skip
        tablespaces = tuple(Tablespace(oid, location) for oid, location in self._cluster.tablespaces().items())
        return Sentinel(stop_segment, closed.stop - segment_start(stop_segment, segment_size), expanded_bytes, self._cluster.path, tablespaces, facts)

    def _summarise(self, name: str, opened: Opened, sentinel: Sentinel, stored_bytes: int, progress: Progress) -> None:
        ratio = stored_bytes / sentinel.expanded_bytes if sentinel.expanded_bytes else 1
        rate = sentinel.expanded_bytes / progress.seconds
        first = segment_name(opened.timeline, opened.start, self._cluster.control.segment_size)
        LOG.info(
            f"{name} is complete",
            f"{shown_bytes(sentinel.expanded_bytes)} read, {shown_bytes(stored_bytes)} stored (ratio {ratio:.2f}), {shown_bytes(rate)}/s, "
            f"{shown_seconds(progress.seconds)}; it needs WAL from {first} to {sentinel.stop_segment}.",
            action="backup-push",
            state="complete",
            store_calls=self._store.calls,
            sent_bytes=self._store.sent_bytes,
        )
