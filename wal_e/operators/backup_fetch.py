"""``backup-fetch``: a base backup out of the store, into an empty directory.

Find the backup; check the target; plan the tablespaces; read the manifest; check the space;
bring the partitions through the lanes, each verified; rewrite the map; write PostgreSQL's own
``backup_manifest``; make it durable; place ``pg_control``, which makes it a cluster. Whatever goes
wrong before that, what was written is removed again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.manifest import Manifest, StoredPartition
from wal_e.archive.sentinel import Sentinel
from wal_e.errors import BlobNotFound, DamageError
from wal_e.log import Logger
from wal_e.operators.measure import Measured
from wal_e.operators.restore_target import TablespaceChoice, Target
from wal_e.pipeline import pool
from wal_e.postgres.backup_manifest import FIRST_WITH_MANIFEST, ListedFile, WalRange, write_backup_manifest
from wal_e.progress import Progress, shown_bytes, shown_seconds
from wal_e.retry import once_more, retrying
from wal_e.tar.destination import Destination
from wal_e.tar.reader import PartitionReader, Sieve, Sink
from wal_e.tar.writer import Member

LOG = Logger(__name__)

LINE_CHECK_S = 5.0
WATCH_EVERY_S = 0.5


class Part(NamedTuple):
    """One partition to fetch; hash, size and members are None in a backup of the original WAL-E. ``wanted`` are the members to extract, None: all."""

    key: str
    expected: StoredPartition | None
    members: list[Member] | None
    wanted: frozenset[str] | None = None


class Fetched(NamedTuple):
    """The result: the backup, the major version of PostgreSQL in the target, and whether tablespaces became directories."""

    backup: Backup
    major: int
    in_place_tablespaces: bool


class Hooks(NamedTuple):
    """What is done besides: ``before_control`` to the whole directory, before ``pg_control`` lets it start; ``watch`` in place of a line a minute."""

    before_control: Callable[[Target], None] | None = None
    watch: Callable[[Progress], None] | None = None


NO_HOOKS = Hooks()


def fetch_backup(archive: Archive, target_path: str, query: str, pool_size: int, choice: TablespaceChoice, hooks: Hooks = NO_HOOKS) -> Fetched:
    """Restore a backup into a directory, which wins over the path that the backup was taken from.

    Raises: BackupNotFound, TargetRefused, DamageError, DiskFull, LocalFileError, StoreError.
    """
    backup = Catalog(archive.store).find(query)
    sentinel = backup.readable()
    target = Target.checked(target_path, sentinel, choice)
    manifest = read_manifest(archive, backup.name, sentinel)
    try:
        target.require_space(needs(manifest, sentinel))
        with target.filling() as destination:
            progress = Progress(sentinel.expanded_bytes, time.monotonic)
            LOG.info(f"fetching {backup.name}", f"{shown_bytes(sentinel.expanded_bytes)} into {target.path}.", action="backup-fetch", state="begin")
            parts = parts_of(manifest) if manifest else listed_parts(archive, backup.name)
            if sentinel.facts:
                destination.hold_control(sentinel.facts.system_identifier)
            fetch_parts(archive, parts, destination, pool_size, progress, hooks.watch)
            target.settle_tablespaces()
            if manifest:
                list_files(target, sentinel, manifest)
            make_startable(archive, target, destination, hooks)
    finally:
        if manifest:
            manifest.close()
    tell_restored(archive, backup.name, progress)
    return Fetched(backup, target.major(), choice.blind and bool(sentinel.tablespaces))


def list_files(target: Target, sentinel: Sentinel, manifest: Manifest) -> None:
    """Write PostgreSQL's own manifest, for the versions that have one. Raises: LocalFileError, DiskFull."""
    facts = sentinel.facts
    if facts and facts.major >= FIRST_WITH_MANIFEST:
        wal = WalRange(facts.timeline, facts.start_lsn, facts.stop_lsn)
        write_backup_manifest(target.path, facts.major, facts.system_identifier, wal, _listed_files(manifest))


def make_startable(archive: Archive, target: Target, destination: Destination, hooks: Hooks) -> None:
    """Make a directory with all its files durable, then a cluster. Raises: DamageError, LocalFileError."""
    destination.finish()
    if hooks.before_control:
        hooks.before_control(target)
    archive.waits.offload(destination.sync)
    destination.place_control()
    for notice in destination.notices:
        LOG.warning(notice, action="backup-fetch")


def tell_restored(archive: Archive, backup: str, progress: Progress) -> None:
    """Log the end."""
    LOG.info(
        f"{backup} is restored",
        f"{shown_bytes(progress.done_bytes)} in {shown_seconds(progress.seconds)}.",
        action="backup-fetch",
        state="complete",
        store_calls=archive.store.calls,
        received_bytes=archive.store.received_bytes,
    )


