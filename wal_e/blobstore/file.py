"""A store in a directory: blobs are files, keys are their paths below the root.

The root must exist before the store is opened and is never created: an unmounted file system must not silently be
filled. For the same reason nothing counts as absent before the root was seen to be the directory it was when the store
was opened. Directories below it come and go with their blobs, readable by their owner only, as the blobs are.

A blob is written to a name that starts with a dot, flushed to disk, given its key in one step, and then the directory is
flushed. Names that start with a dot are never blobs; neither is ``lost+found``, which a file system keeps in its own root.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from wal_e.blobstore.base import Blob, BlobStore, Leftover, SelfWriting, undeleted
from wal_e.blobstore.file_errors import explained
from wal_e.blobstore.file_root import ABSENT, Root
from wal_e.blobstore.publish import FILE_MODE, NEW_FILE, Publisher, check_free
from wal_e.blobstore.url import checked_key
from wal_e.errors import BlobExists, BlobNotFound, DiskFull, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import TypeVar

    from wal_e.blobstore.base import Chunks

    T = TypeVar("T")

_CHUNK_BYTES = 1 << 20
_WRITEBACK_BYTES = 8 << 20  # a put of 1 GiB and its fsync took 0.33 s with, 0.50 s without
_MKDIR_ATTEMPTS = 100  # against deletes that prune the directory as fast as it is made


class FileStore(BlobStore):
    """Blobs are files below one directory; ``offload`` runs each flush to disk off the event loop."""

    def __init__(self, root: str, offload: Callable[[Callable[[], None]], None], *, sleep: Callable[[float], object] = time.sleep) -> None:
        self._root = Root(root)
        self._publisher = Publisher(offload, sleep)

    @property
    def url(self) -> str:
        """The prefix as a user would write it."""
        return f"file://localhost{self._root.path}"

    def put(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under the key, replacing what is there; durable on return."""
        return self._write(key, chunks, self._publisher.replace)

    def create(self, key: str, chunks: Iterable[bytes]) -> int:
        """Store the chunks under a key that must not exist. Raises: BlobExists."""
        self._writing(key, check_free, self._path(key))
        return self._write(key, chunks, self._publisher.create)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> Chunks:
        """Yield the bytes in chunks of up to 1 MiB. Raises: BlobNotFound, with the first chunk."""
        descriptor = self._reading(key, _open_blob, self._path(key))
        try:
            offset, left = start, length
            while left is None or left > 0:
                chunk = self._reading(key, os.pread, descriptor, _CHUNK_BYTES if left is None else min(left, _CHUNK_BYTES), offset)
                if not chunk:
                    return
                offset += len(chunk)
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            _quietly(os.close, descriptor)

    def open_file(self, key: str) -> int:
        """Open a blob for another program. Raises: BlobNotFound."""
        return self._reading(key, _open_blob, self._path(key))

    def stat(self, key: str) -> Blob:
        """Return size and time of one blob. Raises: BlobNotFound."""
        return _blob(key, self._reading(key, _stat_blob, self._path(key)))

    def list(self, prefix: str = "") -> Iterator[Blob]:
        """Yield the blobs in byte order of key, holding the names of one directory per level.

        A symbolic link to a directory is followed only when the prefix spells it out.
        """
        directory = prefix[: prefix.rfind("/") + 1]
        self._root.check()
        if any(not part or part.startswith(".") for part in directory.split("/")[:-1]):
            return
        yield from self._walk(directory, os.fsencode(prefix[len(directory) :]))

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the keys and the directories that this empties; try all of them before raising."""
        failures: dict[str, StoreError] = {}
        for key in keys:
            try:
                self._unlink(key)
            except StoreError as error:
                failures[key] = error
        if failures:
            raise undeleted(self.url, failures)

    def leftovers(self) -> Iterator[Leftover]:
        """Yield temporary files and claims of writers that were killed, or are at work."""
        from wal_e.blobstore.file_leftovers import leftovers

        self._root.check()
        try:
            yield from leftovers(self._root.path)
        except OSError as error:
            raise explained(error, error.filename or self._root.path) from error

    def discard(self, leftover: Leftover) -> None:
        """Remove a temporary file, and the directories that this empties."""
        try:
            os.unlink(leftover.address)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise explained(error, leftover.address) from error
        self._prune(os.path.relpath(leftover.address, self._root.path))

    def _path(self, key: str) -> str:
        return os.path.join(self._root.path, checked_key(key))

    def _write(self, key: str, chunks: Iterable[bytes], publish: Callable[[str, str], None]) -> int:
        path = self._path(key)
        directory, name = os.path.split(path)
        temporary = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(8).hex()}.tmp")
        self._root.check()
        try:
            descriptor = self._writing(key, self._open_new, temporary, key)  # a signal may come while it opens
            try:
                written = self._fill(descriptor, key, chunks)
            finally:
                _quietly(os.close, descriptor)
            self._writing(key, publish, temporary, path)
        finally:
            _quietly(os.unlink, temporary)
            self._prune(key)
        return written

    def _open_new(self, temporary: str, key: str) -> int:
        for _ in range(_MKDIR_ATTEMPTS):
            try:
                return os.open(temporary, NEW_FILE, FILE_MODE)
            except FileNotFoundError:
                self._make_directories(key)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), temporary)

    def _make_directories(self, key: str) -> None:
        directory = self._root.path
        for part in key.split("/")[:-1]:
            parent, directory = directory, os.path.join(directory, part)
            try:
                os.mkdir(directory, 0o700)
                self._publisher.flush_directory(parent)
            except FileExistsError:
                continue
            except FileNotFoundError:
                return  # a delete pruned what was just made, or the root went away; the caller begins again

    def _fill(self, descriptor: int, key: str, chunks: Iterable[bytes]) -> int:
        written = started = 0
        if isinstance(chunks, SelfWriting):
            self._writing(key, _self_written, chunks, descriptor)
            written, chunks = os.fstat(descriptor).st_size, ()
        for chunk in chunks:
            self._writing(key, _write_all, descriptor, chunk)
            written += len(chunk)
            if written - started >= _WRITEBACK_BYTES:
                self._publisher.start_writeback(descriptor, started, written - started)
                started = written
        self._writing(key, self._publisher.flush, descriptor)
        return written

    def _walk(self, directory: str, beginning: bytes) -> Iterator[Blob]:
        for name in self._names(directory, beginning):
            key = directory + os.fsdecode(name)
            if name.endswith(b"/"):
                yield from self._walk(key, b"")
            else:
                try:
                    blob = self.stat(key)
                except BlobNotFound:
                    continue  # deleted meanwhile, or not a regular file
                yield blob

    def _names(self, directory: str, beginning: bytes) -> Sequence[bytes]:
        """Names in one directory in byte order of their keys; a directory's own ends with a slash."""
        names: Sequence[bytes] = ()
        path = os.path.join(self._root.path, directory)
        try:
            with os.scandir(os.fsencode(path)) as entries:
                ours = (entry for entry in entries if entry.name.startswith(beginning) and not entry.name.startswith(b".") and entry.name != b"lost+found")
                names = sorted(entry.name + b"/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in ours)
        except OSError as error:
            if error.errno not in ABSENT:
                raise explained(error, path) from error
        self._root.check()
        return names

    def _unlink(self, key: str) -> None:
        try:
            self._reading(key, os.unlink, self._path(key))
        except BlobNotFound:
            pass
        self._prune(key)

    def _prune(self, key: str) -> None:
        """Remove the directories of a key, innermost first, that hold nothing."""
        directory = key.rpartition("/")[0]
        while directory:
            try:
                os.rmdir(os.path.join(self._root.path, directory))
            except OSError:
                return  # not empty, or not ours to remove
            directory = directory.rpartition("/")[0]

    def _reading(self, key: str, call: Callable[..., T], *arguments: object) -> T:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno in ABSENT:
                self._root.check()
                raise BlobNotFound(f"there is no {self.url_of(key)}") from None
            raise explained(error, self._path(key)) from error

    def _writing(self, key: str, call: Callable[..., T], *arguments: object) -> T:
        try:
            return call(*arguments)
        except OSError as error:
            self._root.check()
            if error.errno == errno.EEXIST:
                raise BlobExists(f"{self.url_of(key)} exists already") from None
            raise explained(error, self._path(key)) from error


def _open_blob(path: str) -> int:
    _stat_blob(path)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _stat_blob(path: str) -> os.stat_result:
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return found


def _blob(key: str, found: os.stat_result) -> Blob:
    from datetime import UTC, datetime

    return Blob(key, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _self_written(source: SelfWriting, descriptor: int) -> None:
    try:
        source.write_to(descriptor)
    except DiskFull as full:  # it is the store's disk that is full, or its limit on the size of a file that is met
        number = errno.ENOSPC if "No space left" in full.detail or "quota" in full.detail else errno.EFBIG
        raise OSError(number, os.strerror(number)) from None


def _write_all(descriptor: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def _quietly(call: Callable[[T], object], argument: T) -> None:
    try:
        call(argument)
    except OSError:
        pass
