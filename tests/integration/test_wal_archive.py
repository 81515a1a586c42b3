"""The resident archiver as a process: with real servers that call wal-push, and beside built data directories where no server is needed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import build_wal
import pytest
from fix_archive import _identity, archive_into_store, fake_lzop, records, script, settled
from fix_postgres import Server, wait_until

from wal_e.operators.handshake import archiver_answers

LOAD = ("pgbench", "-n", "-c", "2", "-f", "load.sql")


class Resident:
    """A resident archiver of a data directory, running as its owner; its log is in a file."""

    def __init__(self, data: Path, env: dict[str, str], log: Path, *args: str, as_server_user: bool = True) -> None:
        self.data, self.log = data, log
        identity = _identity() if as_server_user else {}
        argv = [script(), "wal-archive", str(data), *args]
        with log.open("ab") as stream:
            self.process = subprocess.Popen(argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream, **identity)

    def ready(self) -> Resident:
        """Wait until it answers."""
        wait_until(lambda: self.process.poll() is not None or archiver_answers(str(self.data / "pg_wal")), "the archiver answers")
        assert self.process.poll() is None, self.log.read_text()
        return self

    def records(self):
        return records(self.log.read_text())

    def said(self, word: str) -> list[str]:
        """Messages with this word."""
        return [record.message for record in self.records() if word in record.message]

    def ends(self, signum: int) -> int:
        self.process.send_signal(signum)
        return self.process.wait(60)


@pytest.fixture
def residents():
    """Start residents; all are ended after the test."""
    started: list[Resident] = []

    def start(*args, **options):
        started.append(Resident(*args, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def beside(residents):
    """Start a resident beside a server."""

    def start(server: Server, *args: str, **env: str) -> Resident:
        return residents(server.data, {**server.environ, **env}, server.directory / "archiver.log", *args)

    return start


@pytest.fixture
def archiving(make_server):
    """A server that archives into a store, which is given too; all its WAL stays in pg_wal."""
    server = make_server(wal_segsize_mb=1)
    store = archive_into_store(server, wal_keep_size="1GB", checkpoint_timeout="30s")
    server.psql("create table load (line text)")
    (server.directory / "load.sql").write_text("insert into load select repeat(md5(random()::text), 4) from generate_series(1, 3000);\n")  # 0.6 MB of WAL
    return server, store


def every_file_is_stored_as_it_is(server: Server, store: Path) -> int:
    """Check all that the server takes for archived against pg_wal; return how many files."""
    done = sorted(path.name.removesuffix(".done") for path in (server.data / "pg_wal/archive_status").glob("*.done"))
    for name in done:
        original = server.data / "pg_wal" / name
        if original.exists():
            decoded = subprocess.run(["lzop", "-dc", store / f"wal_005/{name}.lzo"], capture_output=True, check=True).stdout
            assert decoded == original.read_bytes(), name
    return len(done)


def status_of(data: Path, name: str) -> str:
    """Whether a file is "ready" or "done"."""
    (status,) = [path.suffix[1:] for path in (data / "pg_wal/archive_status").glob(f"{name}.*")]
    return status


class TestWithAServer:
    def test_a_loaded_server_is_archived_and_asks_for_little(self, archiving, beside):
        server, store = archiving
        resident = beside(server).ready()
        server.run([*LOAD, "-t", "20"])
        server.psql("select pg_switch_wal()")
        settled(server)
        assert every_file_is_stored_as_it_is(server, store) > 10
        assert [path.name for path in store.rglob(".*")] == []
        assert len(resident.said("pushed 0")) > 10
        assert [record for record in resident.records() if record.level != "INFO"] == []
        assert "could not" not in server.log_text()
        assert server.psql("select failed_count from pg_stat_archiver") == "0"
        server.stop()
        server.start()
        server.psql("insert into load values (1); select pg_switch_wal()")
        settled(server)
        assert resident.ends(signal.SIGTERM) == -signal.SIGTERM
        assert not (server.data / "pg_wal/.wal-e/archiver.sock").exists()

    def test_it_may_be_killed_and_started_in_the_middle(self, archiving, beside):
        server, store = archiving
        with subprocess.Popen(**server_command(server, *LOAD, "-T", "4")) as load:
            for _ in range(3):
                beside(server).ready().ends(signal.SIGKILL)
            beside(server).ready()
            assert load.wait() == 0
        server.psql("select pg_switch_wal()")
        settled(server)
        assert every_file_is_stored_as_it_is(server, store) > 10
        assert "WARNING:  archiving" not in server.log_text()

    def test_the_store_may_go_away_and_come_back(self, archiving, beside):
        server, store = archiving
        server.environ["WALE_PUSH_DEADLINE"] = "2"
        server.stop()
        server.start()
        resident = beside(server, WALE_BACKLOG_LIMIT="3").ready()
        settled(server)
        store.rename(store.with_name("away"))
        server.run([*LOAD, "-t", "20"])
        wait_until(lambda: resident.said("WAL files wait to be archived"), "the alarm")
        server.wait_for("select failed_count > 0 from pg_stat_archiver")
        store.with_name("away").rename(store)
        settled(server)
        wait_until(lambda: resident.said("within its limit"), "the end of the alarm")
        assert every_file_is_stored_as_it_is(server, store) > 10
        stories = [record.message for record in resident.records() if record.level != "INFO"]
        assert [re.sub(r"\d+.*", "N", story) for story in stories] == [
            "archiving stands still: the directory of the store went away",
            "N",
            "archiving goes on after N",
            "the backlog is within its limit again",
        ]

    def test_a_server_is_shut_down_at_once_while_the_store_is_away(self, archiving, beside):
        server, store = archiving
        resident = beside(server).ready()
        settled(server)
        store.rename(store.with_name("away"))
        server.psql("insert into load values (1); select pg_switch_wal()")
        wait_until(lambda: resident.said("stands still"), "the archiver notices")
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 30
        assert "shutting down" in server.log_text()
        store.with_name("away").rename(store)
        server.start()
        settled(server)
        assert every_file_is_stored_as_it_is(server, store) > 0

    def test_a_path_too_long_for_a_socket_is_none_too_long(self, make_server, beside):
        server = make_server(wal_segsize_mb=1, data_name="d" * 100)
        archive_into_store(server)
        resident = beside(server).ready()
        server.psql("create table t as select 1; select pg_switch_wal()")
        settled(server)
        assert resident.said("pushed 0")

    def test_without_renaming_the_server_asks_for_each_file(self, archiving, beside):
        server, store = archiving
        resident = beside(server, "--no-rename").ready()
        before = int(server.psql("select archived_count from pg_stat_archiver"))
        for _ in range(5):
            server.psql("insert into load values (1); select pg_switch_wal()")
        settled(server)
        assert every_file_is_stored_as_it_is(server, store) >= 5
        assert int(server.psql("select archived_count from pg_stat_archiver")) >= before + 5
        assert [record for record in resident.records() if record.level != "INFO"] == []

    @pytest.mark.slow
    def test_a_promoted_server_is_followed(self, archiving, beside, make_server):
        server, store = archiving
        server.wal_e("backup-push", str(server.data), "--fast")
        target = server.directory / "restored"
        server.wal_e("backup-fetch", str(target), "LATEST")
        server.stop()
        copy = make_server(data=target)
        copy.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")}
        resident = beside(copy).ready()
        (copy.data / "recovery.signal").touch()
        copy.start(restore_command="wal-e wal-fetch %f %p -p 0")
        copy.wait_for("select not pg_is_in_recovery()")
        for _ in range(3):
            copy.psql("insert into load values (1); select pg_switch_wal()")
        settled(copy)
        assert every_file_is_stored_as_it_is(copy, store) > 3
        second = [message.split()[1] for message in resident.said("pushed 00000002")]
        assert second[0] == "00000002.history"
        assert len(second) >= 4


def server_command(server: Server, *argv: str) -> dict[str, object]:
    """Arguments of ``Popen`` for a program that runs beside the test as the server's user."""
    environ = {**server.environ, **server.env}
    return {"args": argv, "env": environ, "cwd": server.directory, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **_identity()}


