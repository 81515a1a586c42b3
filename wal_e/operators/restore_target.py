"""The directory to restore into, and where its tablespaces go.

Everything that can be refused is refused here, before the first byte is fetched; everything that
was written is removed here, when the restore does not come to its end.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from wal_e.archive.sentinel import Sentinel
from wal_e.errors import DiskFull, LocalFileError, TargetRefused, UsageError, local_error
from wal_e.log import Logger
from wal_e.operators.restore_tablespaces import TABLESPACES, planned_locations, require_apart
from wal_e.postgres.cluster import locked
from wal_e.postgres.label import render_tablespace_map
from wal_e.progress import shown_bytes
from wal_e.tar.destination import CONTROL, HELD_CONTROL, Destination

LOG = Logger(__name__)

MAP = "tablespace_map"
PAGE = 4096


class TablespaceChoice(NamedTuple):
    """Where tablespaces go.

    ``blind``: real directories in ``pg_tblspc``. ``spec``: locations by a document in the form of the
    sentinel's ``spec``, merged over it. Neither: links that are there already.
    """

    blind: bool
    spec: Mapping[str, Any] | None


class Space(NamedTuple):
    """A file system, by a directory on it: what would be written there, and what is free."""

    path: str
    needed_bytes: int
    free_bytes: int


class Target:
    """A checked target: its path, and the location of each tablespace link, by OID."""

    def __init__(self, path: str, locations: dict[str, str], choice: TablespaceChoice) -> None:
        self.path = path
        self._locations = locations
        self._choice = choice

    @classmethod
    def checked(cls, path: str, sentinel: Sentinel, choice: TablespaceChoice) -> Target:
        """Refuse what cannot be restored into.

        Raises: TargetRefused, UsageError, LocalFileError.
        """
        path = absolute(path)
        _require_unused(path)
        locations = {} if choice.blind else planned_locations(path, sentinel, choice.spec)
        require_apart(path, locations)
        for oid, location in locations.items():
            require_place(oid, location)
        for place in (path, *locations.values()):
            _require_writable(place)
        return cls(path, locations, choice)

    def spaces(self, needs: Iterable[tuple[str, int]]) -> list[Space]:
        """What comes, and what is free, per file system."""
        needed: dict[str, int] = {}
        for path, size in needs:
            root = self._root_of(path)
            needed[root] = needed.get(root, 0) + (size + PAGE - 1) // PAGE * PAGE
        by_device: dict[int, tuple[str, int]] = {}
        for root, size in needed.items():
            existing = _nearest_existing(root)
            device = os.stat(existing).st_dev
            by_device[device] = (existing, by_device.get(device, ("", 0))[1] + size)
        return [Space(existing, size, _free_bytes(existing)) for existing, size in by_device.values()]

    def require_space(self, needs: Iterable[tuple[str, int]]) -> list[Space]:
        """Compare what comes with what is free, per file system, and return it. Raises: DiskFull."""
        spaces = self.spaces(needs)
        for space in spaces:
            if space.free_bytes < space.needed_bytes:
                raise DiskFull(
                    f"not enough space to restore at {space.path}",
                    f"{shown_bytes(space.needed_bytes)} are needed, {shown_bytes(space.free_bytes)} are free. Nothing was fetched.",
                    "Free some space, restore elsewhere, or move tablespaces with --restore-spec or --tablespace.",
                )
        return spaces

    @property
    def is_blind(self) -> bool:
        """Whether tablespaces become directories in ``pg_tblspc``."""
        return self._choice.blind

    @property
    def locations(self) -> dict[str, str]:
        """Where each tablespace goes, by the path of its link relative to the directory."""
        return {f"{TABLESPACES}/{oid}": location for oid, location in self._locations.items()}

    def make(self) -> None:
        """Make the directory, the locations, and the links that are not there. Raises: LocalFileError."""
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
            for oid, location in self._locations.items():
                os.makedirs(location, 0o700, exist_ok=True)
                link = os.path.join(self.path, TABLESPACES, oid)
                if not os.path.islink(link):
                    os.makedirs(os.path.dirname(link), 0o700, exist_ok=True)
                    os.symlink(location, link)
        except OSError as error:
            raise local_error(error, f"making {self.path} and its tablespaces") from None

    @contextlib.contextmanager
    def filling(self) -> Iterator[Destination]:
        """Make the directory and the links; remove everything again when the restore fails."""
        made = [directory for place in (self.path, *self._locations.values()) for directory in _missing(place)]
        had_links = os.path.isdir(os.path.join(self.path, TABLESPACES))
        try:
            os.makedirs(self.path, 0o700, exist_ok=True)
        except OSError as error:
            raise local_error(error, f"making {self.path}") from None
        with locked(self.path, "another restore"):
            _require_unused(self.path)  # still so, and so it stays
            try:
                self.make()
                yield Destination(self.path, frozenset(self.locations), os.geteuid() == 0)
            except BaseException:
                LOG.info(f"what was written to {self.path} is removed again", "The restore did not come to its end.")
                self._empty(keep_links=had_links)
                for directory in sorted(made, reverse=True):
                    with contextlib.suppress(OSError):
                        os.rmdir(directory)
                raise

    @contextlib.contextmanager
    def keeping(self, links: frozenset[str]) -> Iterator[Destination]:
        """Restore over what is there, through these links besides; what is there when the restore fails stays for the next attempt."""
        try:
            yield Destination(self.path, links.union(self.locations), os.geteuid() == 0)
        except BaseException:
            if not os.path.lexists(os.path.join(self.path, CONTROL)):
                LOG.warning(
                    f"the restore into {self.path} is not whole",
                    "It holds pg_control back, so that no server can be started on it.",
                    "Run it again with --delta: what is there already is not fetched again.",
                )
            raise

    def settle_tablespaces(self) -> None:
        """Make the map agree with the links, and give locations the owner of the data directory."""
        path = os.path.join(self.path, MAP)
        try:
            owner = os.stat(self.path)
            if os.path.exists(path):
                if self._choice.blind:
                    os.unlink(path)
                else:
                    mapping = {oid: os.fsencode(location) for oid, location in self._locations.items()}
                    with open(path, "wb") as stream:
                        stream.write(render_tablespace_map(mapping, self.major()))
            if os.geteuid() == 0:
                for oid, location in self._locations.items():
                    os.chown(location, owner.st_uid, owner.st_gid)
                    os.lchown(os.path.join(self.path, TABLESPACES, oid), owner.st_uid, owner.st_gid)
        except OSError as error:
            raise local_error(error, f"writing {path}") from None

    def major(self) -> int:
        """PostgreSQL's major version, from the restored PG_VERSION."""
        try:
            with open(os.path.join(self.path, "PG_VERSION")) as stream:
                return int(stream.read().split(".")[0])
        except (OSError, ValueError):
            raise TargetRefused("what was restored has no PG_VERSION", f"{self.path} is not a data directory.", "Use another backup.") from None

    def _root_of(self, path: str) -> str:
        parts = path.split("/", 2)
        return self._locations.get(parts[1], self.path) if parts[0] == TABLESPACES and len(parts) > 1 else self.path

    def _empty(self, keep_links: bool) -> None:
        """Remove what this restore wrote; the places were empty before."""
        for root in (*self._locations.values(), self.path):
            for name in _entries(root):
                path = os.path.join(root, name)
                if keep_links and path == os.path.join(self.path, TABLESPACES):
                    continue
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def absolute(path: str) -> str:
    """The target's path from the root; an empty one, of a variable that is not set, is not the current directory. Raises: UsageError."""
    if not path:
        raise UsageError("the target directory has no name", "What was given is empty.", "Name the directory to restore into.")
    return os.path.abspath(path)


