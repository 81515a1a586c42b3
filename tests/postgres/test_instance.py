"""Servers that are started to see how far their recovery gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fix_postgres import bindir, give_to_server_user, wait_until

from wal_e.errors import ConfigurationError, ServerRefused, ServerUnavailable, ToolMissing
from wal_e.postgres import instance
from wal_e.postgres.instance import CONSISTENT, ENDED, FREE, PAUSED, PRIMARY, RECOVERING, SHUT_DOWN, Launch
from wal_e.postgres.programs import find_programs
from wal_e.postgres.wal import Lsn

ROOT = Path(__file__).parent.parent.parent


def major() -> int:
    return int(subprocess.check_output([bindir() / "postgres", "--version"], text=True).split()[2].split(".")[0])


def programs():
    return find_programs(major(), str(bindir()))


def launch(server, settings=None, **changes):
    base = {"listen_addresses": "", "unix_socket_directories": str(server.directory), "port": str(server.port), "fsync": "off", "shared_buffers": "8MB"}
    return Launch(str(server.data), programs(), str(server.directory / "instance.log"), {**base, **(settings or {})}, dict(os.environ), **changes)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def history(make_shared_server):
    """A copy of a stopped cluster, and the WAL that it wrote since: two rows, with the restore point "between" between them."""
    server = make_shared_server()
    wal = server.make_directory("wal")
    server.start(archive_mode="on", archive_command=f"cp %p {wal}/%f")
    server.psql("create table t (n int)")
    server.stop()
    copy = server.directory / "copy"
    server.run(["cp", "-a", server.data, copy], libpq=False)
    server.start()
    server.psql("insert into t values (1)")
    server.psql("select pg_create_restore_point('between')")
    between = datetime.now(UTC)
    server.psql("insert into t values (2)")
    lsn = server.psql("select pg_current_wal_lsn()")
    server.psql("select pg_switch_wal()")
    server.wait_for("select count(*) = 0 from pg_ls_archive_statusdir() where name like '%.ready'")
    return {"copy": copy, "wal": wal, "between": between, "end": Lsn.parse(lsn)}


@pytest.fixture
def recovering(history, make_place):
    """Make copies of the stopped cluster that recover with the WAL."""

    def make(signal_file="recovery.signal"):
        place = make_place()
        place.run(["cp", "-a", history["copy"], place.data], libpq=False)
        (place.data / signal_file).touch()
        give_to_server_user(place.data / signal_file)
        return place

    return make


def recovery(history, **targets):
    return {"archive_mode": "off", "restore_command": f"cp {history['wal']}/%f %p", **targets}


def test_the_end_of_recovery_is_waited_for_and_told(history, recovering):
    place = recovering()
    with instance.start(launch(place, recovery(history))) as server:
        reached = server.wait(ENDED)
        with server.connect("postgres") as session:
            assert session.execute("select count(*) from t").fetchone() == (2,)
    assert (reached.state, reached.timeline) == (PRIMARY, 2)
    assert reached.lsn >= history["end"]
    assert history["between"] < reached.last_commit <= datetime.now(UTC)
    assert server.is_gone()
    assert not (place.data / "postmaster.pid").exists()


@pytest.mark.parametrize(("action", "state"), [("pause", PAUSED), ("promote", PRIMARY), ("shutdown", SHUT_DOWN)])
def test_a_target_is_reached_in_each_of_its_three_ways(history, recovering, action, state):
    place = recovering()
    targets = {"recovery_target_name": "between", "recovery_target_action": action}
    with instance.start(launch(place, recovery(history, **targets))) as server:
        reached = server.wait(ENDED)
        if state != SHUT_DOWN:
            assert reached.last_commit < history["between"]
            with server.connect("postgres") as session:
                assert session.execute("select count(*) from t").fetchone() == (1,)
    assert (reached.state, reached.timeline) == (state, 2 if action == "promote" else 1)
    assert reached.lsn <= history["end"]


def test_a_standby_is_consistent_long_before_its_recovery_ends(history, recovering):
    place = recovering("standby.signal")
    with instance.start(launch(place, recovery(history))) as server:
        assert server.wait(CONSISTENT).state == RECOVERING


def test_a_standby_without_hot_standby_says_so_little_that_recovering_is_all_that_is_told(history, recovering):
    place = recovering("standby.signal")
    with instance.start(launch(place, recovery(history, hot_standby="off"))) as server:
        assert server.wait(CONSISTENT) == (RECOVERING, None, None, 1)


def test_a_server_that_cannot_reach_its_target_is_told_in_its_own_words(history, recovering):
    place = recovering()
    wanted = launch(place, recovery(history, recovery_target_name="never"))
    with pytest.raises(ServerRefused, match="recovery ended before configured recovery target was reached"), instance.start(wanted) as server:
        server.wait(ENDED)


def test_a_server_that_failed_for_a_reason_that_may_pass_may_be_tried_again(history, recovering):
    place = recovering()
    told = "echo '        STRUCTURED: time=2030-01-01T00:00:00-00 pid=1 error=StoreUnavailable' >&2; exit 200"
    with pytest.raises(ServerUnavailable), instance.start(launch(place, recovery(history, restore_command=told))) as server:
        server.wait(ENDED)


def test_a_server_that_does_not_start_is_not_taken_for_one_that_was_shut_down(make_server):
    server = make_server()
    server.start()
    server.stop()
    with pytest.raises(ServerRefused, match="unrecognized configuration parameter"), instance.start(launch(server, {"no_such_thing": "1"})) as started:
        started.wait(ENDED)


def test_a_server_with_a_mistake_in_its_configuration_says_in_which_line(make_server):
    server = make_server(settings={"no_such_thing": "1"})
    with pytest.raises(ServerRefused, match=r'"no_such_thing" in file ".*" line \d+'), instance.start(launch(server)) as started:
        started.wait(ENDED)


def test_the_logs_of_a_server_with_a_collector_are_quoted_too(make_server):
    server = make_server()
    settings = {"logging_collector": "on", "log_directory": str(server.make_directory("log")), "hba_file": "/nonexistent"}
    with pytest.raises(ServerRefused, match="could not load"), instance.start(launch(server, settings)) as started:
        started.wait(ENDED)
    assert "could not load" not in (server.directory / "instance.log").read_text()


def test_a_collector_that_is_behind_is_waited_for(make_server):
    server = make_server()
    settings = {"logging_collector": "on", "log_directory": str(server.make_directory("log"))}
    with instance.start(launch(server, settings)) as started:
        started.wait(ENDED)
        collector = collector_of(started.pid)
        os.kill(collector, signal.SIGSTOP)
        resume = threading.Timer(0.5, os.kill, (collector, signal.SIGCONT))
        try:
            with started.connect() as session:
                session.execute("do $$ begin raise warning 'last words'; end $$")
            os.kill(started.pid, signal.SIGQUIT)
            wait_until(started.is_gone, "the server ends")
        finally:
            resume.start()
        with pytest.raises(ServerRefused, match="last words"):
            started.wait(ENDED)
        resume.join()


def collector_of(server_pid: int) -> int:
    children = Path(f"/proc/{server_pid}/task/{server_pid}/children").read_text().split()
    return next(int(pid) for pid in children if b"logger" in Path(f"/proc/{pid}/cmdline").read_bytes())


def test_an_error_stops_the_server(make_server):
    server = make_server()
    with pytest.raises(RuntimeError), instance.start(launch(server)) as started:
        started.wait(ENDED)
        raise RuntimeError
    assert not is_alive(started.pid)


def test_variables_that_are_about_another_server_do_not_matter(make_server, monkeypatch):
    for name, value in {
        "PGHOST": "/nowhere",
        "PGHOSTADDR": "192.0.2.1",
        "PGPORT": "1",
        "PGOPTIONS": "-c nonsense=1",
        "PGTARGETSESSIONATTRS": "standby",
    }.items():
        monkeypatch.setenv(name, value)
    with instance.start(launch(make_server())) as started:
        started.wait(ENDED)
        with started.connect() as session:
            assert session.execute("select current_user").fetchone() == ("postgres",)


def test_a_server_runs_as_the_owner_of_its_data_directory(make_server):
    server = make_server()
    with instance.start(launch(server)) as started:
        started.wait(ENDED)
        assert Path(f"/proc/{started.pid}").stat().st_uid == server.data.stat().st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root asks a server of somebody else's")
def test_root_is_let_in_as_the_owner_where_the_server_goes_by_who_connects(history, recovering):
    place = recovering()
    (place.data / "pg_hba.conf").write_text("local all all peer\n")
    settings = recovery(history, recovery_target_name="between", recovery_target_action="pause")
    with instance.start(launch(place, settings)) as started:
        assert started.wait(ENDED).state == PAUSED
        assert os.geteuid() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be refused for being root")
def test_a_data_directory_of_root_is_refused(make_server):
    server = make_server()
    os.chown(server.data, 0, 0)
    with pytest.raises(ConfigurationError, match="does not run as root"):
        instance.start(launch(server))


STARTER = """
import sys
from wal_e.postgres import instance
from wal_e.postgres.programs import find_programs
data, directory, port, bindir, life = sys.argv[1:]
settings = {"listen_addresses": "", "unix_socket_directories": directory, "port": port, "shared_buffers": "8MB"}
launch = instance.Launch(data, find_programs(int(open(f"{data}/PG_VERSION").read()), bindir), f"{directory}/log", settings, {}, life)
with instance.start(launch) as server:
    server.wait("ended")
    print(server.pid, flush=True)
    if life == "free":
        server.leave()
    else:
        sys.stdin.read()
