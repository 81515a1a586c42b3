"""The directory that a store of files is in: never created, and never mistaken for the mount point below it."""

from __future__ import annotations

import errno
import os
import stat

from wal_e.blobstore.file_errors import FORBIDDEN, explained
from wal_e.errors import StoreMisconfigured, StoreUnavailable

ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class Root:
    """The root as it was when the store was opened; raises on creation what is wrong with it.

    Raises: StoreMisconfigured when it is not there, what :func:`explained` makes of other trouble.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity = _identity(path)

    def check(self) -> None:
        """Raise StoreUnavailable unless the directory is still the one it was."""
        try:
            found = os.stat(self.path)
        except OSError as error:
            if error.errno in FORBIDDEN:
                raise explained(error, self.path) from error
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._identity:
            raise StoreUnavailable(
                "the directory of the store went away",
                f"{self.path} is not, or no longer, the directory that was there when this command began.",
                "See whether its file system is still mounted.",
            )


def _identity(root: str) -> tuple[int, int]:
    try:
        found = os.stat(root)
    except OSError as error:
        if error.errno not in ABSENT:
            raise explained(error, root) from error
        found = None
    if found is None or not stat.S_ISDIR(found.st_mode):
        from shlex import quote

        absent = StoreMisconfigured(
            "the directory of the store does not exist",
            f"It should be at {root}. It is never created, so that nothing is written below a mount point while its file system is not mounted.",
            f"Mount it; or, if it is to be a new store: mkdir -p {quote(root)} && chown postgres {quote(root)}",
        )
        absent.transient = True  # it may be mounted in a moment: a standby that asks for WAL may ask again
        raise absent
    return found.st_dev, found.st_ino