@pytest.fixture
def place(tmp_path, data_directory):
    """The environment of wal-e for a store in files, beside a built data directory; ours, not a server's user's."""
    (tmp_path / "store").mkdir()
    return {"PATH": os.environ["PATH"], "WALE_FILE_PREFIX": f"file://localhost{tmp_path}/store", "WALE_LOG_DESTINATION": "stderr", "HOME": str(tmp_path)}


@pytest.fixture
def resident(residents, place, data_directory, tmp_path):
    """Start a resident of the built data directory."""

    def start(*args: str, **env: str) -> Resident:
        return residents(data_directory, {**place, **env}, tmp_path / "archiver.log", *args, as_server_user=False)

    return start


@pytest.fixture
def ready(data_directory, segment):
    """Make segments and mark them ready."""

    def make(*names, **options):
        for name in names:
            segment(name, **options)
            (data_directory / "pg_wal/archive_status" / f"{name}.ready").touch()

    return make


@pytest.fixture
def wal_push(place, data_directory):
    """Run wal-push for a name, as the server does."""

    def run(name, *args, **env):
        argv = [script(), "wal-push", f"pg_wal/{name}", *args]
        return subprocess.run(argv, cwd=data_directory, env={**place, **env}, capture_output=True, text=True, timeout=60)

    return run


