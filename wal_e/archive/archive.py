"""One prefix opened for work: the store, how bytes are coded on the way to it, whose it is."""

from __future__ import annotations

import os
from itertools import groupby

from wal_e.archive import layout
from wal_e.archive.identity import LEGACY_SUFFIXES, Identity, claim_identity, read_identity
from wal_e.blobstore.registry import open_store
from wal_e.blobstore.wrappers import Metered, ReadOnly
from wal_e.errors import BlobNotFound, local_error
from wal_e.pipeline.pipeline import WAL_PIPE_BYTES, Pipeline
from wal_e.retry import Effort, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from wal_e.blobstore.base import BlobStore
    from wal_e.pipeline.process import Waits
    from wal_e.settings import Settings

LISTED_PREFIX = 16  # characters of a segment's name, timeline and log: at most 4096 segments share them


class Archive:
    """The store of one prefix, the pipeline to and from it, how to wait, and how long to try.

    The identity of the prefix is read once per process.
    """

    def __init__(self, store: BlobStore, pipeline: Pipeline, waits: Waits, push_policy: Policy, fetch_policy: Policy) -> None:
        self.store = Metered(store)
        self.pipeline = pipeline
        self.waits = waits
        self.push_policy = push_policy
        self.fetch_policy = fetch_policy
        self._identity: Identity | None = None

    @classmethod
    def open(cls, settings: Settings, waits: Waits, pipe_bytes: int = WAL_PIPE_BYTES, patience: Policy | None = None) -> Archive:
        """Open the prefix that the settings name. ``patience`` is for whatever is done there, in place of what the settings say of pushes and fetches.

        Raises: ConfigurationError, StoreMisconfigured, StoreUnavailable.
        """
        effort = Effort(patience, patience) if patience else Effort.of(settings)
        store = open_store(settings, lanes=waits.lanes, offload=waits.offload, effort=effort)
        return cls(store, Pipeline(waits, settings.gpg_key_id, pipe_bytes), waits, effort.writes, effort.reads)

    def read_only(self) -> Archive:
        """The same prefix for a command that only looks: a write is refused."""
        return Archive(ReadOnly(self.store), self.pipeline, self.waits, self.push_policy, self.fetch_policy)

    def decode(self, key: str, raw: int) -> None:
        """Decode what is stored under a key into an open file.

        Raises: BlobNotFound, DamageError naming the key, DiskFull, ToolMissing, what the store raises.
        """
        stored = self.store.open_file(key)
        if stored is None:
            self.pipeline.decode_file(self.store.get(key), key, raw)
            return
        try:
            self.pipeline.decode_stored_file(stored, key, raw)
        except OSError as error:
            raise local_error(error, f"reading {self.store.url_of(key)}") from None
        finally:
            os.close(stored)

    def claim(self, system_identifier: int) -> Identity:
        """Return the identity of the prefix for a push by this cluster, which claims a new prefix.

        Raises: WrongCluster when the prefix belongs to another cluster; what the store raises.
        """
        if self._identity is None:
            self._identity = claim_identity(self.store, system_identifier, self.pipeline.suffix)
        self._identity.require(system_identifier, self.store)
        return self._identity

    def require(self, system_identifier: int) -> None:
        """Refuse a prefix of another cluster; one that has no identity yet may be anybody's.

        Raises: WrongCluster; what the store raises.
        """
        self.wal_suffixes()
        if self._identity is not None:
            self._identity.require(system_identifier, self.store)

    def holds_wal(self) -> bool:
        """Whether any WAL was ever pushed here; a prefix of the original WAL-E has no identity to tell it."""
        return self._identity is not None or any(True for _ in self.store.list(layout.WAL))

    def has_wal(self, name: str) -> bool:
        """Whether a WAL file is stored, under any suffix that WAL may have here."""
        return self.wal_key_of(name) is not None

    def wal_key_of(self, name: str) -> str | None:
        """The key under which a WAL file is stored, with any suffix that WAL may have here; None when it is not."""
        for suffix in self.wal_suffixes():
            key = layout.wal_key(name, suffix)
            try:
                self.store.stat(key)
            except BlobNotFound:
                continue
            return key
        return None

    def wal_keys_of(self, names: Iterable[str]) -> dict[str, str]:
        """The keys of those WAL files that are stored, by name; one listing answers for all neighbours.

        Swift's listings may lag, so what they lack is asked for, until one file is really not there.
        """
        found: dict[str, str] = {}
        suffixes, is_whole = self.wal_suffixes(), True
        for beginning, neighbours in groupby(names, key=lambda name: name[:LISTED_PREFIX]):
            listed = {blob.key for blob in self.store.list(layout.wal_key(beginning, ""))}
            for name in neighbours:
                key = next((key for suffix in suffixes if (key := layout.wal_key(name, suffix)) in listed), None)
                if key is None and is_whole:
                    key = self.wal_key_of(name)
                    is_whole = key is not None
                if key is not None:
                    found[name] = key
        return found

    def wal_suffixes(self) -> tuple[str, ...]:
        """The suffixes that WAL may have under this prefix."""
        if self._identity is None:
            self._identity = read_identity(self.store)
        return self._identity.wal_suffixes if self._identity else LEGACY_SUFFIXES
