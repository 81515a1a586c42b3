"""Prefetch under real servers: whatever happens to it, the recovery comes to the same end."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

import build_wal
import pytest
from fix_archive import archive_into_store, processes, settled, stored_wal
from fix_network import NETWORKS
from fix_postgres import give_to_server_user, wait_until
from fix_s3 import admin
from servers import versity

ROWS = 40
_marks = itertools.count(1)


@pytest.fixture(scope="session")
def origin(make_shared_server):
    """A stopped server's store: a base backup, and 40 segments of 1 MiB behind it, each with a row of its own."""
    server = make_shared_server()
    store = archive_into_store(server)
    server.psql("create table t (n int, filler text)")
    server.wal_e("backup-push", str(server.data), "--fast")
    for number in range(ROWS):
        server.psql(f"insert into t select {number}, repeat(md5(x::text), 30) from generate_series(1, 300) x; select pg_switch_wal()")
        if number == ROWS // 2:
            server.psql("select pg_create_restore_point('half')")
    settled(server)
    server.stop()
    return server, store


@pytest.fixture
def restored(origin, make_server):
    """A server on the fetched backup, not started; what it starts carries a mark."""
    server, _ = origin
    target = server.directory / f"restored-{next(_marks)}"
    server.wal_e("backup-fetch", str(target), "LATEST")
    copy = make_server(data=target)
    copy.mark = f"{os.getpid()}-prefetch-{next(_marks)}"
    copy.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")} | {"TEST_MARK": copy.mark}
    copy.configure(archive_mode="off", restore_command="wal-e wal-fetch %f %p", wal_retrieve_retry_interval="200ms", hot_standby="on")
    yield copy
    copy.end()
    wait_until(lambda: not prefetchers(copy), "prefetching ends with its server")
    shutil.rmtree(target)


def prefetchers(server):
    """Process ids; a codec that is just being started looks like its parent, but leads no session."""
    return {pid for pid, command in processes(server.mark).items() if "wal-prefetch" in command and leads_a_session(pid)}


def leads_a_session(pid):
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def recovers(server, kind="recovery"):
    (server.data / f"{kind}.signal").touch()
    give_to_server_user(server.data / f"{kind}.signal")
    server.start()
    is_whole(server, kind)


def is_whole(server, kind="recovery"):
    if kind == "recovery":
        server.wait_for("select not pg_is_in_recovery()")
    server.wait_for(f"select count(*) = {ROWS * 300} and count(distinct n) = {ROWS} from t")


def fetching_script(server, text):
    """Make a restore_command of a shell script; it finds FILE and PATH in $1 and $2."""
    script = server.directory / f"restore-{next(_marks)}"
    script.write_text(f"#!/bin/bash\n{text}\n")
    script.chmod(0o755)
    server.configure(restore_command=f"{script} %f %p")
    return script


class Sampled:
    """Every prefetcher of a server that was seen, from a thread that looks all the time."""

    def __init__(self, server):
        self.pids = set()
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self):
        while not self._stop.wait(0.01):
            self.pids |= prefetchers(self._server)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def test_one_process_prefetches_for_a_whole_recovery_and_ends_with_the_archive(restored):
    log = restored.directory / "taken"
    fetching_script(restored, f'sleep 0.05; [ -e "pg_wal/.wal-e/prefetch/$1" ] && echo $1 >>{log}; exec wal-e wal-fetch "$1" "$2"')
    with Sampled(restored) as seen:
        recovers(restored)
    assert len(seen.pids) == 1
    assert len(log.read_text().split()) >= ROWS // 2
    assert [path.name for path in (restored.data / "pg_wal/.wal-e/prefetch").iterdir()] == ["running"]


def test_killing_it_again_and_again_changes_nothing(restored):
    dice = random.Random(4)
    fetching_script(restored, 'sleep 0.03; exec wal-e wal-fetch "$1" "$2"')
    done, killed = threading.Event(), []

    def kill():
        while not done.wait(dice.uniform(0, 0.15)):
            for pid in prefetchers(restored):
                with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        recovers(restored)
    finally:
        done.set()
        killer.join()
    assert killed


