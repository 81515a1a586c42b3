"""The command lines of the fast path: both parsers understand the same."""

import os
import subprocess
import sys

import click
import pytest

from wal_e import __version__
from wal_e.cli import fast
from wal_e.cli import wal as click_wal
from wal_e.cli.main import wal_e
from wal_e.operators.archiver_station import Station
from wal_e.operators.wal_prefetch import PrefetchDirectory

TABLE = [
    ["wal-push", "pg_wal/000000010000000000000003"],
    ["wal-push", "-p", "4", "pg_wal/X"],
    ["wal-push", "pg_wal/X", "-p4"],
    ["wal-push", "pg_wal/X", "--pool-size=4"],
    ["wal-push", "pg_wal/X", "--pool-size", "0"],
    ["wal-push", "--no-rename", "pg_wal/X", "-p", "2"],
    ["wal-push", "pg_wal/X", "--no-rename"],
    ["wal-fetch", "X", "pg_wal/RECOVERYXLOG"],
    ["wal-fetch", "X", "pg_wal/RECOVERYXLOG", "-p", "1"],
    ["wal-fetch", "-p", "1", "X", "pg_wal/RECOVERYXLOG"],
    ["wal-fetch", "X", "-p0", "pg_wal/RECOVERYXLOG"],
    ["wal-fetch", "X", "dest with space", "--prefetch=3"],
    ["wal-fetch", "X", "dest", "--prefetch", "3", "-p", "5"],
    ["wal-prefetch", "--prefetch", "8", "/pg_wal", "X"],
    ["--envdir", "/etc/wal-e/env", "wal-push", "X"],
    ["--envdir=/etc/wal-e/env", "--terse", "wal-fetch", "X", "Y"],
    ["--file-prefix", "file://localhost/x", "wal-push", "X"],
    ["--s3-prefix=s3://b/x", "--gpg-key-id", "me@example", "wal-push", "X"],
    ["-k", "id", "wal-push", "X"],
    ["--aws-access-key-id=id", "-a", "account", "wal-push", "X"],
    ["--aws-instance-profile", "--s3-prefix", "s3://b/x", "wal-fetch", "X", "Y"],
    ["--gs-prefix", "gs://b", "--swift-prefix", "swift://c", "--wabs-prefix", "wabs://d", "wal-push", "X"],
]

LEFT_TO_CLICK = [
    [],
    ["wal-push"],
    ["wal-push", "a", "b"],
    ["wal-fetch", "a"],
    ["wal-push", "--help"],
    ["wal-push", "a", "--prefetch", "3"],
    ["wal-push", "a", "-p"],
    ["wal-push", "a", "-p", "-1"],
    ["wal-push", "a", "-p", "x"],
    ["wal-push", "a", "--", "b"],
    ["wal-push", "a", "-px"],
    ["wal-push", "a", "--pool-size="],
    ["wal-push", "a", "--drop-after", "3"],
    ["wal-push", "--missing", "a"],
    ["wal-fetch", "a", "b", "--no-rename"],
    ["--envdir"],
    ["--unknown", "wal-push", "a"],
    ["backup-list"],
    ["-kid", "wal-push", "a"],
    ["-k"],
]


def by_click(argv):
    """What click makes of a command line: the verb, its parameters, and the options before it that were given."""
    with wal_e.make_context("wal-e", list(argv)) as context:
        options = {name: "1" if value is True else value for name, value in context.params.items() if value}
        verb, command, rest = wal_e.resolve_command(context, [*context._protected_args, *context.args])
        with command.make_context(verb, list(rest), parent=context) as below:
            return verb, dict(below.params), options


@pytest.mark.parametrize("argv", TABLE, ids=" ".join)
def test_both_parsers_read_the_same(argv):
    command = fast.parse(argv)
    verb, parameters, options = by_click(argv)
    number = parameters.pop("pool_size" if verb == "wal-push" else "prefetch")
    positional = [parameter.name for parameter in getattr(click_wal, verb.replace("-", "_")).params if isinstance(parameter, click.Argument)]
    flags = tuple(f"--{name.replace('_', '-')}" for name, value in parameters.items() if value is True)
    assert command == fast.FastCommand(verb, tuple(parameters[name] for name in positional), number, options, flags)


