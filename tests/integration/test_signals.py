"""Signals at each phase of each verb: wal-e dies of the signal, and nothing is left of what it was about to make.

An lzop that stops until it is told to go on (``Gate``) holds wal-e at a phase; no moment is hit by luck.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from fix_archive import Gate, Watched, archive_into_store, fake_lzop, records, refusal, settled, stored_wal, unchanged, warnings
from fix_postgres import bindir, give_to_server_user, wait_until

ENDING = [signal.SIGTERM, signal.SIGINT]
BOTH = pytest.mark.parametrize("signum", ENDING, ids=lambda signum: signum.name)


def dies(process, signum):
    """Send the signal; the process must die of it, with nothing but log records on stderr. Return those."""
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == -signum, (process.returncode, stderr)
    assert stdout == ""
    return records(stderr)


def leftovers(store):
    """What is in the store of backups without a sentinel, and every temporary name."""
    backups = [path for path in (store / "basebackups_005").glob("*/") if not path.with_name(f"{path.name}_backup_stop_sentinel.json").exists()]
    return backups + [path for path in store.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="module")
def archived(make_shared_server):
    """A running server and its store, which has no backup after each test either."""
    server = make_shared_server()
    return server, archive_into_store(server, autovacuum="off")  # it would archive while a test looks


@contextlib.contextmanager
def pushing(archived, *options, env=None):
    """A started backup-push; when it has died, the store has nothing of it and the server no backup in progress."""
    server, store = archived
    with Watched(server, store).started("backup-push", str(server.data), *options, env=env) as push:
        yield push
    server.wait_for("select count(*) = 0 from pg_stat_activity where application_name = 'wal-e'", timeout_s=60)
    settled(server)
    assert leftovers(store) == []
    assert not (store / "basebackups_005").exists()


class TestBackupPush:
    @BOTH
    def test_while_it_connects(self, archived, signum):
        """To a server that never answers."""
        server, _ = archived
        place = server.make_directory(f"silent-{signum}")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{place}/.s.PGSQL.{server.port}")
            give_to_server_user(place)
            listener.listen()
            with pushing(archived, env={"PGHOST": str(place)}) as push:
                connection, _ = listener.accept()
                with connection:
                    dies(push, signum)

    @BOTH
    def test_while_it_waits_for_a_spread_checkpoint(self, archived, signum):
        server, _ = archived
        server.psql("create table if not exists many as select repeat('x', 1000) from generate_series(1, 4000)")
        server.psql("checkpoint")
        server.psql("update many set repeat = repeat")
        with pushing(archived) as push:
            server.wait_for("select count(*) = 1 from pg_stat_activity where application_name = 'wal-e' and wait_event = 'CheckpointDone'")
            dies(push, signum)

    @BOTH
    @pytest.mark.parametrize(("phase", "call"), [("first partition", 1), ("last partition", 2), ("manifest", 3)])
    def test_while_it_pushes(self, archived, signum, phase, call):
        gate = Gate(archived[0], call)
        with pushing(archived, "--fast", env=gate.env) as push:
            gate.wait(push)
            dies(push, signum)

    @BOTH
    def test_while_it_waits_for_wal(self, archived, signum):
        server, store = archived
        server.psql("alter system set archive_command = 'false'")
        server.reload()
        try:
            with pushing(archived, "--fast") as push:
                wait_until(lambda: list(store.glob("basebackups_005/*/tar_partitions/part_00000001.tar.lzo")), "the last partition is there")
                server.wait_for("select count(*) = 1 from pg_stat_activity where application_name = 'wal-e' and state = 'idle'")
                dies(push, signum)
                server.psql("alter system reset archive_command")
                server.reload()
        finally:
            server.psql("alter system reset archive_command")
            server.reload()

    def test_a_kill_leaves_no_backup_and_the_next_push_removes_what_is_left(self, spoiled, cluster):
        gate, wal_e = Gate(spoiled.server, 2), Watched(spoiled.server, spoiled.store)
        before = wal_e("backup-list").stdout
        with wal_e.started("backup-push", str(cluster), "--while-offline", env=gate.env) as push:
            gate.wait(push)
            dies(push, signal.SIGKILL)
            gate.open()
        assert wal_e("backup-list").stdout == before
        again = wal_e("backup-push", str(cluster), "--while-offline")
        assert again.returncode == 0
        assert [record.message.partition(" of ")[0] for record in warnings(again)] == ["removing what an unfinished push"]
        assert len(wal_e("backup-list").stdout.splitlines()) == len(before.splitlines()) + 1
        assert wal_e("backup-fetch", str(spoiled.server.directory / "target"), "LATEST").returncode == 0

    def test_a_killed_codec_is_started_again(self, spoiled, cluster):
        env = fake_lzop(spoiled.server, "if call in (1, 3): os.kill(os.getpid(), 9)")
        result = Watched(spoiled.server, spoiled.store)("backup-push", str(cluster), "--while-offline", env=env)
        assert result.returncode == 0
        assert [record.message.partition(";")[0] for record in warnings(result)] == ["lzop was killed"] * 2
        fetched = Watched(spoiled.server, spoiled.store)("backup-fetch", str(spoiled.server.directory / "target"), "LATEST")
        assert fetched.returncode == 0


class TestBackupFetch:
    @BOTH
    @pytest.mark.parametrize(("phase", "call"), [("manifest", 1), ("first partition", 2), ("last partition", 3)])
    @pytest.mark.parametrize("target_exists", [False, True])
    def test_while_it_fetches(self, spoiled, signum, phase, call, target_exists):
        target = spoiled.server.make_directory("target") if target_exists else spoiled.server.directory / "new/target"
        gate = Gate(spoiled.server, call)
        running = Watched(spoiled.server, spoiled.store).started("backup-fetch", str(target), "LATEST", "-p", "1", env=gate.env)
        with unchanged(spoiled.store, target if target_exists else target.parent), running as fetch:
            gate.wait(fetch)
            assert phase == "manifest" or list(target.iterdir())
            said = dies(fetch, signum)
        assert phase == "manifest" or any("is removed again" in record.text for record in said)

    @BOTH
    def test_when_only_pg_control_is_not_yet_in_its_place(self, spoiled, signum):
        """It is held at the manifest of PostgreSQL's own, which is written after the last partition: here into a pipe."""
        target, gate = spoiled.server.directory / "target", Gate(spoiled.server, 3)
        with Watched(spoiled.server, spoiled.store).started("backup-fetch", str(target), "LATEST", "-p", "1", env=gate.env) as fetch:
            gate.wait(fetch)
            os.mkfifo(target / "backup_manifest")
            give_to_server_user(target / "backup_manifest")
            gate.open()
            with (target / "backup_manifest").open("rb") as manifest:
                assert (target / "global/pg_control.wal-e-restore").exists()
                fetch.send_signal(signum)
                manifest.read()
            dies(fetch, signum)
        assert not target.exists()

    def test_a_kill_leaves_what_can_neither_be_started_nor_restored_over(self, spoiled, make_server):
        target, gate = spoiled.server.directory / "target", Gate(spoiled.server, 3)
        wal_e = Watched(spoiled.server, spoiled.store)
        with wal_e.started("backup-fetch", str(target), "LATEST", "-p", "1", env=gate.env) as fetch:
            gate.wait(fetch)
            dies(fetch, signal.SIGKILL)
            gate.open()
        assert (target / "PG_VERSION").exists()
        assert not (target / "global/pg_control").exists()
        assert not make_server(data=target).start(check=False)
        refusal(wal_e("backup-fetch", str(target), "LATEST"), 2, f"{target} is not empty")


