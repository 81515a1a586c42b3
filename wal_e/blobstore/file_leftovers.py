"""What writers that were killed left in a directory: temporary files and claims.

Their names are made in :mod:`wal_e.blobstore.file` and :mod:`wal_e.blobstore.publish`; anything else that
starts with a dot is not ours.
"""

from __future__ import annotations

import os
import re

from wal_e.blobstore.base import Leftover

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OURS = re.compile(r"\..+(\.[0-9]+\.[0-9a-f]{16}\.tmp|\.claim)", re.DOTALL)


def leftovers(root: str) -> Iterator[Leftover]:
    """Yield our temporary files and claims below the directory, those of living writers too. Raises: OSError."""
    from datetime import UTC, datetime

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # deleted meanwhile
            raise error

    for directory, _, names in os.walk(root, onerror=unreadable):
        for name in filter(_OURS.fullmatch, sorted(names)):
            path = os.path.join(directory, name)
            try:
                found = os.lstat(path)
            except FileNotFoundError:
                continue
            yield Leftover(path, f"temporary file {path}", found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))