def read_manifest(archive: Archive, backup: str, sentinel: Sentinel) -> Manifest | None:
    """Fetch a backup's manifest; None, and a warning, for a backup of the original WAL-E. Raises: DamageError, StoreError."""
    if sentinel.facts is None:
        LOG.warning(
            f"{backup} is not verifiable",
            "It was made by the original WAL-E, which stored no hashes; codec, tar and numbering are checked. "
            "It left out postgresql.conf, pg_hba.conf and pg_ident.conf too.",
            "If those three were in the data directory, put them there before the server starts.",
            action="backup-fetch",
        )
        return None
    key = sentinel.facts.manifest_key
    pipeline = archive.pipeline
    return Manifest.fetch(lambda consume: pipeline.decode(stored(archive, key), key, consume), key, backup, sentinel.facts.manifest_sha256)


def stored(archive: Archive, key: str) -> Iterator[bytes]:
    """The bytes of an object that the backup needs: where its sentinel is, its absence is damage."""
    try:
        yield from archive.store.get(key)
    except BlobNotFound:
        raise DamageError(
            f"{key} is missing",
            f"The backup was complete, but {archive.store.url} no longer holds that object.",
            "It was deleted after it was stored; use another backup, or another copy of the store.",
        ) from None


def parts_of(manifest: Manifest) -> Iterator[Part]:
    """The partitions that the manifest lists, the largest first."""
    for partition, members in manifest.largest_first():
        yield Part(partition.key, partition, members)


def listed_parts(archive: Archive, backup: str) -> Iterator[Part]:
    """The partitions that the store lists; their numbers must have no gap."""
    found = {layout.parse_partition_key(blob.key): blob.key for blob in archive.store.list(layout.partitions_prefix(backup))}
    numbered = sorted((number, key) for number, key in found.items() if number is not None)
    if [number for number, _ in numbered] != list(range(len(numbered))) or not numbered:
        raise DamageError(
            f"{backup} lacks partitions",
            f"The store holds the numbers {', '.join(str(number) for number, _ in numbered) or 'none'}, which should go from 0 without a gap.",
            "Use another backup, or another copy of the store.",
        )
    for _, key in numbered:
        yield Part(key, None, None)


def needs(manifest: Manifest | None, sentinel: Sentinel) -> Iterable[tuple[str, int]]:
    """Path and size of every file to come, for the check of free space."""
    if manifest is None:
        yield "", sentinel.expanded_bytes
        return
    for _, members in manifest.partitions():
        for member in members:
            yield member.path, member.size


def fetch_parts(
    archive: Archive, parts: Iterable[Part], destination: Destination, pool_size: int, progress: Progress, watch: Callable[[Progress], None] | None
) -> None:
    """Fetch and verify partitions, with a line a minute where nobody watches.

    Raises: DamageError naming the key, DiskFull, LocalFileError, StoreError.
    """

    def tick() -> None:
        if line := progress.line_due():
            LOG.info(line, action="backup-fetch", state="progress")

    def fetch(part: Part) -> None:
        fetch_part(archive, part, destination if part.wanted is None else Sieve(destination, part.wanted), progress)

    due = pool.Tick(WATCH_EVERY_S, lambda: watch(progress)) if watch else pool.Tick(LINE_CHECK_S, tick)
    for outcome in pool.run(fetch, parts, pool_size, due):
        outcome.value()


def fetch_part(archive: Archive, part: Part, sink: Sink, progress: Progress) -> None:
    """Read one partition, and compare all of it with the manifest. Raises: as :func:`fetch_parts`."""

    def attempt() -> None:
        with progress.attempt() as count:
            measured = Measured(stored(archive, part.key))
            reader = PartitionReader(part.key, sink, count)
            archive.pipeline.decode(measured, part.key, reader.read)
            if part.expected is not None and (measured.size, measured.sha256) != (part.expected.size, part.expected.sha256):
                raise DamageError(
                    f"{part.key} is not the partition that was stored",
                    f"The manifest says {part.expected.size} bytes and the hash {part.expected.sha256}; "
                    f"the store has {measured.size} bytes and {measured.sha256}.",
                    "It was changed or exchanged after it was stored; use another backup, or another copy of the store.",
                )
            if part.members is not None:
                _compare(part.key, part.members, reader.members)

    retrying(lambda: once_more(attempt), archive.fetch_policy)


def _compare(key: str, expected: list[Member], found: list[Member]) -> None:
    """Compare what came out of a tar with the manifest, member by member."""
    for wanted, got in zip(expected, found, strict=False):
        if (wanted.path, wanted.kind, wanted.size, wanted.crc32c, wanted.target) != (got.path, got.kind, got.size, got.crc32c, got.target):
            raise DamageError(f"{key} does not agree with the manifest", f"The manifest has {wanted.path!r}; the partition has {got.path!r}, or other content.")
    if len(expected) != len(found):
        raise DamageError(f"{key} does not agree with the manifest", f"The manifest has {len(expected)} members; the partition has {len(found)}.")


def _listed_files(manifest: Manifest) -> Iterator[ListedFile]:
    for _, members in manifest.partitions():
        for member in members:
            if member.kind == "file":
                yield ListedFile(member.path, member.size, member.mtime, member.crc32c)