class TestWal:
    @BOTH
    def test_while_it_pushes_a_segment(self, spoiled, signum):
        path = segment_to_push(spoiled)
        gate = Gate(spoiled.server, 1)
        with unchanged(spoiled.store), Watched(spoiled.server, spoiled.store).started("wal-push", str(path), env=gate.env) as push:
            gate.wait(push)
            dies(push, signum)

    @BOTH
    def test_while_it_pushes_a_segment_and_a_neighbour(self, spoiled, cluster, signum):
        """The neighbour, which is small, may be stored already; then it is marked."""
        pg_wal = cluster / "pg_wal"
        path = segment_to_push(spoiled)
        path = path.rename(pg_wal / path.name)
        history = pg_wal / "00000002.history"
        history.write_text("1\t0/3000000\tpromoted\n")
        for ready in (path, history):
            (pg_wal / "archive_status" / f"{ready.name}.ready").touch()
        give_to_server_user(pg_wal)
        gate = Gate(spoiled.server, 1)
        with Watched(spoiled.server, spoiled.store).started("wal-push", str(path), env=gate.env) as push:
            gate.wait(push)
            dies(push, signum)
        stored = {name for name in (path.name, history.name) if (spoiled.store / f"wal_005/{name}.lzo").exists()}
        assert len(stored) < 2
        assert (pg_wal / f"archive_status/{path.name}.ready").exists()
        assert (pg_wal / f"archive_status/{history.name}.ready").exists() or history.name in stored
        assert leftovers(spoiled.store) == []

    @BOTH
    def test_while_it_fetches_a_segment(self, spoiled, cluster, signum):
        destination = cluster / "pg_wal/RECOVERYXLOG"
        gate = Gate(spoiled.server, 1)
        name = stored_wal(spoiled.store)[0]
        running = Watched(spoiled.server, spoiled.store).started("wal-fetch", name, str(destination), env=gate.env)
        with unchanged(spoiled.store, cluster), running as fetch:
            gate.wait(fetch)
            dies(fetch, signum)

    @BOTH
    def test_while_it_prefetches(self, spoiled, cluster, signum):
        pg_wal = cluster / "pg_wal"
        gate = Gate(spoiled.server, 2)
        names = stored_wal(spoiled.store)
        with Watched(spoiled.server, spoiled.store).started("wal-prefetch", str(pg_wal), names[0], "-p", "2", env=gate.env) as prefetch:
            gate.wait(prefetch)
            dies(prefetch, signum)
        assert os.listdir(pg_wal / ".wal-e/prefetch/running") == []
        assert sorted(os.listdir(pg_wal / ".wal-e/prefetch")) == [names[0], "running"]

    @BOTH
    def test_while_it_waits_for_the_store(self, spoiled, signum):
        """Between two attempts."""
        path = segment_to_push(spoiled)
        env = fake_lzop(spoiled.server, "os.kill(os.getpid(), 9)")
        with unchanged(spoiled.store), Watched(spoiled.server, spoiled.store).started("wal-push", str(path), env=env) as push:
            while "trying again in" not in push.stderr.readline():
                assert push.poll() is None
            dies(push, signum)

    def test_a_kill_during_a_push_leaves_no_segment_and_the_next_push_succeeds(self, spoiled):
        path = segment_to_push(spoiled)
        gate, wal_e = Gate(spoiled.server, 1), Watched(spoiled.server, spoiled.store)
        with wal_e.started("wal-push", str(path), env=gate.env) as push:
            gate.wait(push)
            dies(push, signal.SIGKILL)
            gate.open()
        assert path.name not in stored_wal(spoiled.store)
        assert wal_e("wal-push", str(path)).returncode == 0
        assert path.name in stored_wal(spoiled.store)

    def test_a_kill_during_a_fetch_leaves_nothing_at_the_destination(self, spoiled):
        destination = spoiled.server.directory / "RECOVERYXLOG"
        gate, wal_e = Gate(spoiled.server, 1), Watched(spoiled.server, spoiled.store)
        name = stored_wal(spoiled.store)[0]
        with wal_e.started("wal-fetch", name, str(destination), "-p", "0", env=gate.env) as fetch:
            gate.wait(fetch)
            dies(fetch, signal.SIGKILL)
            gate.open()
        assert not destination.exists()
        assert wal_e("wal-fetch", name, str(destination), "-p", "0").returncode == 0


