"""The files of a server's configuration: where they are, what they include, and which of them lie outside its data directory.

On Debian they are in ``/etc``. A base backup has only what is in the data directory, so these have to be taken by themselves.
Only configuration is taken: the three files and what they include; keys of SSL and the like, which settings name, are not.
"""

from __future__ import annotations

import os
import stat

from wal_e.errors import UsageError
from wal_e.postgres.config_syntax import (
    INCLUDE,
    INCLUDE_DIR,
    INCLUDE_IF_EXISTS,
    WORDS,
    included_path,
    inclusions_in_rules,
    inclusions_in_settings,
    options_in,
    settings_in,
)
from wal_e.postgres.recovery import AUTO_CONF
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONFIG_FILE, HBA_FILE, IDENT_FILE = "config_file", "hba_file", "ident_file"
PLACES = {CONFIG_FILE: "postgresql.conf", HBA_FILE: "pg_hba.conf", IDENT_FILE: "pg_ident.conf"}

MAX_FILE_BYTES = 16 * 1024 * 1024  # no configuration is so large; what is, was included by mistake
MAX_FILES = 1000
MAX_DEPTH = 10  # CONF_FILE_MAX_DEPTH in conffiles.h
LOOKS = 3

_HINT = "Put it right, or leave out --include-config: then the backup is made without the configuration. Nothing was stored."


class ConfigFile(NamedTuple):
    """One file: the path by which the configuration is put together, its content, and how it was kept; ``mtime`` in seconds."""

    path: str
    content: bytes
    mode: int
    mtime: int
    uid: int
    gid: int


class Configuration(NamedTuple):
    """What lies outside of the data directory; ``places`` has where each of the three files is, a relative path being one in the data directory.

    ``directories`` are those that are included: without one, also if it is empty as Debian's is at first, a server does not start.
    """

    files: list[ConfigFile]
    directories: list[str]
    places: dict[str, str]


def outside(data_directory: str, places: Mapping[str, str]) -> list[str]:
    """Which of the three files lie outside a data directory, whether or not they can be read."""
    return [_outer_path(data_directory, place) for place in places.values() if not _is_inside(data_directory, place)]


def read_configuration(data_directory: str, places: Mapping[str, str]) -> Configuration:
    """Read the three files, and all they include; only those outside of the data directory are in the result.

    Raises: UsageError naming the file for what is not there, cannot be read, keeps changing, or is no configuration.
    """
    reading = _Reading(data_directory)
    for name, place in places.items():
        if name != IDENT_FILE or os.path.lexists(place):  # the server does without that one
            reading.read(place, name, 0)
    found = {name: reading.names[place] for name, place in places.items() if place in reading.names}
    return Configuration(list(reading.files.values()), reading.directories, found)


def places_of_stopped(data_directory: str) -> dict[str, str]:
    """Where the three files of a stopped server are: as its last command line says, else its ``postgresql.conf``, else in the data directory.

    Raises: UsageError when its ``postgresql.conf`` is not where that leads.
    """
    options = options_in(_text(os.path.join(data_directory, "postmaster.opts")))
    config_file = options.get(CONFIG_FILE) or os.path.join(options.get("-D") or data_directory, PLACES[CONFIG_FILE])
    if not os.path.isabs(config_file) or not os.path.exists(config_file):
        raise UsageError(
            "the configuration of the stopped server cannot be found",
            f"Its postmaster.opts, or the lack of one, leads to {config_file}.",
            "Back it up while it runs: a running server says where its configuration is. Or leave out --include-config.",
        )
    settings = dict(_settings_of(config_file, 0)) | dict(settings_in(_text(os.path.join(data_directory, AUTO_CONF)))) | options
    places = {CONFIG_FILE: os.path.normpath(config_file)}
    for name in (HBA_FILE, IDENT_FILE):
        place = settings.get(name) or os.path.join(options.get("-D") or data_directory, PLACES[name])
        if not os.path.isabs(place):  # it counts from where the server was started, and nobody knows where that was
            raise UsageError(f"{name} of the stopped server has a relative path", f"{config_file} says {place}.", _HINT)
        places[name] = os.path.normpath(place)
    return places


