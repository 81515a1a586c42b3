"""What every verb of the command line starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from wal_e.archive.archive import Archive
from wal_e.pipeline.lanes import Cooperative
from wal_e.pipeline.pipeline import WAL_PIPE_BYTES
from wal_e.settings import Settings


class Context(NamedTuple):
    """Settings, and the global options as they were given."""

    settings: Settings
    options: Mapping[str, str]

    def archive(self, lanes: int, pipe_bytes: int = WAL_PIPE_BYTES) -> Archive:
        """Open the prefix for work in so many lanes. Raises: ConfigurationError, StoreError."""
        return Archive.open(self.settings, Cooperative(lanes), pipe_bytes)
