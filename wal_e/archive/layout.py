"""The keys of layout 005: made here, taken apart here, nowhere else.

::

    basebackups_005/NAME/extended_version.txt                     the claim on the name, written first
    basebackups_005/NAME/tar_partitions/part_00000000.tar.lzo     partitions, counted from 0
    basebackups_005/NAME/manifest.jsonl.lzo                       what is in them
    basebackups_005/NAME/config.tar.lzo                           configuration files from outside the data directory, where that was asked for
    basebackups_005/NAME/verified.json                            what backup-verify found last; replaced, and may be deleted
    basebackups_005/NAME/drill.json                               what came of its last drill; replaced
    basebackups_005/NAME_backup_stop_sentinel.json                written last: the backup exists
    wal_005/FILE.lzo                                              segments, .history, .backup, .partial
    wal_005/SEGMENT.streaming.lzo                                 the segment that wal-receive is receiving; replaced until SEGMENT is there
    identity_005.json                                             whose WAL this prefix holds
    checked_005.json                                              which of its WAL was read and found good; replaced, and may be deleted
    probe_005/NAME                                                what ``check`` tries the store with, for seconds; may be deleted

NAME is ``base_SEGMENT_OFFSET``: the segment that holds the start of the backup (24 upper-case hex
digits) and the byte offset in it, in decimal with at least eight digits. The layout is WAL-E's,
except for the manifest, the configuration, the identity, the checks and the verifications, which the original passes over.
"""

from __future__ import annotations

from wal_e.postgres.wal import wal_kind
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

BACKUPS = "basebackups_005/"
WAL = "wal_005/"
IDENTITY = "identity_005.json"
CHECKED = "checked_005.json"
PROBES = "probe_005/"
OF_THE_PREFIX = (CHECKED, IDENTITY)

STREAMING = ".streaming"
_SENTINEL = "_backup_stop_sentinel.json"
_HEX = frozenset("0123456789ABCDEF")


class BackupName(NamedTuple):
    """The two facts in a backup's name: start segment, and byte offset in it."""

    segment: str
    offset: int

    def __str__(self) -> str:
        return f"base_{self.segment}_{self.offset:08d}"


def parse_backup_name(text: str) -> BackupName | None:
    """Take a backup name apart; None when it is not one."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != "base" or len(parts[1]) != 24 or not set(parts[1]) <= _HEX:
        return None
    if not (8 <= len(parts[2]) <= 10 and parts[2].isascii() and parts[2].isdigit()):
        return None
    name = BackupName(parts[1], int(parts[2]))
    return name if str(name) == text else None


def version_key(backup: str) -> str:
    """The key that claims a backup name; holds the server's version text."""
    return f"{BACKUPS}{backup}/extended_version.txt"


def partitions_prefix(backup: str) -> str:
    """What the keys of a backup's partitions start with."""
    return f"{BACKUPS}{backup}/tar_partitions/"


def partition_key(backup: str, number: int, suffix: str) -> str:
    """The key of one partition; ``suffix`` is the codec's."""
    return f"{partitions_prefix(backup)}part_{number:08d}.tar{suffix}"


def parse_partition_key(key: str) -> int | None:
    """The number in a partition's key, padded or, as before 2014, not; None for other keys."""
    name = key.rpartition("/")[2]
    number, dot, rest = name.removeprefix("part_").partition(".")
    if not (name.startswith("part_") and dot and number.isascii() and number.isdigit() and (rest == "tar" or rest.startswith("tar."))):
        return None
    return int(number)


def backup_prefix(backup: str) -> str:
    """What all keys of a backup but its sentinel start with."""
    return f"{BACKUPS}{backup}/"


def manifest_key(backup: str, suffix: str) -> str:
    """The key of a backup's manifest."""
    return f"{BACKUPS}{backup}/manifest.jsonl{suffix}"


def config_key(backup: str, suffix: str) -> str:
    """The key of the configuration files that lie outside the data directory."""
    return f"{BACKUPS}{backup}/config.tar{suffix}"


def verified_key(backup: str) -> str:
    """The key of what the last verifications of a backup found."""
    return f"{BACKUPS}{backup}/verified.json"


def drill_key(backup: str) -> str:
    """The key that tells what came of a backup's last drill."""
    return f"{BACKUPS}{backup}/drill.json"


def sentinel_key(backup: str) -> str:
    """The key whose presence says that the backup is complete."""
    return f"{BACKUPS}{backup}{_SENTINEL}"


def parse_sentinel_key(key: str) -> str | None:
    """The backup name in a sentinel's key, None for other keys."""
    name = key.removeprefix(BACKUPS)
    if name == key or not name.endswith(_SENTINEL):
        return None
    backup = name.removesuffix(_SENTINEL)
    return backup if parse_backup_name(backup) else None


def parse_object_key(key: str) -> str | None:
    """The backup name in the key of one of its objects; None for other keys, sentinels among them."""
    backup, slash, _ = key.removeprefix(BACKUPS).partition("/")
    return backup if key.startswith(BACKUPS) and slash and parse_backup_name(backup) else None


def parse_foreign_start(key: str) -> str | None:
    """The start segment in a key that WAL-G, which shares this layout, made for a backup of its own; None for other keys.

    Its names are ``base_SEGMENT``, and ``base_SEGMENT_D_SEGMENT`` for one that builds on another.
    """
    name = key.removeprefix(BACKUPS)
    segment, follows = name.removeprefix("base_")[:24], name[29:30]
    if name == key or not name.startswith("base_") or len(segment) != 24 or not set(segment) <= _HEX or follows not in ("_", "/"):
        return None
    return None if parse_object_key(key) or parse_sentinel_key(key) else segment


def probe_key(name: str) -> str:
    """The key of an object that only tries what the store does."""
    return f"{PROBES}{name}"


def wal_key(name: str, suffix: str) -> str:
    """The key of a WAL file: segment, history, backup history or partial segment."""
    return f"{WAL}{name}{suffix}"


def streaming_key(segment: str, suffix: str) -> str:
    """The key of a segment that is still being received."""
    return wal_key(segment + STREAMING, suffix)


def parse_wal_key(key: str, suffixes: Iterable[str]) -> str | None:
    """The name in the key of a WAL file that ends with one of the suffixes; None for other keys.

    A segment that is being received has the name ``SEGMENT.streaming``, which PostgreSQL never asks for.
    """
    name = key.removeprefix(WAL)
    if name == key:
        return None
    stems = (name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix))
    return next((stem for stem in stems if wal_kind(stem) or is_streaming(stem)), None)


def is_streaming(name: str) -> bool:
    """Whether this is the name of a segment that is being received."""
    return name.endswith(STREAMING) and wal_kind(name.removesuffix(STREAMING)) == "segment"
