"""Restore what is missing or different, and leave what is there already: ``--delta`` and ``--include-database``.

Check the target; read the manifest; compare every file with it, several at once; decide which
partitions have to come, what goes, what becomes zeros: that is the plan, and nothing has changed.
To carry it out: take ``pg_control`` away, remove, fetch, make zeros, and end as every restore
ends. A restore that was interrupted goes on by the same way.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence

from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.sentinel import Facts
from wal_e.errors import TargetRefused, local_error
from wal_e.log import Logger
from wal_e.operators.backup_fetch import NO_HOOKS, Fetched, Hooks, Part, fetch_parts, list_files, make_startable, read_manifest, tell_restored
from wal_e.operators.delta_plan import DeltaPlan
from wal_e.operators.restore_held import held_target, is_held, require_stopped
from wal_e.operators.restore_local_wal import ASK, decided
from wal_e.operators.restore_selection import selected, tolerate_zeros
from wal_e.operators.restore_target import TablespaceChoice, Target
from wal_e.postgres.cluster import locked
from wal_e.progress import Progress
from wal_e.tar.comparison import DESCRIBED, FETCHED, ZEROED
from wal_e.tar.destination import Destination

LOG = Logger(__name__)


@contextlib.contextmanager
def planned_delta(
    archive: Archive, target_path: str, query: str, pool_size: int, choice: TablespaceChoice, included: Sequence[str] = (), unarchived_wal: str = ASK
) -> Iterator[DeltaPlan]:
    """Plan a restore into a directory that may hold a copy; other commands are kept away from it meanwhile.

    ``unarchived_wal`` is for WAL in the copy that is nowhere else: "keep", "remove", or "ask", which refuses if there is any.

    Raises: BackupNotFound, TargetRefused, UsageError, DamageError, DiskFull, LocalFileError, LockHeld, StoreError.
    """
    backup = Catalog(archive.store).find(query)
    facts = _facts(backup)
    if not is_held(target_path):
        with _planned(archive, backup, Target.checked(target_path, backup.readable(), choice), pool_size, included) as plan:
            yield plan
        return
    with locked(target_path, "another command"):
        target = held_target(target_path, backup.readable(), facts, choice)
        with _planned(archive, backup, target, pool_size, included, unarchived_wal) as plan:
            yield plan


@contextlib.contextmanager
def planned_selection(archive: Archive, target_path: str, query: str, pool_size: int, choice: TablespaceChoice, included: Sequence[str]) -> Iterator[DeltaPlan]:
    """Plan a restore of these databases into an empty directory.

    Raises: as :func:`planned_delta`.
    """
    backup = Catalog(archive.store).find(query)
    _facts(backup)
    with _planned(archive, backup, Target.checked(target_path, backup.readable(), choice), pool_size, included) as plan:
        yield plan


def carry_out(archive: Archive, plan: DeltaPlan, hooks: Hooks = NO_HOOKS) -> Fetched:
    """Make the target what the backup was.

    Raises: TargetRefused, DamageError, DiskFull, LocalFileError, StoreError.
    """
    target, backup = plan.target, plan.backup
    progress = Progress(plan.counts.content_bytes, time.monotonic)
    LOG.info(f"restoring {backup.name}", " ".join(plan.sentences()), action="restore", state="begin")
    with target.keeping(plan.links) if plan.is_held else target.filling() as destination:
        destination.hold_control(_facts(backup).system_identifier)
        if plan.is_held:
            _require_still_stopped(target, destination)
            archive.waits.offload(lambda: _remove(target.path, plan.in_the_way()))
        target.make()
        fetch_parts(archive, _parts(plan), destination, plan.pool_size, progress, hooks.watch)
        archive.waits.offload(lambda: _complete(plan, destination))
        target.settle_tablespaces()
        if plan.is_partial:
            tolerate_zeros(target.path, target.major(), plan.others)
        else:
            list_files(target, plan.sentinel, plan.manifest)
        make_startable(archive, target, destination, hooks)
    tell_restored(archive, backup.name, progress)
    return Fetched(backup, target.major(), target.is_blind and bool(plan.sentinel.tablespaces))


def _facts(backup: Backup) -> Facts:
    facts = backup.readable().facts
    if facts is None:
        raise TargetRefused(
            f"{backup.name} can only be restored as a whole",
            "It was made by the original WAL-E, which stored no checksums and no list of files to compare with.",
            "Restore it into an empty directory, without --delta and --include-database.",
        )
    return facts


@contextlib.contextmanager
def _planned(archive: Archive, backup: Backup, target: Target, pool_size: int, included: Sequence[str], unarchived_wal: str = ASK) -> Iterator[DeltaPlan]:
    sentinel = backup.readable()
    manifest = read_manifest(archive, backup.name, sentinel)
    assert manifest is not None
    with contextlib.closing(manifest):
        wal = decided(archive, target.path, _facts(backup), manifest, unarchived_wal)
        plan = DeltaPlan(target, backup, manifest, selected(sentinel, manifest, included), pool_size, wal)
        plan.make(archive)
        yield plan


def _require_still_stopped(target: Target, destination: Destination) -> None:
    """Look once more, now that no server can be started any more."""
    try:
        require_stopped(target.path)
    except BaseException:
        destination.release_control()
        raise


def _remove(root: str, paths: list[str]) -> None:
    for path in paths:
        place = os.path.join(root, path)
        try:
            if os.path.isdir(place) and not os.path.islink(place):
                shutil.rmtree(place)
            else:
                os.unlink(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise local_error(error, f"removing {place}") from None


def _parts(plan: DeltaPlan) -> Iterator[Part]:
    """The partitions of which something is wanted."""
    for partition, members, fates in plan.partitions():
        if FETCHED in fates:
            wanted = frozenset(member.path for member, fate in zip(members, fates, strict=True) if fate == FETCHED)
            yield Part(partition.key, partition, members, wanted)


def _complete(plan: DeltaPlan, destination: Destination) -> None:
    """Make what comes from no partition: directories, links, zeros; and the modes, times and owners of what stayed."""
    for _, members, fates in plan.partitions():
        for member, fate in zip(members, fates, strict=True):
            if fate == FETCHED:
                continue
            if member.kind != "file":
                destination.make(member)
            elif fate == ZEROED:
                destination.make_zeros(member)
            elif fate == DESCRIBED:
                destination.describe(member)
            if member.kind == "file":
                destination.adopt(member)
