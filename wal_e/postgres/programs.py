"""PostgreSQL's own programs of one major version: where they are, and which version they are of exactly."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from shutil import which

from wal_e.errors import ToolMissing
from wal_e.record import NamedTuple

SERVER = "postgres"

_PATIENCE_S = 20  # for a program to print its version
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_IN_PLACE: Mapping[str, str] = {"allow_in_place_tablespaces": "on"}
_IN_PLACE_SINCE = {10: 22, 11: 17, 12: 12, 13: 8, 14: 5}  # August 2022; from 15 on it was there from the start
_PACKAGED = ("/usr/lib/postgresql/{major}/bin", "/usr/pgsql-{major}/bin")  # Debian's, and PostgreSQL's own for Red Hat's systems


class Programs(NamedTuple):
    """A directory of programs, all of one version."""

    directory: str
    major: int
    minor: int

    def path(self, name: str) -> str | None:
        """Where a program is; None when this installation lacks it."""
        path = os.path.join(self.directory, name)
        return path if os.access(path, os.X_OK) else None

    @property
    def server(self) -> str:
        """Where the server's program is."""
        return os.path.join(self.directory, SERVER)

    @property
    def version(self) -> str:
        """The version as PostgreSQL writes it."""
        return f"{self.major}.{self.minor}"

    @property
    def in_place_settings(self) -> Mapping[str, str]:
        """The settings with which recovery takes real directories in ``pg_tblspc``; an older server needs none and knows none."""
        return _IN_PLACE if self.minor >= _IN_PLACE_SINCE.get(self.major, 0) else {}


def find_programs(major: int, directory: str | None = None) -> Programs:
    """Find the server of a major version: in the directory, if one is given; else on PATH, beside pg_config, or where packages put it.

    Raises: ToolMissing.
    """
    seen: list[str] = []
    for place in dict.fromkeys([directory] if directory else _places(major)):
        found = _programs_in(place)
        if found is not None and found.major == major:
            return found
        seen.append(f"{place} has {found.version if found else 'no server'}")
    raise ToolMissing(
        f"there is no server of PostgreSQL {major}",
        f"A data directory of version {major} needs exactly that. Looked at: {'; '.join(seen)}." if seen else "No server is on PATH or where packages put it.",
        f"Install it (apt-get install postgresql-{major}), or give the directory of its programs with --bindir.",
    )


def in_place_settings(major: int, directory: str | None = None) -> Mapping[str, str]:
    """:attr:`Programs.in_place_settings` of the server that is here; of a recent one, if none is."""
    try:
        return find_programs(major, directory).in_place_settings
    except ToolMissing:
        return _IN_PLACE


def _places(major: int) -> Iterator[str]:
    for directory in os.environ.get("PATH", "").split(os.pathsep):
        path = os.path.join(directory, SERVER)
        if directory and os.access(path, os.X_OK):
            yield os.path.dirname(os.path.realpath(path))  # a link may stand alone, without its neighbours
    if (pg_config := which("pg_config")) and (said := _output(pg_config, "--bindir")):
        yield said
    yield from (pattern.format(major=major) for pattern in _PACKAGED)


def _programs_in(directory: str) -> Programs | None:
    path = os.path.join(os.path.abspath(directory), SERVER)
    match = _VERSION.search(_output(path, "--version")) if os.access(path, os.X_OK) else None
    return Programs(os.path.dirname(path), int(match[1]), int(match[2] or 0)) if match else None


def _output(*argv: str) -> str:
    """What a program prints; "" when it fails."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=_PATIENCE_S, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