def test_foreign_and_stale_files_are_never_used(origin, restored):
    names = stored_wal(origin[1])[2:]
    prefetch = restored.data / "pg_wal/.wal-e/prefetch"
    contents = [b"", b"garbage", build_wal.build_segment(names[2]), build_wal.build_segment(names[0])[:-1], bytes(1 << 20)]
    for name, content in zip(names, itertools.islice(itertools.cycle(contents), 12), strict=False):
        (prefetch / "running" / name).mkdir(parents=True)
        (prefetch / "running" / name / "tmp").write_bytes(content)
        (prefetch / name).write_bytes(content)
    give_to_server_user(restored.data / "pg_wal/.wal-e")
    recovers(restored)  # the server would take a garbage segment of the right size for the end of the WAL


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system")
def test_a_pg_wal_on_another_file_system_is_prefetched_there(restored):
    elsewhere = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        pg_wal = restored.data / "pg_wal"
        shutil.move(pg_wal, elsewhere / "wal")
        pg_wal.symlink_to(elsewhere / "wal")
        give_to_server_user(elsewhere)
        recovers(restored)
        assert (elsewhere / "wal/.wal-e/prefetch").is_dir()
        assert "could not be started" not in restored.log_text()
    finally:
        restored.end()
        shutil.rmtree(elsewhere)


def test_a_standby_that_is_up_to_date_starts_no_process_for_every_segment(origin, restored):
    store, away = restored.directory / "store", restored.make_directory("away")
    restored.run(["cp", "-a", origin[1], store])
    *_, before, first, second, third = stored_wal(store)
    for name in (first, second, third):
        (store / f"wal_005/{name}.lzo").rename(away / name)
    restored.environ["WALE_FILE_PREFIX"] = f"file://localhost{store}"
    asked = restored.data / "pg_wal/.wal-e/prefetch.end"
    (restored.data / "standby.signal").touch()
    give_to_server_user(restored.data / "standby.signal")
    restored.start(wait=False)
    wait_until(lambda: f'"{before}" from archive' in restored.log_text() and asked.read_text() == first, "the standby is up to date")
    wait_until(lambda: not prefetchers(restored), "prefetching ends where the archive ends")
    with Sampled(restored) as seen:
        for name, following in ((first, second), (second, third)):
            (away / name).rename(store / f"wal_005/{name}.lzo")
            wait_until(lambda: asked.read_text() == following, "the standby asks for the next one")  # noqa: B023  # called before the next turn
    assert seen.pids == set()
    (away / third).rename(store / f"wal_005/{third}.lzo")
    is_whole(restored, "standby")


def test_a_script_that_takes_files_out_of_the_directory_is_served_too(restored):
    log = restored.directory / "taken"
    fetching_script(restored, f'ready="$(dirname "$(realpath "$2")")/.wal-e/prefetch/$1"\n[ -f "$ready" ] && echo "$1" >>{log} && exec mv "$ready" "$2"\n'
                    'sleep 0.05; exec wal-e wal-fetch "$1" "$2"')  # fmt: skip
    with Sampled(restored) as seen:
        recovers(restored)
    assert len(log.read_text().split()) >= 3
    assert seen.pids


def test_recovery_goes_on_where_nothing_can_be_prefetched(restored):
    (restored.data / "pg_wal/.wal-e").write_text("in the way")
    recovers(restored)
    assert "prefetching could not be started" in restored.log_text()


def test_without_prefetching_nothing_is_left_in_pg_wal(restored):
    restored.configure(restore_command="wal-e wal-fetch %f %p --prefetch 0")
    recovers(restored)
    assert not (restored.data / "pg_wal/.wal-e").exists()


def test_a_standby_and_a_recovery_from_the_same_store_do_not_know_each_other(origin, restored, make_server):
    server, _ = origin
    target = server.directory / f"restored-{next(_marks)}"
    server.wal_e("backup-fetch", str(target), "LATEST")
    standby = make_server(data=target)
    standby.environ |= restored.environ
    standby.configure(archive_mode="off", restore_command="wal-e wal-fetch %f %p", hot_standby="on")
    (target / "standby.signal").touch()
    give_to_server_user(target / "standby.signal")
    standby.start(wait=False)
    recovers(restored)
    is_whole(standby, "standby")


