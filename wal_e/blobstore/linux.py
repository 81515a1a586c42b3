"""Two system calls of Linux that ``os`` does not offer, through ``ctypes``.

Where the C library, the kernel or the file system lacks one, ``rename_noreplace`` raises
``OSError`` with ``ENOSYS`` or ``EINVAL``, and ``start_writeback`` does nothing, being a hint.
Sources: renameat2(2), sync_file_range(2). ``ctypes`` is imported with the first call.
"""

from __future__ import annotations

import errno
import os

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_SYNC_FILE_RANGE_WRITE = 2


def rename_noreplace(source: str, target: str) -> None:
    """Rename a file, atomically failing when the target exists. Raises: OSError."""
    import ctypes

    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source, None, target) from None
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Start writing dirty pages of a range (in bytes) to disk without waiting for them."""
    import ctypes

    try:
        sync_file_range = ctypes.CDLL(None).sync_file_range
    except AttributeError:
        return
    sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)
