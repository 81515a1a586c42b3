"""Every byte of a backup, read and compared: what the full way of ``backup-verify`` does, in the lanes of ``backup-fetch``.

The partition with ``pg_control`` comes first, for that says whether the cluster has page checksums, and how large a
page is. All damage is collected, not only the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from wal_e.archive import layout
from wal_e.archive.archive import Archive
from wal_e.archive.manifest import Manifest
from wal_e.archive.sentinel import StoredConfiguration
from wal_e.errors import BlobFrozen, BlobNotFound, DamageError
from wal_e.log import Logger
from wal_e.operators.backup_fetch import LINE_CHECK_S, Part, fetch_part, listed_parts, parts_of
from wal_e.operators.restore_config import fetch_configuration
from wal_e.operators.wal_content import Finding
from wal_e.pipeline import pool
from wal_e.postgres.control import CONTROL_FILE, ControlFile, parse_control
from wal_e.postgres.page import CHECKSUMS_ON, PageRanges, require_numpy
from wal_e.progress import Progress
from wal_e.tar.inspection import Inspection

LOG = Logger(__name__)

T = TypeVar("T")


class Findings:
    """What was found out about one backup: damage by key, what could not be read, and pages with a wrong checksum.

    ``pages`` is how many were looked at, None where the cluster has no checksums or nobody looked.
    """

    def __init__(self) -> None:
        self.damaged: list[Finding] = []
        self.unreadable: list[Finding] = []
        self.pages: int | None = None
        self.wrong = PageRanges()

    def damage(self, key: str, reason: str) -> None:
        """Take note of damage."""
        self.damaged.append(Finding(key, reason))

    def attempt(self, key: str, call: Callable[[], T]) -> T | None:
        """Return what a call returns; None, and a note, when what is stored under the key is damaged, absent or out of reach.

        Raises: what else the call raises.
        """
        try:
            return call()
        except _OF_ONE_KEY as error:
            self.note(key, error)
        return None

    def note(self, key: str, error: Exception | None) -> None:
        """Take note of an error with a key; one that says nothing about what is stored there is raised."""
        if isinstance(error, BlobNotFound):
            self.damage(key, f"{key} is missing.")
        elif isinstance(error, DamageError):
            self.damage(key, f"{error.message}. {error.detail}".strip())
        elif isinstance(error, BlobFrozen):
            self.unreadable.append(Finding(key, str(error)))
        elif error is not None:
            raise error


_OF_ONE_KEY = (BlobNotFound, DamageError, BlobFrozen)


def read_partitions(archive: Archive, backup: str, manifest: Manifest | None, found: Findings, lanes: int, total_bytes: int) -> None:
    """Read all partitions, with a line a minute; without a manifest those that the store lists, as far as they can be judged.

    Raises: ConfigurationError where numpy is needed and absent; what the store raises.
    """
    reading = _Reading(archive, found, lanes, Progress(total_bytes, time.monotonic))
    if manifest is None:
        reading.read(found.attempt(layout.partitions_prefix(backup), lambda: list(listed_parts(archive, backup))) or [], None)
        return
    with_control = next((part for part in parts_of(manifest) if _holds_control(part)), None)
    block_size = reading.block_size(with_control) if with_control else None
    if with_control is None:
        found.damage(layout.partitions_prefix(backup), "The backup holds no pg_control.")
    if block_size:
        found.pages = 0
    reading.read((part for part in parts_of(manifest) if with_control is None or part.key != with_control.key), block_size)


def look_at_configuration(archive: Archive, stored: StoredConfiguration, way: str, found: Findings) -> None:
    """Look at what is kept of the configuration: "fast", whether it has its size, or "full". Raises: what the store raises."""

    def look() -> None:
        if way == "full":
            fetch_configuration(archive, stored, Inspection())
        elif (size := archive.store.stat(stored.key).size) != stored.size:
            raise DamageError(f"{stored.key} is not what was stored", f"It has {size} bytes in the store; the sentinel says {stored.size}.")

    found.attempt(stored.key, look)


def _holds_control(part: Part) -> bool:
    return any(member.path == CONTROL_FILE for member in part.members or ())


class _Reading:
    """The lanes, what they found, and how far they have come."""

    def __init__(self, archive: Archive, found: Findings, lanes: int, progress: Progress) -> None:
        self._archive = archive
        self._found = found
        self._lanes = lanes
        self._progress = progress

    def block_size(self, part: Part) -> int | None:
        """Read the partition with pg_control; return the size of a page where pages have checksums."""
        inspection = Inspection(frozenset({CONTROL_FILE}))

        def read() -> ControlFile:
            fetch_part(self._archive, part, inspection, self._progress)
            return parse_control(bytes(inspection.kept.get(CONTROL_FILE, b"")))

        control = self._found.attempt(part.key, read)
        if control is None or control.data_checksum_version != CHECKSUMS_ON:
            return None
        require_numpy()
        return control.block_size

    def read(self, parts: Iterable[Part], block_size: int | None) -> None:
        """Read partitions, and the pages in them where they have a size."""

        def tick() -> None:
            if line := self._progress.line_due():
                LOG.info(line, action="backup-verify", state="progress")

        for outcome in pool.run(lambda part: self._read_one(part, block_size), parts, self._lanes, pool.Tick(LINE_CHECK_S, tick)):
            self._found.note(outcome.item.key, outcome.error)

    def _read_one(self, part: Part, block_size: int | None) -> None:
        inspection = Inspection(block_size=block_size)
        fetch_part(self._archive, part, inspection, self._progress)
        if block_size:
            self._found.pages = (self._found.pages or 0) + inspection.pages
            self._found.wrong.extend(inspection.wrong.damaged())
