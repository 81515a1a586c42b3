"""How a file reaches the disk and gets its name: in one step, and if asked, only if the name is free.

To replace, ``rename`` is enough. To create, the file system must decide between two writers:
``link`` fails on an existing name; where there are no hard links, ``renameat2`` with
``RENAME_NOREPLACE`` does; where neither works, a claim file made with ``O_EXCL`` keeps other
writers away for the moment between the check and the rename.
"""

from __future__ import annotations

import errno
import os
import time

from wal_e.blobstore.linux import rename_noreplace, start_writeback
from wal_e.errors import StoreUnavailable
from wal_e.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_log = Logger(__name__)

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
FILE_MODE = 0o600

_CLAIM_ATTEMPTS, _CLAIM_WAIT_S = 250, 0.02  # a claim is held for a rename, not for a transfer
_UNSUPPORTED = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EINVAL, errno.EXDEV)


class Publisher:
    """Flushes and names the files of one file system; ``offload`` runs each flush off the event loop."""

    def __init__(self, offload: Callable[[Callable[[], None]], None], sleep: Callable[[float], object] = time.sleep) -> None:
        self._offload = offload
        self._sleep = sleep
        self._ways = (os.link, rename_noreplace, self._rename_with_claim)
        self._way = 0  # index of the first way that this file system may know

    def replace(self, temporary: str, path: str) -> None:
        """Give the file its name, which may be taken; durable on return. Raises: OSError."""
        self._publish(os.rename, temporary, path)

    def create(self, temporary: str, path: str) -> None:
        """Give the file its name, which must be free; durable on return. The temporary name may stay.

        Raises: FileExistsError, another OSError, or StoreUnavailable when the name stays claimed.
        """
        self._publish(self._exclusively, temporary, path)

    def start_writeback(self, descriptor: int, offset: int, length: int) -> None:
        """Start writing a range (in bytes) to disk, so that the flush has less to wait for."""
        self._offload(lambda: start_writeback(descriptor, offset, length))

    def flush(self, descriptor: int) -> None:
        """Wait until all of an open file is on disk. Raises: OSError."""
        self._offload(lambda: os.fsync(descriptor))

    def flush_directory(self, path: str) -> None:
        """Make the names in a directory durable. Raises: OSError."""
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._flush_names(directory)
        finally:
            os.close(directory)

    def _publish(self, way: Callable[[str, str], None], temporary: str, path: str) -> None:
        # Opened before, for once its blob is visible, another process may delete it and prune the directory.
        directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            way(temporary, path)
            self._flush_names(directory)
        finally:
            os.close(directory)

    def _flush_names(self, directory: int) -> None:
        try:
            self.flush(directory)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # what some network file systems say of a directory
                raise

    def _exclusively(self, temporary: str, path: str) -> None:
        while True:
            way = self._way
            try:
                return self._ways[way](temporary, path)
            except OSError as error:
                if error.errno not in _UNSUPPORTED or way + 1 == len(self._ways):
                    raise
                self._way = way + 1

    def _rename_with_claim(self, temporary: str, path: str) -> None:
        directory, name = os.path.split(path)
        claim = os.path.join(directory, f".{name}.claim")
        self._take_claim(claim, path)
        try:
            check_free(path)
            os.rename(temporary, path)
        finally:
            os.unlink(claim)

    def _take_claim(self, claim: str, path: str) -> None:
        for attempt in range(_CLAIM_ATTEMPTS):
            try:
                return os.close(os.open(claim, NEW_FILE, FILE_MODE))
            except FileExistsError:
                check_free(path)
            if attempt == 0:
                _log.info("waiting for another writer", f"{claim} exists.")
            self._sleep(_CLAIM_WAIT_S)
        raise StoreUnavailable(
            f"another writer has claimed {path}",
            f"{claim} exists. It is there for moments, unless its writer was killed.",
            "If no wal-e is running on any host that uses this store, remove that file.",
        )


def check_free(path: str) -> None:
    """Refuse a name that is taken. Raises: FileExistsError."""
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