def _require_unused(path: str) -> None:
    if os.path.lexists(os.path.join(path, "postmaster.pid")):
        raise TargetRefused(
            f"a server runs on {path}, or did when it crashed",
            "There is a postmaster.pid in it.",
            "Restore into a new directory; nothing in this one was touched.",
        )
    require_empty(path, "target directory", allowed=(TABLESPACES,))


def require_place(oid: str, location: str) -> None:
    """Refuse a place for a tablespace that holds something. Raises: TargetRefused, LocalFileError."""
    elsewhere = f"restore --tablespace {oid}=PATH or --blind, backup-fetch --restore-spec FILE or --blind-restore"
    hint = f"Choose another place: {elsewhere}. Or, if it belongs to a server that is lost, move it away. Nothing in this one was touched."
    require_empty(location, "tablespace location", hint=hint)


def require_empty(path: str, what: str, allowed: tuple[str, ...] = (), hint: str = "") -> None:
    """Refuse a place that holds something. Raises: TargetRefused, LocalFileError."""
    if not os.path.lexists(path):
        return
    if not os.path.isdir(path):
        raise TargetRefused(f"the {what} {path} is not a directory", "Something else has this name.", "Choose another place.")
    strays = [name for name in _entries(path) if name not in allowed]
    tablespaces = os.path.join(path, TABLESPACES)
    strays += [name for name in _entries(tablespaces) if allowed and not os.path.islink(os.path.join(tablespaces, name))]
    if strays:
        hint = hint or "Restore into a new or an empty directory; nothing in this one was touched."
        if os.path.lexists(os.path.join(path, HELD_CONTROL)):
            hint = "An earlier restore did not end here. wal-e restore --delta goes on with it; or remove it."
        raise TargetRefused(f"the {what} {path} is not empty", f"It holds {', '.join(sorted(strays)[:5])}{' and more' if len(strays) > 5 else ''}.", hint)


def _require_writable(path: str) -> None:
    existing = _nearest_existing(path)
    if not os.path.isdir(existing):
        raise local_error(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), f"looking whether {path} can be written to")
    if os.access(existing, os.W_OK | os.X_OK):
        return
    user, what = _own_name(), "written to" if existing == path else "made"
    raise LocalFileError(
        f"permission denied: {path} cannot be {what}",
        f"The user {user} may not write to {existing}. Nothing was fetched.",
        f"As root: install -d -o {user} -m 700 {shlex.quote(path)}. Or run as the user of the server, usually postgres, or choose another place.",
    )


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _entries(path: str) -> list[str]:
    try:
        return [name for name in os.listdir(path) if name != "lost+found"]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise local_error(error, f"reading {path}") from None


def _missing(path: str) -> Iterator[str]:
    """The directory, and those above it, that do not exist yet."""
    while not os.path.isdir(path):
        yield path
        path = os.path.dirname(path)


def _free_bytes(path: str) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _nearest_existing(path: str) -> str:
    while not os.path.exists(path):
        parent = os.path.dirname(path)
        if parent == path:
            raise LocalFileError(f"{path} does not exist")
        path = parent
    return path