def test_nothing_is_left_when_a_recovery_ends_before_the_archive_does(restored):
    restored.configure(recovery_target_name="half", recovery_target_action="promote")
    (restored.data / "recovery.signal").touch()
    give_to_server_user(restored.data / "recovery.signal")
    restored.start()
    restored.wait_for("select not pg_is_in_recovery()")
    assert restored.psql("select count(distinct n) from t") == str(ROWS // 2 + 1)
    wait_until(lambda: not prefetchers(restored), "prefetching ends")
    assert list(restored.data.glob("pg_wal/.wal-e/prefetch/0*")) == []


def test_it_ends_with_a_server_that_is_shut_down_in_the_middle(restored):
    fetching_script(restored, '[ "$(ls pg_wal/.wal-e/prefetch 2>/dev/null | wc -l)" -lt 5 ] || exec sleep 60; exec wal-e wal-fetch "$1" "$2"')
    (restored.data / "standby.signal").touch()
    give_to_server_user(restored.data / "standby.signal")
    restored.start(wait=False)
    wait_until(lambda: len(list(restored.data.glob("pg_wal/.wal-e/prefetch/0*"))) >= 4, "some segments are ready")
    assert prefetchers(restored)
    restored.stop("immediate")
    wait_until(lambda: not prefetchers(restored), "prefetching ends")
    assert list(restored.data.glob("pg_wal/.wal-e/prefetch/0*")) == []


@pytest.fixture
def by_hand(origin, make_place):
    """A pg_wal without a server, and a way to fetch into it."""
    place = make_place()
    place.environ |= {"WALE_FILE_PREFIX": f"file://localhost{origin[1]}", "WALE_LOG_DESTINATION": "stderr", "TEST_MARK": f"{os.getpid()}-hand-{next(_marks)}"}
    place.mark = place.environ["TEST_MARK"]
    place.run(["mkdir", "-p", place.data / "pg_wal"])
    yield place
    for pid in prefetchers(place):
        os.kill(pid, signal.SIGKILL)


def test_a_history_file_leaves_what_is_prefetched_as_it_is(by_hand, origin):
    names = stored_wal(origin[1])
    by_hand.run(["wal-e", "wal-fetch", names[0], "data/pg_wal/RECOVERYXLOG", "-p", "3"])
    ready = by_hand.data / "pg_wal/.wal-e/prefetch"
    wait_until(lambda: sorted(path.name for path in ready.glob("0*")) == names[1:4], "three are ready")
    assert by_hand.run(["wal-e", "wal-fetch", "00000002.history", "data/pg_wal/RECOVERYHISTORY"], check=False).returncode == 1
    assert sorted(path.name for path in ready.glob("0*")) == names[1:4]


def test_pg_rewind_meets_no_files_that_come_and_go(by_hand, origin):
    script = by_hand.directory / "pg_rewind"
    script.write_text('#!/bin/bash\nwal-e wal-fetch "$1" data/pg_wal/RECOVERYXLOG; exit $?\n')
    script.chmod(0o755)
    by_hand.run([script, stored_wal(origin[1])[0]])
    assert [path.name for path in (by_hand.data / "pg_wal").iterdir()] == ["RECOVERYXLOG"]


def test_a_network_store_is_prefetched_by_several_at_once(by_hand, origin):
    network = NETWORKS["s3"]()
    prefix = network.environ["WALE_S3_PREFIX"].removeprefix("s3://")
    bucket, _, root = prefix.partition("/")
    names = stored_wal(origin[1])[:12]
    for key in ["identity_005.json", *(f"wal_005/{name}.lzo" for name in names)]:
        admin(versity).put_object(Bucket=bucket, Key=f"{root}/{key}", Body=(origin[1] / key).read_bytes())
    by_hand.environ |= {"WALE_FILE_PREFIX": "", **network.environ}
    with Sampled(by_hand) as seen:
        for name in names:
            by_hand.run(["wal-e", "wal-fetch", name, "data/pg_wal/RECOVERYXLOG"])
            plain = subprocess.run(["lzop", "-dc", origin[1] / f"wal_005/{name}.lzo"], capture_output=True, check=True).stdout
            assert (by_hand.data / "pg_wal/RECOVERYXLOG").read_bytes() == plain
            (by_hand.data / "pg_wal/RECOVERYXLOG").unlink()
    assert len(seen.pids) == 1
    assert by_hand.run(["wal-e", "wal-fetch", "0000000100000000000000FF", "data/pg_wal/RECOVERYXLOG"], check=False).returncode == 1