def _settings_of(path: str, depth: int) -> Iterator[tuple[str, str]]:
    """The settings of a file and of those that it includes, in their order."""
    for name, value in settings_in(_text(path)):
        if name in (INCLUDE, INCLUDE_IF_EXISTS, INCLUDE_DIR) and depth < MAX_DEPTH:
            where = included_path(value, path)
            for one in _members(where) if name == INCLUDE_DIR else [where]:
                yield from _settings_of(one, depth + 1)
        else:
            yield name, value


class _Reading:
    """Files that were read, by path; ``names`` are those that they have in the result."""

    def __init__(self, data_directory: str) -> None:
        self._root = data_directory
        self.files: dict[str, ConfigFile] = {}
        self.directories: list[str] = []
        self.names: dict[str, str] = {}

    def read(self, path: str, kind: str, depth: int) -> None:
        """Read a file and what it includes; ``kind`` is the setting that it belongs to."""
        if path in self.names:
            return
        if depth > MAX_DEPTH or len(self.names) >= MAX_FILES:
            raise UsageError("the configuration includes too many files", f"{path} is one of them.", _HINT)
        found = _stable(path)
        if _is_inside(self._root, path):
            self.names[path] = os.path.relpath(os.path.realpath(path), os.path.realpath(self._root))
        else:
            self.names[path] = _outer_path(self._root, path)
            self.files.setdefault(self.names[path], found._replace(path=self.names[path]))
        text = os.fsdecode(found.content)
        for how, value in inclusions_in_settings(text) if kind == CONFIG_FILE else inclusions_in_rules(text):
            where = included_path(value, path)
            if how == INCLUDE_DIR:
                if not _is_inside(self._root, where):
                    self.directories.append(_outer_path(self._root, where))
                for one in _members(where):
                    self.read(one, kind, depth + 1)
            elif how not in (INCLUDE_IF_EXISTS, WORDS) or os.path.lexists(where):  # without a file of words, a rule has none
                self.read(where, kind, depth + 1)


def _members(directory: str) -> list[str]:
    """What ``include_dir`` takes of a directory."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(".conf") and not name.startswith("."))
    except OSError as error:
        raise _unreadable(directory, error.strerror) from None
    return [path for path in (os.path.join(directory, name) for name in names) if not os.path.isdir(path)]


def _stable(path: str) -> ConfigFile:
    """Read a file as it is at one moment: an editor may be writing it."""
    for _ in range(LOOKS):
        before, content = _content(path)
        after, again = _content(path)
        if content == again and (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino):
            return ConfigFile(path, content, stat.S_IMODE(after.st_mode), int(after.st_mtime), after.st_uid, after.st_gid)
    raise _unreadable(path, "It changes while it is read")


def _content(path: str) -> tuple[os.stat_result, bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer would wait for ever
        with open(fd, "rb") as stream:
            status = os.fstat(fd)
            content = stream.read(MAX_FILE_BYTES + 1) if stat.S_ISREG(status.st_mode) else None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error.strerror if isinstance(error, OSError) else str(error)) from None
    if content is None:
        raise _unreadable(path, "It is not a file")
    if len(content) > MAX_FILE_BYTES:
        raise _unreadable(path, "It is larger than any configuration")
    return status, content


def _unreadable(path: str, reason: str | None) -> UsageError:
    return UsageError(f"the configuration file {path} cannot be put into the backup", f"{reason}.", _HINT)


def _text(path: str) -> str:
    """The text of a file that need not be there; what is wrong with one that is, shows when it is read for the backup."""
    try:
        with open(path, "rb") as stream:
            return os.fsdecode(stream.read(MAX_FILE_BYTES))
    except (OSError, ValueError):
        return ""


def _is_inside(data_directory: str, path: str) -> bool:
    """Whether a file really lies in the data directory, and so goes along anyway."""
    return _below(os.path.realpath(path), os.path.realpath(data_directory))


def _outer_path(data_directory: str, path: str) -> str:
    """The path of a file outside: where a link in the data directory leads to, else as the configuration names it."""
    named = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    is_link_inside = _below(path, data_directory) or _below(named, os.path.realpath(data_directory))
    return os.path.realpath(path) if is_link_inside else path


def _below(path: str, directory: str) -> bool:
    return path.startswith(f"{directory.rstrip('/')}/")
