"""An archive to spoil, and runs of wal-e that are watched for what they leave behind.

``pushed`` is a running server with two base backups in its store; it is shared by the whole
session and only read. A test that spoils a store takes ``copied_store``. ``Watched`` runs wal-e and
fails the test when a process, a temporary file or a traceback stays behind.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from fix_postgres import Server, _server_user, bindir, give_to_server_user, programs_of, wait_until

_RECORD = re.compile(
    r"^wal_e\S* +([A-Z]+) +MSG: (.*?)(?:\n {8}DETAIL: (.*?))?(?:\n {8}HINT: (.*?))?\n {8}STRUCTURED: time=\S+ pid=\d+(?: error=(\w+))?[^\n]*\n",
    re.M | re.S,
)
_marks = itertools.count(1)


class Record(NamedTuple):
    """One log record; ``error`` is the class of the error that it tells, else ""."""

    level: str
    message: str
    detail: str
    hint: str
    error: str

    @property
    def text(self) -> str:
        return f"{self.message}\n{self.detail}\n{self.hint}"


def records(stderr: str) -> list[Record]:
    """Read what wal-e logged; there must be nothing else on its stderr."""
    assert _RECORD.sub("", stderr) == "", f"not a log record: {_RECORD.sub('', stderr)}"
    return [Record(*(group or "" for group in match.groups())) for match in _RECORD.finditer(stderr)]


def refusal(result: subprocess.CompletedProcess[str], status: int, *words: str, stdout: str = "") -> Record:
    """Check that a run ended with this status and one error record which has all the words; return the record."""
    assert result.returncode == status, (result.returncode, result.stderr)
    assert result.stdout == stdout
    errors = [record for record in records(result.stderr) if record.level == "ERROR"]
    assert len(errors) == 1, result.stderr
    for word in words:
        assert word in errors[0].text, (word, errors[0])
    assert errors[0].error != "WaleError", errors[0]
    return errors[0]


def warnings(result: subprocess.CompletedProcess[str]) -> list[Record]:
    return [record for record in records(result.stderr) if record.level == "WARNING"]


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """All that is below a path, hidden files too: kind and mode, size, and content; empty if there is no such path."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (root, *root.rglob("*")) if os.path.lexists(root) else ():
        status = path.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = (status.st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        found[str(path.relative_to(root))] = (oct(status.st_mode), content)
    return found


@contextlib.contextmanager
def unchanged(*roots: Path):
    """Fail when anything below these paths is another after the block than before."""
    before = [listing(root) for root in roots]
    yield
    for root, then in zip(roots, before, strict=True):
        now = listing(root)
        assert now == then, {name: (then.get(name), now.get(name)) for name in {*now, *then} if now.get(name) != then.get(name)}


class Watched:
    """Runs wal-e as the user of a server and looks whether it leaves anything behind."""

    def __init__(self, server: Server, store: Path | None = None) -> None:
        self.server = server
        self.env = {"WALE_LOG_DESTINATION": "stderr"}
        if store is not None:
            self.env["WALE_FILE_PREFIX"] = f"file://localhost{store}"

    def __call__(self, *args: str, env: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess[str]:
        """Run wal-e to its end; options are those of ``Server.run``."""
        with self._watch() as watched:
            result = self.server.run([script(), *args], env={**self.env, **watched, **(env or {})}, check=False, **options)
        if result.stderr is not None:
            assert "Traceback" not in result.stderr, result.stderr
        return result

    @contextlib.contextmanager
    def started(self, *args: str, env: dict[str, str] | None = None, **options):
        """Start wal-e and give its ``Popen``; it must have ended, with all it started, when the block ends."""
        environ = {**self.server.environ, **self.server.env, **self.env, **(env or {})}
        with self._watch() as watched:
            settings = {"env": {name: value for name, value in {**environ, **watched}.items() if value}, "cwd": self.server.directory}
            with subprocess.Popen(
                [script(), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings, **_identity(), **options
            ) as process:
                try:
                    yield process
                finally:
                    process.kill()

    @contextlib.contextmanager
    def _watch(self):
        number = next(_marks)
        temporary = self.server.make_directory(f"tmp-{number}")
        mark = f"{os.getpid()}-{number}"
        try:
            yield {"TMPDIR": str(temporary), "TEST_MARK": mark}
            wait_until(lambda: not processes(mark), f"the end of {processes(mark)}")
            assert list(temporary.iterdir()) == []
        finally:
            for pid in processes(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _identity() -> dict[str, object]:
    user = _server_user()
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}


def script() -> Path:
    """The installed wal-e."""
    found = Path(sys.executable).parent / "wal-e"
    if not found.exists():
        pytest.fail(f"wal-e is not installed beside {sys.executable}; run: {sys.executable} -m pip install -e .")
    return found


def processes(mark: str) -> dict[int, str]:
    """Living processes that were started with this mark in their environment, and their command lines."""
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TEST_MARK={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                found[int(directory.name)] = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def fake_lzop(server: Server, body: str) -> dict[str, str]:
    """Put an lzop before the real one on PATH, which runs Python first: ``call`` counts its calls, ``place`` is its directory.

    Unless the body ends it, it becomes the real lzop. Return the environment that has it.
    """
    place = server.make_directory(f"fake-{next(_marks)}")
    program = place / "lzop"
    program.write_text(f"#!{sys.executable} -I\n{_FAKE.format(real=shutil.which('lzop'), body=body)}")
    program.chmod(0o755)
    give_to_server_user(place)
    return {"PATH": f"{place}{os.pathsep}{server.environ['PATH']}"}


_FAKE = """import os, subprocess, sys, time
place, real = os.path.dirname(os.path.abspath(__file__)), {real!r}
call = 1
while True:
    try:
        os.mkdir(f"{{place}}/call-{{call}}")
        break
    except FileExistsError:
        call += 1
{body}
os.execv(real, ["lzop", *sys.argv[1:]])
"""


class Gate:
    """An lzop that stops at one of its calls, with half of its output written, until the gate is opened."""

    def __init__(self, server: Server, at: int) -> None:
        self.env = fake_lzop(server, _GATED.format(at=at))
        self._place = Path(self.env["PATH"].partition(os.pathsep)[0])
        os.mkfifo(self._place / "gate")
        give_to_server_user(self._place)

    def wait(self, process: subprocess.Popen[str]) -> None:
        """Wait until the lzop has stopped."""

        def stopped() -> bool:
            assert process.poll() is None, process.communicate()
            return (self._place / "stopped").exists()

        wait_until(stopped, "lzop comes to the gate")

    def open(self) -> None:
        """Let it go on, for good."""
        with (self._place / "gate").open("w"):
            pass


_GATED = """
if call == {at}:
    output = subprocess.run([real, *sys.argv[1:]], stdout=subprocess.PIPE, check=True).stdout
    half = len(output) // 2
    sys.stdout.buffer.write(output[:half])
    sys.stdout.buffer.flush()
    open(f"{{place}}/stopped", "w").close()
    open(f"{{place}}/gate").read()
    sys.stdout.buffer.write(output[half:])
    sys.exit()
"""


class Pushed(NamedTuple):
    """A running server that archives into a store, and the names of the two backups there, oldest first."""

    server: Server
    store: Path
    names: list[str]


@pytest.fixture(scope="session")
def make_shared_server(_server_root, _template):
    """Make servers that live as long as the session, for tests that only read: with segments of 1 MiB unless told otherwise, like ``make_server``."""
    servers = []

    def make(*, wal_segsize_mb: int = 1, major: int | None = None, checksums: bool | None = None) -> Server:
        programs = programs_of(major) if major else bindir()
        directory = Path(tempfile.mkdtemp(prefix="p", dir=_server_root))
        give_to_server_user(directory)
        servers.append(Server(directory, directory / "data", programs))
        servers[-1].run(["cp", "-a", _template(wal_segsize_mb, programs, checksums=checksums), servers[-1].data], libpq=False)
        return servers[-1]

    yield make
    for server in servers:
        server.end()
        shutil.rmtree(server.directory)


@pytest.fixture(scope="session")
def pushed(make_shared_server):
    """A server with two backups in its store; only read by tests."""
    server = make_shared_server()
    store = archive_into_store(server, autovacuum="off")  # it would archive while a test looks
    for number in (1, 2):
        server.psql(f"create table t{number} as select generate_series(1, 1000) as n")
        server.wal_e("backup-push", str(server.data), "--fast")
    settled(server)
    names = backups(server)
    assert len(names) == 2
    return Pushed(server, store, names)


@pytest.fixture
def make_place(_server_root):
    """Make directories for a server's user, each in the form of a server without a data directory; of a major version, as ``make_server``."""
    places = []

    def make(major: int | None = None) -> Server:
        directory = Path(tempfile.mkdtemp(prefix="d", dir=_server_root))
        give_to_server_user(directory)
        places.append(Server(directory, directory / "data", programs_of(major) if major else bindir()))
        return places[-1]

    yield make
    for place in places:
        place.end()
        shutil.rmtree(place.directory)


@pytest.fixture
def spoiled(pushed, make_place):
    """A copy of the store of ``pushed``, to be spoiled by the test, and a place; ``cluster`` puts a data directory there."""
    return copied(pushed, make_place())


@pytest.fixture
def cluster(spoiled, _template):
    """The data directory of ``spoiled``: of the same cluster, not running."""
    spoiled.server.run(["cp", "-a", _template(1), spoiled.server.data])
    return spoiled.server.data


def copied(pushed: Pushed, place: Server) -> Pushed:
    """Copy the store to another place."""
    store = place.directory / "store"
    place.run(["cp", "-a", pushed.store, store], libpq=False)
    return Pushed(place, store, pushed.names)


def backups(server: Server) -> list[str]:
    """The names of the backups in the store of a server, oldest first."""
    return [row.split("\t")[0] for row in server.wal_e("backup-list").stdout.splitlines()[1:]]


def settled(server: Server) -> None:
    """Wait until no session of wal-e is left, and with it no backup in progress, and until all WAL is archived."""
    server.wait_for("select count(*) = 0 from pg_stat_activity where application_name = 'wal-e'")
    waiting = server.data / "pg_wal/archive_status"
    wait_until(lambda: not [name for name in os.listdir(waiting) if name.endswith(".ready")], f"all WAL is archived\n{server.log_text()}")


def fill_archive(server: Server) -> None:
    """Push a base backup, then rows in three segments that are in the archive but not in the backup; stop the server."""
    server.psql("create table t as select generate_series(1, 1000) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    for _ in range(3):
        server.psql("insert into t select generate_series(1, 1000); select pg_switch_wal()")
    settled(server)
    server.stop()


def stored_wal(store: Path) -> list[str]:
    """Names of the segments in a store, oldest first."""
    return sorted(path.name.removesuffix(".lzo") for path in (store / "wal_005").iterdir() if len(path.name) == 28)


def archive_into_store(server: Server, **settings: str) -> Path:
    """Make a store beside the data directory and start the server, which archives into it."""
    store = server.make_directory("store")
    server.environ |= {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    server.start(archive_mode="on", archive_command="wal-e wal-push %p", **settings)
    return store