@pytest.mark.parametrize("argv", LEFT_TO_CLICK, ids=" ".join)
def test_what_is_not_in_the_table_is_left_to_click(argv):
    assert fast.parse(argv) is None


def test_defaults_are_those_of_wal_e():
    assert fast.parse(["wal-push", "x"]).number == 32
    assert fast.parse(["wal-fetch", "x", "y"]).number == 8


ALLOWED = {"wal-push": {"json", "signal", "re", "datetime", "ctypes", "fcntl"}, "prefetch hit": set()}
HEAVY = {
    "gevent",
    "click",
    "psycopg",
    "boto3",
    "google",
    "azure",
    "swiftclient",
    "typing",
    "dataclasses",
    "logging",
    "subprocess",
    "json",
    "signal",
    "re",
    "datetime",
}
HEAVY |= {"asyncio", "argparse", "inspect", "tempfile", "urllib", "http", "ssl", "socket", "threading", "contextlib", "hashlib", "pathlib", "shutil", "random"}


def imported(tmp_path, *argv, env, whole=False):
    """Names of the modules that a run of the launcher imported, beyond a bare interpreter: of the top level, unless they are wanted whole."""
    runner = f"import sys; before = set(sys.modules); sys.argv = ['wal-e', *{list(argv)!r}]\nfrom wal_e import __main__ as m\nstatus = m.run(sys.argv[1:])\n"
    runner += "print(status, *sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", runner], capture_output=True, text=True, env=env, cwd=tmp_path)
    status, *names = done.stdout.split()
    assert status == "0", done.stderr
    return set(names) if whole else {name.split(".")[0] for name in names}


@pytest.fixture
def environ(tmp_path):
    (tmp_path / "store").mkdir()
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), *sys.path])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "WALE_FILE_PREFIX": f"file://localhost{tmp_path}/store"}


HAND_SHAKE = {
    "wal_e", "wal_e.__main__", "wal_e.errors", "wal_e.cli", "wal_e.cli.fast", "wal_e.cli.run", "wal_e.record", "wal_e.settings", "wal_e.log", "wal_e.operators",
    "wal_e.operators.handshake", "_socket", "_blake2", "__future__", "collections", "_collections", "keyword", "operator", "_operator", "reprlib", "itertools",
}  # fmt: skip


def test_a_hand_shake_imports_these_modules_and_no_others(environ, tmp_path, segment, data_directory):
    def answer(request):
        yield ("stored",)

    path, station = segment("000000010000000000000003"), Station(str(data_directory / "pg_wal"), answer)
    try:
        names = imported(tmp_path, "wal-push", path, env=environ, whole=True)
    finally:
        station.close()
    assert names <= HAND_SHAKE, names - HAND_SHAKE
    assert {"wal_e.operators.handshake", "_socket"} <= names


def test_a_push_of_one_segment_imports_next_to_nothing(environ, tmp_path, segment):
    names = imported(tmp_path, "wal-push", segment("000000010000000000000003"), env=environ)
    assert names & HEAVY <= ALLOWED["wal-push"]


def test_a_prefetch_hit_imports_even_less(environ, tmp_path, segment, data_directory):
    destination = data_directory / "pg_wal" / "RECOVERYXLOG"
    directory = PrefetchDirectory.beside(str(destination))
    directory.make()
    os.rename(segment("000000010000000000000003"), os.path.join(directory.ready, "000000010000000000000003"))
    lock = directory.lock()  # as if the background process were running
    try:
        names = imported(tmp_path, "wal-fetch", "000000010000000000000003", str(destination), env=environ)
    finally:
        os.close(lock)
    assert destination.exists()
    assert names & HEAVY == ALLOWED["prefetch hit"]


def test_version_imports_nothing_at_all(environ, tmp_path):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import sys; sys.argv=['wal-e','version']; from wal_e.__main__ import main; main()"],
        capture_output=True,
        text=True,
        env=environ,
    )
    assert done.stdout.strip() == __version__
    names = {line.split("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not {name.split(".")[0] for name in names} & HEAVY


def test_what_every_installed_package_says_of_itself_is_not_read_for_gevent():
    patch = "from wal_e.__main__ import _patch; _patch(); import sys, gevent.socket, socket"
    code = f"{patch}; print('importlib.metadata' in sys.modules, socket.socket is gevent.socket.socket)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False True\n"