def seg(number: int) -> str:
    return f"00000001{number:016X}"


def stored(tmp_path) -> list[str]:
    return sorted(path.name.removesuffix(".lzo") for path in (tmp_path / "store").glob("wal_005/[!.]*"))


class TestBesideABuiltDirectory:
    def test_what_waits_is_pushed_and_marked_and_asking_is_a_hand_shake(self, resident, ready, wal_push, tmp_path, data_directory):
        ready(*map(seg, range(1, 9)))
        archiver = resident("--metrics-file", str(tmp_path / "m.prom")).ready()
        wait_until(lambda: {status_of(data_directory, seg(number)) for number in range(1, 9)} == {"done"}, "all are done")
        assert stored(tmp_path) == [seg(number) for number in range(1, 9)]
        (tmp_path / "store").rename(tmp_path / "away")
        assert wal_push(seg(3)).returncode == 0  # the store need not be asked
        assert (tmp_path / "m.prom").exists()
        assert [record for record in archiver.records() if record.level != "INFO"] == []

    def test_in_a_burst_one_question_is_for_many_files(self, resident, ready, wal_push, make_place, tmp_path, data_directory):
        slow = fake_lzop(make_place(), "time.sleep(0.1)")
        resident(**{**slow, "PATH": slow["PATH"] + os.pathsep + os.environ["PATH"]}).ready()
        names = [seg(number) for number in range(1, 25)]
        ready(*names)
        asked = []
        for name in names:
            if status_of(data_directory, name) == "ready":
                assert wal_push(name).returncode == 0
                asked.append(name)
                mark = data_directory / "pg_wal/archive_status" / f"{name}.ready"
                with contextlib.suppress(FileNotFoundError):  # marked when the question took long to come: the server warns, and goes on
                    mark.rename(mark.with_suffix(".done"))
        assert stored(tmp_path) == names
        assert len(asked) <= len(names) / 2, asked  # five where nothing else runs: three are pushed at a time, in a tenth of a second

    def test_a_file_that_changed_since_is_pushed_again_and_refused(self, resident, ready, segment, wal_push, data_directory):
        ready(seg(1))
        resident().ready()
        wait_until(lambda: status_of(data_directory, seg(1)) == "done", "it is done")
        segment(seg(1), fill="zero")
        result = wal_push(seg(1))
        (record,) = records(result.stderr)
        assert (result.returncode, record.error) == (2, "WalConflict")
        assert "split brain" in record.detail

    def test_a_refused_file_is_told_once_and_blocks_nobody(self, resident, ready, segment, wal_push, data_directory, tmp_path):
        ready(seg(1), seg(2), seg(4))
        segment(seg(2), b"rubbish")
        archiver = resident().ready()
        ready(seg(3))
        wait_until(lambda: {status_of(data_directory, seg(number)) for number in (1, 3, 4)} == {"done"}, "the others are done")
        for _ in range(2):
            result = wal_push(seg(2))
            (record,) = records(result.stderr)
            assert (result.returncode, record.error) == (2, "WalRefused")
        assert status_of(data_directory, seg(2)) == "ready"
        assert [record.error for record in archiver.records() if record.level != "INFO"] == ["WalRefused"]
        segment(seg(2))
        assert wal_push(seg(2)).returncode == 0
        assert stored(tmp_path) == [seg(number) for number in (1, 2, 3, 4)]

    def test_a_new_timeline_begins_in_the_store_with_its_history(self, resident, ready, data_directory):
        second = [f"00000002{number:016X}" for number in (4, 5, 6, 7)]
        ready(*second, seg(3))
        ready("00000002.history", content=b"1\t0/400000\tno recovery target specified\n")
        archiver = resident().ready()
        wait_until(lambda: {status_of(data_directory, name) for name in second} == {"done"}, "all are done")
        pushed = [message.split()[1] for message in archiver.said("pushed 00000002")]
        assert pushed[0] == "00000002.history"
        assert sorted(pushed[1:]) == second

    def test_a_client_with_another_prefix_works_for_itself(self, resident, ready, wal_push, tmp_path):
        (tmp_path / "other").mkdir()
        archiver = resident("--no-rename").ready()
        ready(seg(1))
        result = wal_push(seg(1), WALE_FILE_PREFIX=f"file://localhost{tmp_path}/other", WALE_LOG_LEVEL="info")
        assert result.returncode == 0
        assert "does not push this file" in records(result.stderr)[0].message
        assert (tmp_path / f"other/wal_005/{seg(1)}.lzo").exists()
        assert archiver.said("other settings")

    def test_a_file_of_the_same_name_elsewhere_is_not_its_business(self, resident, ready, wal_push, data_directory, tmp_path):
        ready(seg(1))
        resident().ready()
        wait_until(lambda: status_of(data_directory, seg(1)) == "done", "it is done")
        elsewhere = tmp_path / "copy/pg_wal"
        elsewhere.mkdir(parents=True)
        (elsewhere / ".wal-e").symlink_to(data_directory / "pg_wal/.wal-e")
        (elsewhere / seg(1)).write_bytes(build_wal.build_segment(seg(1), fill="zero"))
        assert wal_push(f"../../copy/pg_wal/{seg(1)}").returncode == 2

    def test_a_client_gets_the_error_at_its_deadline(self, resident, ready, wal_push, tmp_path):
        resident().ready()
        (tmp_path / "store").rename(tmp_path / "away")
        ready(seg(1))
        started = time.monotonic()
        result = wal_push(seg(1), WALE_PUSH_DEADLINE="1")
        assert 1 <= time.monotonic() - started < 60  # the archiver itself has five minutes
        (record,) = records(result.stderr)
        assert (result.returncode, record.error, record.message) == (1, "StoreUnavailable", "the directory of the store went away")

    def test_a_client_whose_archiver_is_killed_does_the_work_itself(self, resident, ready, wal_push, tmp_path, make_place, data_directory):
        stopping = fake_lzop(make_place(), 'if call == 1: open(f"{place}/stopped", "w").close(); time.sleep(600)')
        archiver = resident(**{**stopping, "PATH": stopping["PATH"] + os.pathsep + os.environ["PATH"]}).ready()
        ready(seg(1))
        stopped = Path(stopping["PATH"].partition(os.pathsep)[0]) / "stopped"
        wait_until(stopped.exists, "the archiver is at work on it")
        outcome = []
        client = threading.Thread(target=lambda: outcome.append(wal_push(seg(1))))
        client.start()
        time.sleep(0.3)  # either way is right, before the client asks and after
        assert status_of(data_directory, seg(1)) == "ready"
        archiver.ends(signal.SIGKILL)
        client.join()
        assert outcome[0].returncode == 0, outcome[0].stderr
        assert stored(tmp_path) == [seg(1)]
        assert status_of(data_directory, seg(1)) == "ready"
        for pid in lzop_children(stopping["PATH"].partition(os.pathsep)[0]):
            os.kill(pid, signal.SIGKILL)

    @pytest.mark.slow
    def test_a_client_whose_archiver_hangs_does_the_work_itself(self, resident, ready, wal_push, tmp_path):
        archiver = resident().ready()
        archiver.process.send_signal(signal.SIGSTOP)
        ready(seg(1))
        result = wal_push(seg(1))
        assert result.returncode == 0
        assert "silent" in records(result.stderr)[0].message
        assert stored(tmp_path) == [seg(1)]

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_ends_it_and_leaves_nothing_behind(self, resident, ready, tmp_path, make_place, data_directory, signum):
        stopping = fake_lzop(make_place(), 'open(f"{place}/stopped", "w").close(); time.sleep(600)')
        archiver = resident(**{**stopping, "PATH": stopping["PATH"] + os.pathsep + os.environ["PATH"]}).ready()
        ready(seg(1), seg(2))
        directory = stopping["PATH"].partition(os.pathsep)[0]
        wait_until((Path(directory) / "stopped").exists, "the archiver is at work")
        assert archiver.ends(signum) == -signum
        assert lzop_children(directory) == []
        assert stored(tmp_path) == []
        assert [path.name for path in (tmp_path / "store").rglob(".*")] == []
        assert {status_of(data_directory, seg(number)) for number in (1, 2)} == {"ready"}
        assert os.listdir(data_directory / "pg_wal/.wal-e") == ["archiver.lock"]

    def test_garbage_on_the_socket_does_not_end_it(self, resident, ready, wal_push, data_directory):
        archiver = resident().ready()
        for data in (b"\xff" * 5000, b"\0\0\0\x05ab", b"", b"\0\0\0\x011"):
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.connect(str(data_directory / "pg_wal/.wal-e/archiver.sock"))
                client.sendall(data)
        ready(seg(1))
        assert wal_push(seg(1)).returncode == 0
        assert archiver.process.poll() is None
        assert [record for record in archiver.records() if record.level != "INFO"] == []

    @pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.slow)])
    def test_of_two_archivers_at_once_one_works_and_the_other_is_refused(self, residents, place, ready, data_directory, tmp_path, rounds):
        for number in range(rounds):
            ready(seg(2 * number), seg(2 * number + 1))
            two = [residents(data_directory, place, tmp_path / f"log-{number}-{which}", as_server_user=False) for which in (1, 2)]
            wait_until(lambda two=two: any(one.process.poll() is not None for one in two), "one of them gives up")
            (loser,) = [one for one in two if one.process.poll() is not None]
            (winner,) = [one for one in two if one is not loser]
            assert loser.process.returncode == 1, loser.log.read_text()
            assert [record.error for record in loser.records() if record.level == "ERROR"] == ["LockHeld"]
            winner.ready()
            wait_until(lambda n=number: status_of(data_directory, seg(2 * n + 1)) == "done", "the winner works")
            assert winner.ends(signal.SIGKILL if number % 2 else signal.SIGTERM) < 0
            assert [record for record in winner.records() if record.level != "INFO"] == []
        assert stored(tmp_path) == [seg(number) for number in range(2 * rounds)]

    def test_it_waits_for_its_cluster_and_follows_it_when_it_is_replaced(self, resident, ready, data_directory, tmp_path):
        ready(seg(1))
        first, second = data_directory, tmp_path / "second"
        first.rename(second)
        archiver = resident()
        wait_until(lambda: archiver.said("no cluster"), "it waits")
        assert not first.exists()
        second.rename(first)
        archiver.ready()
        wait_until(lambda: status_of(data_directory, seg(1)) == "done", "it works")
        first.rename(second)
        subprocess.run(["cp", "-a", second, first], check=True)
        for leftover in (first / "pg_wal/.wal-e").iterdir():
            leftover.unlink()
        ready(seg(2))
        wait_until(lambda: status_of(data_directory, seg(2)) == "done", "it works on the copy")
        archiver.ready()
        assert len(archiver.said("no cluster")) == 1

    def test_without_archive_status_it_waits_for_it(self, resident, ready, data_directory):
        status = data_directory / "pg_wal/archive_status"
        status.rmdir()
        archiver = resident().ready()
        status.mkdir()
        began = time.monotonic()
        for name in map(seg, range(1, 6)):
            ready(name)
            wait_until(lambda name=name: status_of(data_directory, name) == "done", "it works")
        assert time.monotonic() - began < 30, "each is news, and does not wait for the next look around, ten seconds later"
        assert [record for record in archiver.records() if record.level != "INFO"] == []

    def test_a_store_that_is_not_there_yet_is_waited_for(self, resident, ready, data_directory, tmp_path):
        (tmp_path / "store").rmdir()
        ready(seg(1))
        archiver = resident().ready()
        wait_until(lambda: archiver.said("stands still"), "it waits")
        (tmp_path / "store").mkdir()
        wait_until(lambda: status_of(data_directory, seg(1)) == "done", "it works")

    def test_without_settings_it_does_not_start(self, resident):
        archiver = resident(WALE_FILE_PREFIX="")
        assert archiver.process.wait(20) == 2
        assert [record.error for record in archiver.records()] == ["ConfigurationError"]

    def test_what_is_dropped_was_asked_for_by_name(self, resident, ready, wal_push, data_directory, tmp_path):
        resident("--drop-after", "2").ready()
        (tmp_path / "store").rename(tmp_path / "away")
        ready(*map(seg, range(1, 6)))
        wait_until(lambda: [status_of(data_directory, seg(number)) for number in range(1, 6)] == ["done"] * 3 + ["ready"] * 2, "the oldest are dropped")
        (tmp_path / "away").rename(tmp_path / "store")
        wait_until(lambda: {status_of(data_directory, seg(number)) for number in (4, 5)} == {"done"}, "the others are stored")
        assert set(stored(tmp_path)) >= {seg(4), seg(5)}

    def test_the_service_manager_is_told(self, resident, tmp_path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.settimeout(20)
            manager.bind(f"\0wal-e-{os.getpid()}")
            archiver = resident(NOTIFY_SOCKET=f"@wal-e-{os.getpid()}")
            assert manager.recv(100) == b"READY=1"
            assert archiver_answers(str(archiver.data / "pg_wal"))
            archiver.ends(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"


class TestWalPushAlone:
    def test_no_rename_pushes_the_named_file_only(self, ready, wal_push, data_directory, tmp_path):
        ready(seg(1), seg(2))
        assert wal_push(seg(1), "--no-rename").returncode == 0
        assert stored(tmp_path) == [seg(1)]
        assert wal_push(seg(1), WALE_NO_RENAME="yes").returncode == 0
        assert stored(tmp_path) == [seg(1)]
        assert status_of(data_directory, seg(2)) == "ready"
        assert wal_push(seg(1)).returncode == 0
        assert stored(tmp_path) == [seg(1), seg(2)]

    def test_drop_after_gives_up_the_oldest_when_the_store_is_away(self, ready, wal_push, data_directory, tmp_path):
        ready(*map(seg, range(1, 5)))
        (tmp_path / "store").rmdir()
        kept = wal_push(seg(4), "--drop-after", "4", WALE_PUSH_DEADLINE="0.1")
        assert kept.returncode == 2  # what a directory that is not there ends with
        newest = wal_push(seg(4), "--drop-after", "2", WALE_PUSH_DEADLINE="0.1")
        assert newest.returncode == 2
        assert [status_of(data_directory, seg(number)) for number in range(1, 5)] == ["done", "done", "ready", "ready"]
        oldest = wal_push(seg(3), "--drop-after", "1", WALE_PUSH_DEADLINE="0.1")
        assert oldest.returncode == 0
        assert [record.message.partition(" ")[0] for record in records(oldest.stderr) if record.level == "ERROR"] == [seg(3), "the"]

    def test_nothing_is_dropped_for_what_will_not_pass(self, ready, wal_push, segment, data_directory):
        ready(seg(1), seg(2))
        segment(seg(1), b"rubbish")
        assert wal_push(seg(1), "--drop-after", "0").returncode == 2
        assert {status_of(data_directory, seg(number)) for number in (1, 2)} == {"ready"}


def lzop_children(directory: str) -> list[int]:
    """Living processes of the lzop in this directory."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{directory}/lzop".encode() in place.read_bytes():
                found.append(int(place.parent.name))
    return found
