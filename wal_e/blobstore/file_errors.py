"""What the system's errors mean for a store of files."""

from __future__ import annotations

import errno

from wal_e.errors import StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IMPOSSIBLE = (errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL)


def explained(error: OSError, path: str) -> StoreError:
    """Translate an error on a path of the store."""
    reason = f"The system says: {error.strerror or error}."
    if error.errno in FORBIDDEN:
        return StoreForbidden(f"no permission for {path}", reason, "The user that runs wal-e, usually postgres, must own the store's directory.")
    if error.errno in _FULL:
        return StoreUnavailable("the file system of the store is full", f"{path} could not be written. {reason}", "Free some space there, or make it larger.")
    if error.errno in _IMPOSSIBLE:
        return StoreMisconfigured(f"the file system of the store refuses {path}", reason, "See its limits and what stands at that path, and ulimit -f.")
    return StoreUnavailable(f"the file system of the store failed at {path}", reason, "See the kernel's log, and whether the file system is still mounted.")