class TestIgnoredSignals:
    @pytest.mark.parametrize("verb", ["wal-push", "wal-fetch", "backup-fetch"])
    def test_an_interrupt_that_the_parent_ignores_stays_ignored(self, spoiled, verb):
        """As the server's archiver and startup process leave it to their commands."""
        target = spoiled.server.directory / "target"
        words = {
            "wal-push": lambda: [str(segment_to_push(spoiled))],
            "wal-fetch": lambda: [stored_wal(spoiled.store)[0], str(target), "-p", "0"],
            "backup-fetch": lambda: [str(target), "LATEST"],
        }[verb]()
        gate = Gate(spoiled.server, 1)

        def ignore():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

        with Watched(spoiled.server, spoiled.store).started(verb, *words, env=gate.env, preexec_fn=ignore) as process:
            gate.wait(process)
            process.send_signal(signal.SIGINT)
            gate.open()
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 0, stderr

    @pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGQUIT], ids=lambda signum: signum.name)
    @pytest.mark.parametrize("verb", ["wal-fetch", "backup-fetch"])
    def test_a_hangup_and_a_quit_end_it_as_well(self, spoiled, verb, signum):
        target = spoiled.server.directory / "target"
        words = [stored_wal(spoiled.store)[0], str(target), "-p", "0"] if verb == "wal-fetch" else [str(target), "LATEST"]
        gate = Gate(spoiled.server, 1)
        with unchanged(spoiled.store, target), Watched(spoiled.server, spoiled.store).started(verb, *words, env=gate.env) as process:
            gate.wait(process)
            dies(process, signum)


