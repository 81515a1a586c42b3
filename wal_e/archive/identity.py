"""Whose WAL a prefix holds: one small key that keeps two clusters apart.

``identity_005.json`` is created once, by the service's own conditional write, with the system
identifier of the first cluster that pushes, and the suffixes its WAL may have. Every push and
fetch reads it once. A prefix written by the original WAL-E has none until the first push.
"""

from __future__ import annotations

from wal_e.archive import layout
from wal_e.errors import BlobExists, BlobNotFound, DamageError, WrongCluster
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.blobstore.base import BlobStore

LEGACY_SUFFIXES = (".lzo",)
MAX_BYTES = 64 * 1024


class Identity(NamedTuple):
    """System identifiers that may push here, and the suffixes that WAL may have here."""

    system_identifiers: tuple[int, ...]
    wal_suffixes: tuple[str, ...]

    def require(self, system_identifier: int, store: BlobStore) -> None:
        """Raise WrongCluster unless this cluster may push here."""
        if system_identifier not in self.system_identifiers:
            raise WrongCluster(
                "this prefix belongs to another cluster",
                f"{store.url} holds WAL of the system identifier {', '.join(map(str, self.system_identifiers))}; this cluster's is {system_identifier}.",
                "Give each cluster a prefix of its own.",
            )


def read_identity(store: BlobStore) -> Identity | None:
    """Return the identity of a prefix, None where there is none yet.

    Raises: DamageError when the key holds something else.
    """
    try:
        data = b"".join(store.get(layout.IDENTITY, length=MAX_BYTES))
    except BlobNotFound:
        return None
    return _parsed(data, store)


def claim_identity(store: BlobStore, system_identifier: int, suffix: str) -> Identity:
    """Return the prefix's identity, created for this cluster if there is none.

    Raises: WrongCluster when the prefix belongs to another cluster.
    """
    identity = read_identity(store)
    if identity is None:
        mine = Identity((system_identifier,), tuple(sorted({*LEGACY_SUFFIXES, suffix})))
        try:
            store.create(layout.IDENTITY, [_rendered(mine)])
            identity = mine
        except BlobExists:
            identity = read_identity(store)
    if identity is None:
        raise DamageError(f"{layout.IDENTITY} comes and goes", f"{store.url_of(layout.IDENTITY)} exists when it is created and is absent when it is read.")
    identity.require(system_identifier, store)
    return identity


def _rendered(identity: Identity) -> bytes:
    import json

    document = {"format": 1, "system_identifiers": [str(number) for number in identity.system_identifiers], "wal_suffixes": list(identity.wal_suffixes)}
    return json.dumps(document, indent=1).encode() + b"\n"


def _parsed(data: bytes, store: BlobStore) -> Identity:
    import json

    try:
        document = json.loads(data)
        return Identity(tuple(int(number) for number in document["system_identifiers"]), tuple(str(suffix) for suffix in document["wal_suffixes"]))
    except (ValueError, KeyError, TypeError):
        raise DamageError(
            f"{layout.IDENTITY} cannot be understood",
            f"{store.url_of(layout.IDENTITY)} is not the JSON document that wal-e writes.",
            "Restore that key from a copy of the store; it must name the system identifier of the cluster (see pg_controldata).",
        ) from None
