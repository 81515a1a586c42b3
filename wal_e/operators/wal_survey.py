"""A look at all that a store holds of a cluster's WAL, and at what its backups need of it: what ``wal-verify`` and ``wal-show`` tell.

Two listings: of the backups and of the WAL. Only sentinels and history files are read, and the
beginning of one segment where no sentinel says how large segments are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import RawIOBase
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.archive.catalog import Backup, Catalog
from wal_e.archive.identity import Identity, read_identity
from wal_e.archive.retention import DEFAULT_SEGMENT_SIZE
from wal_e.archive.wal_index import WalIndex, index_wal
from wal_e.archive.wal_reach import Gap, Lines, Need, Reach, gaps_of, needless, reach_of
from wal_e.errors import BlobNotFound, CodecFailed, ConfigurationError, DamageError, WalRefused
from wal_e.log import Logger
from wal_e.operators.inventory import wal_files
from wal_e.pipeline import pool
from wal_e.postgres.wal import WAL_HEADER_SIZE, Lsn, Switch, parse_history, parse_wal_header, segment_start, wal_kind

LOG = Logger(__name__)

READ_LANES = 8


class Survey(NamedTuple):
    """What is there, and what one can do with it.

    ``reaches`` are those of the readable backups, oldest first, to the newest timeline that descends from each;
    ``on_server`` those to the server's own timeline, where that is another. ``damaged_histories`` says by timeline why a
    history cannot be used; ``needless`` counts, by timeline, segments that no backup needs.
    """

    url: str
    identity: Identity | None
    backups: list[Backup]
    wal: WalIndex
    histories: Mapping[int, tuple[Switch, ...]]
    damaged_histories: Mapping[int, str]
    lines: Lines
    reaches: list[Reach]
    on_server: list[Reach]
    gaps: list[Gap]
    needless: Mapping[int, int]


def look(archive: Archive, archived: str | None = None) -> Survey:
    """Look at everything below the prefix.

    ``archived`` is the segment that a server archived last; it is the end of its timeline where less is stored.

    Raises: what the store raises.
    """
    identity = read_identity(archive.store)
    backups = Catalog(archive.store).backups()
    for backup in backups:
        if backup.damage is not None:
            LOG.warning(backup.damage.message, f"{backup.damage.detail} It is not known which WAL that backup needs.", backup.damage.hint)
    wal = take_index(archive, backups)
    histories, damaged = _histories(archive, wal)
    lines = Lines(wal, histories, _ends(wal, archived))
    needs = [need for backup in backups if (need := need_of(backup, wal.segment_size)) is not None]
    reaches = [reach_of(need, wal, lines) for need in needs]
    on_server = list(_on_server(reaches, wal, lines, archived))
    gaps = list(gaps_of(wal, lines, [*reaches, *on_server]))
    return Survey(archive.store.url, identity, backups, wal, histories, damaged, lines, reaches, on_server, gaps, needless(wal, lines, needs))


def _ends(wal: WalIndex, archived: str | None) -> dict[int, int]:
    try:
        return {int(archived[:8], 16): wal.number(archived)} if archived else {}
    except WalRefused:
        return {}


def _on_server(reaches: Sequence[Reach], wal: WalIndex, lines: Lines, archived: str | None) -> Iterator[Reach]:
    timeline = int(archived[:8], 16) if archived else 0
    for reach in reaches:
        if reach.target != timeline and lines.descends(timeline, reach.need.timeline, reach.need.stop):
            yield reach_of(reach.need, wal, lines, timeline)


def take_index(archive: Archive, backups: list[Backup]) -> WalIndex:
    """Index the stored WAL. How large segments are is said by the newest backup that tells, else by a segment, else by the names."""
    sizes = [backup.sentinel.facts.segment_size for backup in backups if backup.sentinel and backup.sentinel.facts]
    size = sizes[-1] if sizes else _size_in_a_segment(archive)
    index = index_wal(wal_files(archive), size or DEFAULT_SEGMENT_SIZE)
    if index.misfit and not size:
        index = index_wal(wal_files(archive), index.size_by_names)
    return index


def _size_in_a_segment(archive: Archive) -> int | None:
    """The segment size in the header of a stored segment; None when there is none that can be read."""
    key = next((blob.key for name, blob in wal_files(archive) if name and wal_kind(name) == "segment"), None)
    if key is None:
        return None
    try:
        return parse_wal_header(decoded(archive, key, WAL_HEADER_SIZE)).segment_size
    except (BlobNotFound, DamageError, WalRefused, CodecFailed, ConfigurationError):
        return None


def decoded(archive: Archive, key: str, keep_bytes: int | None = None) -> bytes:
    """Read a stored file; the first bytes of it are kept, or all. Raises: DamageError, and what the store raises."""
    kept = bytearray()

    def consume(stream: RawIOBase) -> None:
        while data := stream.read(256 * 1024):
            kept.extend(data if keep_bytes is None else data[: max(keep_bytes - len(kept), 0)])

    archive.pipeline.decode(archive.store.get(key), key, consume)
    return bytes(kept)


def _histories(archive: Archive, index: WalIndex) -> tuple[dict[int, tuple[Switch, ...]], dict[int, str]]:
    """Read the history files; those that cannot be read go into the second result, with the reason."""
    histories: dict[int, tuple[Switch, ...]] = {}
    damaged: dict[int, str] = {}
    for outcome in pool.run(lambda one: parse_history(decoded(archive, one[1]), one[0]), index.histories.items(), READ_LANES):
        if isinstance(outcome.error, (DamageError, WalRefused, ConfigurationError)):
            damaged[outcome.item[0]] = str(outcome.error)
        elif not isinstance(outcome.error, BlobNotFound):
            histories[outcome.item[0]] = outcome.value()
    return histories, damaged


def lost_histories(survey: Survey) -> list[int]:
    """Timelines whose history somebody needs and nobody stored: the newest one, when no backup was made on it."""
    newest = max((timeline for timeline, wal in survey.wal.timelines.items() if wal.segments), default=1)
    known = newest in survey.histories or newest in survey.damaged_histories
    if newest == 1 or known or not survey.reaches or any(reach.need.timeline == newest for reach in survey.reaches):
        return []
    return [newest]


def need_of(backup: Backup, segment_size: int) -> Need | None:
    """What a backup asks for; None when its sentinel cannot be understood. Backups of the original are told by their segments."""
    sentinel = backup.sentinel
    if sentinel is None:
        return None
    if sentinel.facts is not None:
        facts = sentinel.facts
        return Need(backup.name, backup.finished, facts.timeline, facts.start_lsn, facts.stop_lsn, facts.online)
    name = backup.parsed_name
    try:
        start = segment_start(name.segment, segment_size) + name.offset
        stop = segment_start(sentinel.stop_segment, segment_size) + sentinel.stop_offset
    except WalRefused as refused:
        LOG.warning(f"it is not known which WAL {backup.name} needs", str(refused), "")
        return None
    return Need(backup.name, backup.finished, int(name.segment[:8], 16), Lsn(start), Lsn(stop), True)