"""


def starter(server, life):
    argv = [sys.executable, "-c", STARTER, server.data, server.directory, str(server.port), bindir(), life]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_tied_server_does_not_outlive_the_one_who_started_it(make_server):
    server = make_server()
    with starter(server, "tied") as process:
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), "the end of the server")


def test_a_free_server_lives_on_when_it_is_left(make_server):
    server = make_server()
    with starter(server, FREE) as process:
        pid = int(process.stdout.readline())
    assert process.returncode == 0
    assert is_alive(pid)
    assert server.psql("select 1") == "1"
    assert os.getsid(pid) == pid
    server.stop()


def test_programs_are_those_of_the_right_version_only(monkeypatch, tmp_path):
    found = find_programs(major())
    assert found.major == major()
    assert os.access(found.server, os.X_OK)
    assert found.path("no-such-program") is None
    with pytest.raises(ToolMissing, match="no server of PostgreSQL 99") as missing:
        find_programs(99)
    assert "--bindir" in missing.value.hint
    with pytest.raises(ToolMissing, match="has no server"):
        find_programs(major(), str(tmp_path))
    with pytest.raises(ToolMissing, match=rf"has {major()}\."):
        find_programs(11, str(bindir()))
    monkeypatch.setenv("PATH", "/nowhere")
    if str(bindir()).startswith("/usr/lib/postgresql/"):
        assert find_programs(major()).directory == str(bindir())


def test_a_link_to_the_server_leads_to_its_neighbours(monkeypatch, tmp_path):
    (tmp_path / "postgres").symlink_to(bindir() / "postgres")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_programs(major()).directory == os.path.realpath(bindir())
