"""SIGKILL at random moments of restore, delta, backup-verify and drill: what is left cannot be started, or is whole, and the same command works again.

The moments come from a seed that is printed; TEST_SEED sets it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from fix_archive import Gate, Pushed, Watched, archive_into_store, records, settled, warnings
from fix_postgres import bindir, give_to_server_user, wait_until

NEVER = 2
KILLS = pytest.mark.parametrize("kills", [1, pytest.param(25, marks=pytest.mark.slow)])


@pytest.fixture
def moments(request):
    """Random numbers, whose seed is shown when the test fails."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture(scope="module")
def origin(make_shared_server):
    """A stopped server with one backup in its store, and WAL behind it."""
    server = make_shared_server()
    store = archive_into_store(server)
    server.psql("create table t as select n, repeat('x', n % 100) as x from generate_series(1, 20000) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    server.psql("insert into t values (0, ''); select pg_switch_wal()")
    settled(server)
    server.stop()
    [row] = server.wal_e("backup-list").stdout.splitlines()[1:]
    return Pushed(server, store, [row.split("\t")[0]])


@pytest.fixture
def place(origin, make_place):
    """A place to restore into; ``Killed`` needs nothing else."""
    server = make_place()
    return Pushed(server, origin.store, origin.names)


class Killed:
    """Runs a command once to its end, which tells how long it takes, and then kills it at random moments."""

    def __init__(self, pushed, moments, *words):
        self.run = Watched(pushed.server, pushed.store)
        self.moments = moments
        self.words = words
        began = time.monotonic()
        self.ends()
        self.took = time.monotonic() - began

    def ends(self):
        result = self.run(*self.words)
        assert result.returncode == 0, result.stderr
        return result

    def dies(self):
        """Start the command and kill it; return whether it was in time."""
        moment = self.moments.uniform(0, self.took)
        print(f"killed after {moment:.3f} of {self.took:.3f} s")
        with self.run.started(*self.words) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.kill()
            return process.wait() != 0


def is_whole(directory):
    argv = [bindir() / "pg_verifybackup", "-n", "-i", "postgresql.auto.conf", "-i", "recovery.signal", directory]
    return "successfully verified" in subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def server_processes(directory: Path) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()).startswith(str(directory)) and b"postgres" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@KILLS
def test_a_restore_goes_on_with_delta(place, moments, kills):
    target = place.server.data
    restore = Killed(place, moments, "restore", str(target))
    for _ in range(kills):
        shutil.rmtree(target)
        restore.dies()
        began = target.exists() and any(path.name != "pg_tblspc" for path in target.iterdir())
        if not (target / "global/pg_control").exists():
            assert restore.run("restore", str(target), "--dry-run").returncode == (NEVER if began else 0)
        again = restore.run("restore", str(target), "--delta")
        assert again.returncode == 0, again.stderr
        assert is_whole(target)


@KILLS
def test_a_delta_goes_on_with_delta(place, moments, kills):
    target = place.server.data
    Watched(place.server, place.store)("restore", str(target))
    delta = Killed(place, moments, "restore", str(target), "--delta")
    victims = sorted((path for path in (target / "base").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)[-3:]
    for _ in range(kills):
        for victim in victims:
            victim.unlink(missing_ok=True)
        (target / "stray").touch()
        give_to_server_user(target)
        delta.dies()
        assert not (target / "global/pg_control").exists() or is_whole(target) or (target / "stray").exists()
        delta.ends()
        assert is_whole(target)


@pytest.mark.slow
def test_a_verification_can_be_made_again(place, moments):
    verify = Killed(place, moments, "backup-verify", "LATEST")
    for _ in range(15):
        verify.dies()
        verify.ends()


@pytest.mark.slow
def test_a_drill_leaves_no_server_and_the_next_one_takes_its_directory_away(place, moments):
    scratch = place.server.make_directory("scratch")
    drill = Killed(place, moments, "drill", "--bindir", str(bindir()), "--directory", str(scratch))
    for _ in range(15):
        drill.dies()
        wait_until(lambda: not server_processes(scratch), "the end of the server")
        drill.ends()
        assert [path for path in scratch.iterdir() if (path / "lock").exists()] == []


def test_a_drill_that_is_killed_while_its_server_recovers_is_cleaned_up_by_the_next_one(place):
    scratch, gate = place.server.make_directory("scratch"), Gate(place.server, 5)  # the first call is the server's
    run, words = Watched(place.server, place.store), ["drill", "--bindir", str(bindir()), "--directory", str(scratch)]
    with run.started(*words, "-p", "1", env=gate.env) as process:
        gate.wait(process)
        assert server_processes(scratch)
        process.kill()
        process.wait()
        wait_until(lambda: not server_processes(scratch), "the end of the server")
    [left] = scratch.iterdir()
    kept = run(*words, "--keep", "--target-immediate")
    assert [record.message for record in warnings(kept)] == [f"removing {left}"]
    [kept_one] = scratch.iterdir()
    assert kept_one != left
    again = run(*words, "--target-immediate")
    assert (again.returncode, warnings(again)) == (0, [])
    assert list(scratch.iterdir()) == [kept_one]  # what was asked to be kept is kept


def test_a_drill_leaves_alone_what_another_one_works_on(place):
    scratch, gate = place.server.make_directory("scratch"), Gate(place.server, 3)
    run, words = Watched(place.server, place.store), ["drill", "--bindir", str(bindir()), "--directory", str(scratch), "--target-immediate"]
    with run.started(*words, "-p", "1", env=gate.env) as first:
        gate.wait(first)
        second = run(*words)
        assert (second.returncode, warnings(second)) == (0, [])
        gate.open()
        _, stderr = first.communicate(timeout=60)
    assert first.returncode == 0, stderr
    assert [record for record in records(stderr) if record.level == "ERROR"] == []
    assert list(scratch.iterdir()) == []
