"""The directory a backup is restored into, and what may be written there.

Names in a tar are hostile: nothing is written outside the directory, through ``..``, or through
a symbolic link other than the tablespace links that this restore made itself. ``global/pg_control``
comes under another name and takes its place last, so that a restore that did not
end cannot be started. That name is there from the beginning, with the system identifier of the
cluster, so that a restore that was killed is known for what it is.
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import stat
import tarfile
from functools import lru_cache

from wal_e.blobstore.linux import start_writeback
from wal_e.errors import DamageError, local_error
from wal_e.tar.writer import Member

CONTROL = "global/pg_control"
WAL_DIRECTORIES = ("pg_wal", "pg_xlog")
HELD_CONTROL = "global/pg_control.wal-e-restore"

_WRITEBACK_BYTES = 8 << 20  # 1 GiB was written and on disk in 1.3 s with, in 2.0 s without
_MARK_BYTES = 8  # a system identifier, as pg_control begins with it


class Destination:
    """A target directory with its tablespace links; paths are relative to it, as in the tar."""

    def __init__(self, root: str, links: frozenset[str], may_chown: bool) -> None:
        self._root = root
        self._links = links
        self._may_chown = may_chown
        self._safe: set[str] = {""}
        self._directories: list[tuple[str, int, int]] = []
        self._implied: set[str] = set()
        self.notices: list[str] = []

    def path_of(self, name: str) -> str:
        """Return where a member is written.

        Raises: DamageError for a name that would leave the directory.
        """
        parts = name.split("/")
        if name.startswith("/") or ".." in parts or "\0" in name or (name and ("" in parts or "." in parts)):
            raise DamageError(f"the backup holds a file with the unsafe name {name!r}", "Such a name would be written outside the target directory.")
        self._check_parent(os.path.dirname(name), name)
        return os.path.join(self._root, HELD_CONTROL if name == CONTROL else name)

    def open_file(self, name: str) -> int:
        """Create a file for writing, in place of a file that an earlier attempt left; return its descriptor.

        What was there is not written over: it may have another name, and another owner of its content.
        """
        path = self.path_of(name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            try:
                return os.open(path, flags, 0o600)
            except FileExistsError:
                if not stat.S_ISREG(os.lstat(path).st_mode):
                    raise
                os.unlink(path)
                return os.open(path, flags, 0o600)
        except OSError as error:
            raise local_error(error, f"writing {path}") from None

    def make(self, member: Member) -> None:
        """Make a directory or a symbolic link of the manifest, which knows no owner: it gets that of the data directory."""
        info = tarfile.TarInfo(member.path)
        info.mode, info.mtime, info.linkname = member.mode, member.mtime, member.target
        owner = os.stat(self._root)
        info.uid, info.gid = owner.st_uid, owner.st_gid
        if member.kind == "directory":
            self.make_directory(member.path, info)
        elif not os.path.islink(path := self.path_of(member.path)) or os.readlink(path) != member.target:
            self.make_symlink(member.path, info)

    def make_zeros(self, member: Member) -> None:
        """Make a sparse file of a member's size."""
        fd = self.open_file(member.path)
        try:
            os.ftruncate(fd, member.size)
        except OSError as error:
            raise local_error(error, f"writing {member.path}") from None
        finally:
            os.close(fd)
        self.describe(member)

    def describe(self, member: Member) -> None:
        """Give a file that is there the mode and time of a member."""
        path = self.path_of(member.path)
        try:
            os.chmod(path, stat.S_IMODE(member.mode))
            os.utime(path, (member.mtime, member.mtime))
        except OSError as error:
            raise local_error(error, f"setting the mode of {path}") from None

    def adopt(self, member: Member) -> None:
        """Give what a member stands for to the owner of the directory, if that is for us to do."""
        if self._may_chown:
            path = self.path_of(member.path)
            try:
                status, owner = os.lstat(path), os.stat(self._root)
                if (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
                    os.lchown(path, owner.st_uid, owner.st_gid)
            except OSError as error:
                raise local_error(error, f"giving {path} to its owner") from None

    def write(self, fd: int, data: bytes) -> None:
        """Write all of it. What a large file has so far begins to go to disk meanwhile: :meth:`sync` would wait for all of that."""
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        end = os.lseek(fd, 0, os.SEEK_CUR)
        due = end // _WRITEBACK_BYTES * _WRITEBACK_BYTES
        if due > end - len(data):
            start_writeback(fd, due - _WRITEBACK_BYTES, _WRITEBACK_BYTES)

    def finish_file(self, fd: int, info: tarfile.TarInfo) -> None:
        """Give a written file its owner, mode and time."""
        if self._may_chown:
            os.fchown(fd, *owner_of(info))
        os.fchmod(fd, stat.S_IMODE(info.mode))
        os.utime(fd, (info.mtime, info.mtime))

    def make_directory(self, name: str, info: tarfile.TarInfo) -> None:
        """Make a directory, or accept it; mode and time are set at the end, by :meth:`finish`."""
        path = self.path_of(name) if name else self._root
        try:
            if name in self._links or not name:
                os.stat(path)
            else:
                self._make(path)
            if self._may_chown:
                os.chown(path, *owner_of(info))
        except OSError as error:
            raise local_error(error, f"making the directory {path}") from None
        self._directories.append((path, stat.S_IMODE(info.mode), int(info.mtime)))

    def make_symlink(self, name: str, info: tarfile.TarInfo) -> None:
        """Make a symbolic link; nothing is ever written through it.

        A link in the place of the WAL directory becomes an empty directory: it led to the
        WAL of the server that the backup was taken from, which may be running.
        """
        path = self.path_of(name)
        try:
            if name in WAL_DIRECTORIES:
                self._make(path)
                self._implied.add(path)
                self.notices.append(f"{name} was a symbolic link to {info.linkname}; it is an empty directory now")
                return
            if os.path.islink(path):
                os.unlink(path)
            os.symlink(info.linkname, path)
            if self._may_chown:
                os.lchown(path, *owner_of(info))
        except OSError as error:
            raise local_error(error, f"making the link {path}") from None

    def finish(self) -> None:
        """Set the modes and times of the directories, innermost first, and the owner of those that no member described."""
        self._own_implied()
        for path, mode, mtime in sorted(self._directories, reverse=True):
            try:
                os.chmod(path, mode)
                os.utime(path, (mtime, mtime))
            except OSError as error:
                raise local_error(error, f"setting the mode of {path}") from None

    def sync(self) -> None:
        """Make everything durable: one ``syncfs`` per file system involved."""
        libc = ctypes.CDLL(None, use_errno=True)
        for path in (self._root, *(os.path.join(self._root, link) for link in sorted(self._links))):
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError as error:
                raise local_error(error, f"opening {path}") from None
            try:
                if libc.syncfs(fd) != 0:
                    raise local_error(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())), f"making {path} durable")
            finally:
                os.close(fd)

    def hold_control(self, system_identifier: int) -> None:
        """Take ``pg_control`` away, or mark the directory; from here on it cannot be started."""
        held, place = self.path_of(CONTROL), os.path.join(self._root, CONTROL)
        try:
            if os.path.lexists(place):
                os.rename(place, held)
            elif not os.path.lexists(held):
                with open(held, "xb") as mark:
                    mark.write(system_identifier.to_bytes(_MARK_BYTES, "little"))
            _sync_directory(os.path.dirname(place))
        except OSError as error:
            raise local_error(error, f"writing {held}") from None

    def release_control(self) -> None:
        """Put ``pg_control`` back, when nothing else was changed."""
        place = os.path.join(self._root, CONTROL)
        try:
            os.rename(self.path_of(CONTROL), place)
        except OSError as error:
            raise local_error(error, f"writing {place}") from None

    def place_control(self) -> None:
        """Move ``pg_control`` to its name; from here on the directory can be started."""
        held, place = os.path.join(self._root, HELD_CONTROL), os.path.join(self._root, CONTROL)
        try:
            if os.path.getsize(held) == _MARK_BYTES:
                raise FileNotFoundError
            os.rename(held, place)
            _sync_directory(os.path.dirname(place))
        except FileNotFoundError:
            raise DamageError("the backup holds no pg_control", "None of its partitions contains global/pg_control.", "Use another backup.") from None
        except OSError as error:
            raise local_error(error, f"writing {place}") from None

    def _check_parent(self, parent: str, name: str) -> None:
        """Make missing directories, refuse links; what was seen once is remembered."""
        if parent in self._safe:
            return
        self._check_parent(os.path.dirname(parent), name)
        path = os.path.join(self._root, parent)
        try:
            if parent not in self._links:
                self._make(path)
                self._implied.add(path)
                if stat.S_ISLNK(os.lstat(path).st_mode):
                    raise DamageError(f"the backup wants to write {name!r} through a symbolic link", f"{path} is a link that this restore did not make.")
        except OSError as error:
            raise local_error(error, f"making the directory {path}") from None
        self._safe.add(parent)

    def _own_implied(self) -> None:
        owner = os.stat(self._root)
        for path in self._implied - {path for path, _, _ in self._directories}:
            if self._may_chown:
                os.chown(path, owner.st_uid, owner.st_gid)

    def _make(self, path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def owner_of(info: tarfile.TarInfo) -> tuple[int, int]:
    """Return user and group id of a member: by name where the name is known here, else by number."""
    return _user_id(info.uname, info.uid), _group_id(info.gname, info.gid)


@lru_cache(maxsize=64)
def _user_id(name: str, number: int) -> int:
    try:
        return pwd.getpwnam(name).pw_uid if name else number
    except KeyError:
        return number


@lru_cache(maxsize=64)
def _group_id(name: str, number: int) -> int:
    try:
        return grp.getgrnam(name).gr_gid if name else number
    except KeyError:
        return number
