"""``--include-database``: of the other databases, only the frame.

The server starts, and recovers, when every file that WAL speaks of is there with its size; what
is in it matters to nobody who drops the database next. So the relations of databases that are
not wanted come as sparse files of zeros. So do their ``PG_VERSION`` and ``pg_filenode.map``: without them whoever
connects to such a database, autovacuum too, is turned away; with them, the server would end with a PANIC
over the first index ("could not open critical system index", seen on 15). The map alone does not suffice, as WAL may
bring another (``VACUUM FULL`` of a catalog, seen on 16). The databases that ``initdb`` made (object ids
below 16384, ``FirstNormalObjectId`` in ``access/transam.h``) and those that take their names come as they are.

One kind of WAL changes a page without ever bringing it whole: that a vacuum marked it as all-visible, in a cluster
without page checksums. Recovery ends with a PANIC where such a page is zeros ("WAL contains references to
invalid pages", seen on 15), unless ``ignore_invalid_pages`` is on, which there is from 13.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from wal_e.archive.manifest import Manifest
from wal_e.archive.sentinel import Sentinel
from wal_e.errors import UsageError, local_error
from wal_e.log import Logger
from wal_e.postgres.recovery import AUTO_CONF, setting_line
from wal_e.tar.writer import Member

LOG = Logger(__name__)

FIRST_NORMAL_OID = 16384
FIRST_THAT_TOLERATES = 13
SYSTEM_NAMES = ("postgres", "template0", "template1")

_DATABASE = re.compile(r"(?:base|pg_tblspc/[0-9]+/PG_[^/]+)/([0-9]+)")
_CONTENT = re.compile(_DATABASE.pattern + r"/(?:PG_VERSION|pg_filenode\.map|(?:t[0-9]+_)?[0-9]+(?:_(?:fsm|vm|init))?(?:\.[0-9]+)?)")


class Selection(NamedTuple):
    """The object ids of the databases that come whole, those of ``initdb`` aside; None: all do. ``others`` are the names, or ids, of the rest."""

    oids: frozenset[int] | None
    others: tuple[str, ...] = ()

    def is_zeroed(self, path: str) -> bool:
        """Whether this file comes as zeros."""
        if self.oids is None:
            return False
        found = _CONTENT.fullmatch(path)
        return found is not None and int(found[1]) >= FIRST_NORMAL_OID and int(found[1]) not in self.oids


def selected(sentinel: Sentinel, manifest: Manifest, included: Iterable[str]) -> Selection:
    """Find the databases of these names, or object ids, in a backup; all of them when none is named.

    Raises: UsageError for one that the backup does not hold.
    """
    included = tuple(included)
    if not included:
        return Selection(None)
    names = databases_of(sentinel)
    present = set(names.values()) if names is not None else _found(member for _, members in manifest.partitions() for member in members)
    oids = {_oid(one, names, present) for one in included} | {oid for name, oid in (names or {}).items() if name in SYSTEM_NAMES}
    known = names if names is not None else {str(oid): oid for oid in present}
    return Selection(frozenset(oids), tuple(sorted(name for name, oid in known.items() if oid >= FIRST_NORMAL_OID and oid not in oids)))


def tolerate_zeros(directory: str, major: int, others: tuple[str, ...]) -> None:
    """Let a server recover although pages of these databases are zeros, and tell how to end that. Raises: LocalFileError, DiskFull."""
    if major < FIRST_THAT_TOLERATES:
        LOG.warning(
            "recovery may stop at the databases that were left out",
            f"Without page checksums and wal_log_hints, PostgreSQL {major} ends with PANIC where a vacuum marked one of their pages, now zeros, all-visible.",
            "If it does, restore to an earlier point, or restore all databases.",
        )
        return
    path = os.path.join(directory, AUTO_CONF)
    line = setting_line("ignore_invalid_pages", "on")
    try:
        with open(path, "a+") as stream:
            stream.seek(0)
            text = stream.read()
            if line not in text:
                stream.write(f"{'' if text.endswith(chr(10)) or not text else chr(10)}{line}")
    except OSError as error:
        raise local_error(error, f"writing {path}") from None
    LOG.warning(
        "ignore_invalid_pages is on",
        f"Recovery needs it in the databases that were left out ({', '.join(others)}); it is in {AUTO_CONF}.",
        "When the server is up: DROP DATABASE them, ALTER SYSTEM RESET ignore_invalid_pages, and restart when it suits you.",
    )


def databases_of(sentinel: Sentinel) -> Mapping[str, int] | None:
    """The object id of every database in a backup by its name; None when the backup does not tell."""
    return sentinel.facts.databases if sentinel.facts else None


def _oid(included: str, names: Mapping[str, int] | None, present: set[int]) -> int:
    if names is not None and included in names:
        return names[included]
    if included.isascii() and included.isdigit() and int(included) in present:
        return int(included)
    if names is None:
        raise UsageError(
            f"the backup does not know a database {included}",
            f"It holds no names, and these object ids: {', '.join(map(str, sorted(present)))}.",
            "Give the object id, as SELECT oid, datname FROM pg_database shows it, or use a backup that was made online by a newer wal-e.",
        )
    raise UsageError(
        f"the backup holds no database {included}",
        f"It holds {', '.join(sorted(names))}.",
        "Names are compared to the letter; one that was created after the backup comes with the WAL, and needs no option.",
    )


def _found(members: Iterable[Member]) -> set[int]:
    """The databases that have a directory somewhere."""
    return {int(found[1]) for member in members if member.kind == "directory" and (found := _DATABASE.fullmatch(member.path))}