def test_a_signal_that_meets_a_finaliser_is_not_thrown_away_with_it():
    program = """
import os, signal, time, weakref
from wal_e.__main__ import _end_main_on_signals
from wal_e.errors import Terminated
class Finalised: pass
def finalise(_):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0)
_end_main_on_signals()
thing = Finalised()
reference = weakref.ref(thing, finalise)
try:
    del thing
    time.sleep(10)
except Terminated as ended:
    print("ended by", ended.signum)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ran.stdout, ran.stderr) == (f"ended by {signal.SIGTERM:d}\n", "")


@pytest.mark.slow
class TestRandomMoments:
    """Fifty moments of each verb, drawn by a seed that is printed; TEST_SEED repeats them."""

    MOMENTS = 50

    @pytest.fixture
    def dice(self):
        seed = int(os.environ.get("TEST_SEED", random.randrange(2**32)))
        print(f"TEST_SEED={seed}")
        return random.Random(seed)

    def strikes(self, wal_e, dice, *words, again=lambda: None):
        """Run a command to its end once, then send it a signal at each moment; yield the signal after each. ``again`` makes it repeatable."""
        began = time.monotonic()
        assert wal_e(*words).returncode == 0
        took = time.monotonic() - began
        for number in range(self.MOMENTS):
            again()
            moment, signum = dice.uniform(0, took), dice.choice([*ENDING, signal.SIGKILL])
            print(f"{number}: {signal.Signals(signum).name} after {moment:.3f} of {took:.3f} s")
            with wal_e.started(*words) as process:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(moment)
                process.send_signal(signum)
                _, stderr = process.communicate(timeout=60)
            if not (signum == signal.SIGINT and interpreter_was_starting(stderr)):
                assert process.returncode in (0, -signum), (process.returncode, stderr)
                assert "Traceback" not in stderr, stderr
                assert "internal error" not in stderr, stderr
            yield signum

    def test_of_backup_push(self, archived, dice):
        server, store = archived
        wal_e = Watched(server, store)
        backups = store / "basebackups_005"
        for signum in self.strikes(wal_e, dice, "backup-push", str(server.data), "--fast", again=lambda: shutil.rmtree(backups, ignore_errors=True)):
            settled(server)
            assert signum == signal.SIGKILL or leftovers(store) == []
            remove_temporary_names(store)
            for name in (line.split("\t")[0] for line in wal_e("backup-list").stdout.splitlines()[1:]):
                target = server.directory / "target"
                assert wal_e("backup-fetch", str(target), name).returncode == 0
                shutil.rmtree(target)

    def test_of_backup_fetch(self, spoiled, dice):
        target = spoiled.server.directory / "target"

        def again():
            shutil.rmtree(target, ignore_errors=True)

        with unchanged(spoiled.store):
            for signum in self.strikes(Watched(spoiled.server, spoiled.store), dice, "backup-fetch", str(target), "LATEST", again=again):
                if (target / "global/pg_control").exists():
                    spoiled.server.run([bindir() / "pg_verifybackup", "-n", target])
                else:
                    assert signum == signal.SIGKILL or not target.exists()

    def test_of_wal_push(self, spoiled, dice):
        path = segment_to_push(spoiled)
        stored = spoiled.store / f"wal_005/{path.name}.lzo"
        for signum in self.strikes(Watched(spoiled.server, spoiled.store), dice, "wal-push", str(path), again=lambda: stored.unlink(missing_ok=True)):
            assert signum == signal.SIGKILL or leftovers(spoiled.store) == []
            remove_temporary_names(spoiled.store)
            if stored.exists():
                assert subprocess.run(["lzop", "-d", "-c", stored], capture_output=True, check=True).stdout == path.read_bytes()

    def test_of_wal_fetch(self, spoiled, dice):
        place = spoiled.server.make_directory("place")
        destination = place / "RECOVERYXLOG"
        name = stored_wal(spoiled.store)[0]
        words = ["wal-fetch", name, str(destination), "-p", "0"]
        for signum in self.strikes(Watched(spoiled.server, spoiled.store), dice, *words, again=lambda: destination.unlink(missing_ok=True)):
            assert not destination.exists() or destination.stat().st_size == 1 << 20
            assert signum == signal.SIGKILL or {path.name for path in place.iterdir()} <= {destination.name}
            for temporary in place.glob("*.tmp"):
                temporary.unlink()

    def test_of_wal_prefetch(self, spoiled, cluster, dice):
        pg_wal = cluster / "pg_wal"
        prefetch = pg_wal / ".wal-e/prefetch"
        words = ["wal-prefetch", str(pg_wal), stored_wal(spoiled.store)[0], "-p", "100"]
        for signum in self.strikes(Watched(spoiled.server, spoiled.store), dice, *words, again=lambda: shutil.rmtree(pg_wal / ".wal-e", ignore_errors=True)):
            if prefetch.exists():
                assert all(path.stat().st_size == 1 << 20 for path in prefetch.iterdir() if path.name != "running")
                assert signum == signal.SIGKILL or not (prefetch / "running").exists() or os.listdir(prefetch / "running") == []

    def test_of_backup_list(self, spoiled, dice):
        with unchanged(spoiled.store):
            for _ in self.strikes(Watched(spoiled.server, spoiled.store), dice, "backup-list", "--detail"):
                pass


def interpreter_was_starting(stderr):
    """Whether an interrupt met Python before it came to our first line; then it ends as it likes, and nothing was begun."""
    return "KeyboardInterrupt" in stderr and re.search(r'wal_e/__main__.py", line \d+, in main', stderr) is None


def remove_temporary_names(store):
    """Remove what a killed process could not."""
    for path in store.rglob(".*"):
        path.unlink()


def segment_to_push(spoiled):
    """Take a segment out of the store, to be pushed again from beside the data directory; return its path."""
    stored = spoiled.store / f"wal_005/{stored_wal(spoiled.store)[0]}.lzo"
    path = spoiled.server.directory / stored.name.removesuffix(".lzo")
    path.write_bytes(subprocess.run(["lzop", "-d", "-c", stored], capture_output=True, check=True).stdout)
    give_to_server_user(path)
    stored.unlink()
    return path
