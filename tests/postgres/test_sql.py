from __future__ import annotations

import os
import re
import subprocess
import threading

import psycopg
import pytest
from fix_postgres import bindir, give_to_server_user, wait_until

from wal_e.errors import BackupInterrupted, ServerRefused, ServerUnavailable, WrongCluster
from wal_e.postgres import connection, sql
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.wal import Lsn


@pytest.fixture(autouse=True)
def no_libpq_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)


def connected(server, environ=None) -> sql.Session:
    return sql.connect(Cluster.open(str(server.data)), {"PGUSER": "postgres"} if environ is None else environ)


def activity(server, column: str) -> str:
    return server.psql(f"SELECT {column} FROM pg_stat_activity WHERE application_name = 'wal-e'")


def end_session(server) -> None:
    server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wal-e'")
    wait_until(lambda: activity(server, "pid") == "", "the session ended")


def test_without_variables_the_server_is_found_through_postmaster_pid(server):
    with connected(server) as session:
        assert activity(server, "datname") == "postgres"
        assert session.version_num == int(server.psql("SHOW server_version_num"))
        assert session.version_text == server.psql("SELECT version()")
        assert session.in_recovery is False
        assert session.role() == "primary"
        assert session.segment_size == 16 * 1024 * 1024


def test_the_session_ends_with_its_block(server):
    with connected(server):
        pass
    wait_until(lambda: activity(server, "pid") == "", "the session ended")


def test_the_session_has_no_time_limits_and_a_safe_search_path(server):
    candidates = "'statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout'"
    names = server.psql(f"SELECT name FROM pg_settings WHERE name IN ({candidates})").split("\n")
    assert len(names) >= 3
    for name in names:
        server.psql(f"ALTER ROLE postgres SET {name} = 90000")
    server.psql("ALTER ROLE postgres SET search_path = public, pg_catalog")
    with connected(server) as session:
        assert {name: session._rows("looking", f"SHOW {name}") for name in names} == {name: [("0",)] for name in names}
        assert session._rows("looking", "SHOW search_path") == [("pg_catalog",)]


def test_a_function_of_the_same_name_in_public_is_not_called(server):
    server.psql("CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'")
    server.psql("ALTER ROLE postgres SET search_path = public, pg_catalog")
    with connected(server) as session:
        assert session.role() == "primary"


def test_libpqs_variables_win(server):
    server.psql("CREATE DATABASE other")
    server.psql("CREATE ROLE someone SUPERUSER LOGIN")
    environ = {**server.env, "PGUSER": "someone", "PGDATABASE": "other", "PGAPPNAME": "mine"}
    (server.data / "postmaster.pid").rename(server.directory / "aside")
    with connected(server, environ):
        assert server.psql("SELECT usename, datname FROM pg_stat_activity WHERE application_name = 'mine'") == "someone|other"
    (server.directory / "aside").rename(server.data / "postmaster.pid")


def test_variables_of_the_process_itself_count_too(server, monkeypatch):
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)
    (server.data / "postmaster.pid").rename(server.directory / "aside")
    with connected(server, os.environ):
        pass
    (server.directory / "aside").rename(server.data / "postmaster.pid")


def test_a_service_decides_by_itself(server, monkeypatch):
    services = server.directory / "services"
    services.write_text(f"[mine]\nhost={server.socket_dir}\nport={server.port}\nuser=postgres\ndbname=template1\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    with connected(server, {"PGSERVICE": "mine"}):
        assert activity(server, "datname") == "template1"


def test_an_unknown_service_is_told(server):
    with pytest.raises(ServerUnavailable, match="nowhere"):
        connected(server, {"PGSERVICE": "nowhere"})


def test_a_relative_socket_directory_is_below_the_data_directory(server):
    lines = (server.data / "postmaster.pid").read_text().split("\n")
    lines[4] = "../"
    (server.data / "postmaster.pid").write_text("\n".join(lines))
    with connected(server):
        pass


def test_a_server_without_sockets_is_reached_where_it_listens(make_server):
    server = make_server()
    lines = ["", "/nowhere", "1700000000", str(server.port), "", "*"]
    for listen, expected in {"*": "localhost", "0.0.0.0": "127.0.0.1", "::": "::1", "db1": "db1"}.items():
        (server.data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:5], listen, ""]))
        parameters = connection.parameters({}, Cluster.open(str(server.data)))
        assert (parameters["host"], parameters["port"]) == (expected, server.port)


def test_a_connection_over_tcp_keeps_itself_alive(server):
    parameters = connection.parameters({}, Cluster.open(str(server.data)))
    assert {name: parameters[name] for name in ("keepalives", "keepalives_idle", "connect_timeout")} == {
        "keepalives": 1,
        "keepalives_idle": 30,
        "connect_timeout": 10,
    }
    assert connection.parameters({"PGCONNECT_TIMEOUT": "3"}, Cluster.open(str(server.data)))["connect_timeout"] == "3"


def test_without_a_server_and_without_pghost_nothing_else_is_tried(make_server):
    stopped = make_server()
    with pytest.raises(ServerUnavailable) as caught:
        connected(stopped)
    assert caught.value.message == f"no PostgreSQL server runs on {stopped.data}"
    assert "--while-offline" in caught.value.hint


def test_a_server_that_is_just_starting_is_unavailable(make_server):
    stopped = make_server()
    (stopped.data / "postmaster.pid").write_text(f"{os.getpid()}\n{stopped.data}\n1700000000\n")
    with pytest.raises(ServerUnavailable, match=r"postmaster\.pid does not say where the server listens"):
        connected(stopped)


def test_a_server_that_is_down_is_unavailable_and_the_variables_are_named(make_server):
    stopped = make_server()
    with pytest.raises(ServerUnavailable) as caught:
        connected(stopped, stopped.env)
    assert caught.value.message == "cannot connect to PostgreSQL"
    assert str(stopped.socket_dir) in caught.value.detail
    assert "PGHOST, PGPORT and PGUSER" in caught.value.hint
    assert caught.value.transient


def require_password(server) -> None:
    server.psql("SET password_encryption = 'md5'; CREATE ROLE locked SUPERUSER LOGIN PASSWORD 'right-one'")
    hba = server.data / "pg_hba.conf"
    hba.write_text("local all locked md5\n" + hba.read_text())
    server.reload()
    server.wait_for("SELECT EXISTS (SELECT FROM pg_hba_file_rules WHERE 'locked' = ANY (user_name))")


def test_a_wrong_password_is_told_and_never_shown(server):
    require_password(server)
    with connected(server, {"PGUSER": "locked", "PGPASSWORD": "right-one"}):
        pass
    with pytest.raises(ServerUnavailable) as caught:
        connected(server, {"PGUSER": "locked", "PGPASSWORD": "wrong-one"})
    assert 'password authentication failed for user "locked"' in caught.value.detail
    assert "~/.pgpass" in caught.value.hint
    assert "wrong-one" not in repr([caught.value.args, vars(caught.value)])


def test_a_missing_password_is_told_and_not_asked_for(server):
    require_password(server)
    with pytest.raises(ServerUnavailable) as caught:
        connected(server, {"PGUSER": "locked", "PGPASSFILE": "/dev/null"})
    assert caught.value.hint == "The server asks for a password: put it into ~/.pgpass, or set PGPASSWORD."


def test_an_unknown_role_is_told(server):
    with pytest.raises(ServerUnavailable) as caught:
        connected(server, {"PGUSER": "nobody-here"})
    assert 'role "nobody-here" does not exist' in caught.value.detail
    assert caught.value.hint.startswith("Check PGUSER, the password")


def test_another_cluster_is_refused_with_both_identifiers(server, make_server):
    other = make_server(wal_segsize_mb=1)
    other.start()
    with pytest.raises(WrongCluster) as caught:
        connected(server, other.env)
    for running in (server, other):
        assert running.psql("SELECT system_identifier FROM pg_control_system()") in caught.value.detail
    assert "PGHOST" in caught.value.hint
    assert activity(other, "pid") == "", "the session was left open"


def test_a_copy_with_the_same_identifier_is_told_from_the_original(server, make_server):
    other = make_server()
    other.start()
    other.psql("CHECKPOINT")
    server.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    server.psql("CHECKPOINT")
    pauses = []
    with pytest.raises(WrongCluster) as caught:
        sql.connect(Cluster.open(str(server.data)), other.env, sleep=pauses.append)
    assert caught.value.message == "the server does not run on this data directory"
    assert len(pauses) == 5


@pytest.fixture
def standby(server, make_server):
    """A streaming standby of ``server`` that has replayed all."""
    copy = server.directory / "standby"
    server.stop()
    server.run(["cp", "-a", server.data, copy])
    server.start()
    conninfo = f"host={server.socket_dir} port={server.port} user=postgres"
    if server.psql("SELECT current_setting('server_version_num')::int >= 120000") == "t":
        standby = make_server(data=copy, settings={"primary_conninfo": conninfo})
        (copy / "standby.signal").touch()
    else:
        standby = make_server(data=copy)
        (copy / "recovery.conf").write_text(f"standby_mode = on\nprimary_conninfo = '{conninfo}'\n")
    give_to_server_user(copy)
    standby.start()
    return standby


def test_a_standby_is_told_from_its_primary_even_when_both_are_at_the_same_checkpoint(server, standby):
    server.psql("CHECKPOINT")
    redo = server.psql("SELECT redo_lsn FROM pg_control_checkpoint()")
    standby.wait_for(f"SELECT pg_last_wal_replay_lsn() > '{redo}'")
    standby.psql("CHECKPOINT")
    assert standby.psql("SELECT redo_lsn FROM pg_control_checkpoint()") == redo
    with connected(standby) as session:
        assert session.in_recovery is True
        assert session.role() == "standby"
    with pytest.raises(WrongCluster, match="one is a standby or a copy of the other"):
        connected(standby, server.env)


def test_a_backup_of_a_standby_starts_and_stops(standby):
    with connected(standby) as session:
        start = session.start_backup("from a standby")
        stopped = session.stop_backup()
    assert start <= stopped.stop
    assert b"BACKUP FROM: standby\n" in stopped.label


def test_a_promotion_during_the_backup_interrupts_it(standby):
    with connected(standby) as session:
        session.start_backup("promoted")
        standby.promote()
        standby.wait_for("SELECT NOT pg_is_in_recovery()")
        assert session.role() == "primary"
        with pytest.raises(BackupInterrupted, match="promoted during online backup"):
            session.stop_backup()


def test_a_version_before_10_is_refused():
    with pytest.raises(ServerRefused, match=r"PostgreSQL 9\.6 is not supported. .* 10 to 18"):
        connection.check_version(90624)
    connection.check_version(100000)


@pytest.mark.parametrize("checkpoint", ["spread", "fast"])
def test_a_backup_starts_at_a_checkpoint_of_the_kind_that_was_asked_for(make_server, checkpoint):
    server = make_server(settings={"log_checkpoints": "on", "checkpoint_timeout": "30s"})
    server.start()
    with connected(server) as session:
        start = session.start_backup("wal-e test", checkpoint=checkpoint)
        stopped = session.stop_backup()
    assert start == Lsn.parse(server.psql("SELECT redo_lsn FROM pg_control_checkpoint()"))
    assert stopped.stop > start
    assert bool(re.search("checkpoint starting: (immediate|fast) ", server.log_text())) == (checkpoint == "fast")
    label = stopped.label.decode()
    assert label.startswith(f"START WAL LOCATION: {start} (file ")
    assert "LABEL: wal-e test\n" in label
    assert stopped.tablespace_map == b""


def test_stopping_does_not_wait_for_the_archive(make_server):
    server = make_server(settings={"archive_mode": "on", "archive_command": "false"})
    server.start()
    with connected(server) as session:
        session.start_backup("x", checkpoint="fast")
        session.stop_backup()


def test_a_backup_that_was_stopped_can_be_followed_by_another(server):
    with connected(server) as session:
        session.start_backup("one", checkpoint="fast")
        session.stop_backup()
        session.start_backup("two", checkpoint="fast")
        assert b"LABEL: two\n" in session.stop_backup().label


def test_the_tablespace_map_comes_byte_for_byte(server):
    server.psql("CREATE DATABASE latin TEMPLATE template0 ENCODING 'LATIN1'")
    place = server.make_directory(os.fsdecode(b"sp\xe9ce"))
    with server.connect("latin", client_encoding="LATIN1") as connection:
        connection.execute(f"CREATE TABLESPACE odd LOCATION '{server.directory}/sp\u00e9ce'")
    oid = server.psql("SELECT oid FROM pg_tablespace WHERE spcname = 'odd'")
    expected = os.fsencode(f"{oid} {place}\n")
    for database in ("latin", "postgres"):
        with connected(server, {"PGUSER": "postgres", "PGDATABASE": database}) as session:
            session.start_backup("x", checkpoint="fast")
            assert session.stop_backup().tablespace_map == expected
            assert session.role() == "primary"
            assert session.archiver_failure() is None


def test_a_second_start_in_the_same_session_is_refused(server):
    with connected(server) as session:
        session.start_backup("one", checkpoint="fast")
        with pytest.raises(ServerRefused, match=r"refused while starting the backup. .*already in progress"):
            session.start_backup("two", checkpoint="fast")


def test_stopping_what_was_not_started_is_an_interrupted_backup(server):
    with connected(server) as session, pytest.raises(BackupInterrupted, match=r"stopping the backup. .*not in progress"):
        session.stop_backup()


def test_a_server_with_minimal_wal_refuses_and_its_hint_is_passed_on(make_server):
    server = make_server(settings={"wal_level": "minimal", "max_wal_senders": "0"})
    server.start()
    with connected(server) as session, pytest.raises(ServerRefused) as caught:
        session.start_backup("x")
    assert "WAL level not sufficient" in caught.value.detail
    assert "wal_level" in caught.value.hint


def test_a_role_without_rights_is_told_what_to_grant_and_that_suffices(server):
    server.psql("CREATE ROLE backup LOGIN")
    environ = {"PGUSER": "backup"}
    with connected(server, environ) as session:
        assert session.archiving().mode == "off"
        assert session.archiver_failure() is None
        with pytest.raises(ServerRefused) as caught:
            session.start_backup("x")
    assert "permission denied for function" in caught.value.detail
    hint = re.fullmatch(r'Connect as a superuser \(PGUSER\), or let one run, in database "postgres": (GRANT .*;) (GRANT .*;)', caught.value.hint)
    server.psql(hint[1])
    server.psql(hint[2])
    with connected(server, environ) as session:
        session.start_backup("x", checkpoint="fast")
        assert b"LABEL: x\n" in session.stop_backup().label


@pytest.mark.parametrize(
    ("action", "doing"),
    [
        (lambda session: session.start_backup("x"), "starting the backup"),
        (lambda session: session.stop_backup(), "stopping the backup"),
        (lambda session: session.ping(), "keeping the session alive"),
        (lambda session: session.archiver_failure(), "asking for the state of the archiver"),
    ],
)
def test_a_session_ended_by_somebody_else_interrupts_the_backup(server, action, doing):
    with connected(server) as session:
        if doing != "starting the backup":
            session.start_backup("x", checkpoint="fast")
        session.ping()
        end_session(server)
        with pytest.raises(BackupInterrupted) as caught:
            action(session)
    assert caught.value.message == f"the session with PostgreSQL was lost while {doing}"
    assert caught.value.detail == "The answer was: terminating connection due to administrator command."


def test_a_lost_session_stays_lost(server):
    with connected(server) as session:
        end_session(server)
        for _ in range(2):
            with pytest.raises(BackupInterrupted, match="the session with PostgreSQL was lost"):
                session.ping()


def test_a_server_that_dies_interrupts_the_backup(server):
    with connected(server) as session:
        session.start_backup("x", checkpoint="fast")
        server.stop("immediate")
        with pytest.raises(BackupInterrupted, match="the session with PostgreSQL was lost while stopping the backup"):
            session.stop_backup()


def test_a_cancelled_start_may_be_tried_again(make_server):
    server = make_server(settings={"checkpoint_timeout": "1h", "checkpoint_completion_target": "0.9"})
    server.start()
    server.psql("CREATE TABLE t AS SELECT generate_series(1, 200000) AS n")
    over = threading.Event()

    def cancel() -> None:
        while not over.wait(0.05):
            server.psql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'wal-e' AND query LIKE '%backup%'")

    helper = threading.Thread(target=cancel)
    with connected(server) as session:
        helper.start()
        try:
            with pytest.raises(BackupInterrupted, match=r"gave up while starting the backup. .*canceling statement due to user request"):
                session.start_backup("x")
        finally:
            over.set()
            helper.join()
        session.start_backup("x", checkpoint="fast")


def test_the_settings_for_archiving_are_read(make_server):
    server = make_server(settings={"archive_mode": "on", "archive_command": "cp '%p' \"/x/%f\" # \\ 'q'"})
    server.start()
    with connected(server) as session:
        assert session.archiving() == ("on", "cp '%p' \"/x/%f\" # \\ 'q'", "")


def test_a_receiver_with_a_slot_is_seen_while_it_receives(server):
    directory = server.make_directory("received")
    with connected(server) as session:
        assert not session.is_received()
        server.run([bindir() / "pg_receivewal", "-D", str(directory), "--slot=s", "--create-slot"])
        assert not session.is_received()
        receiver = subprocess.Popen([bindir() / "pg_receivewal", "-D", directory, "--slot=s"], env={**os.environ, **server.env})
        try:
            wait_until(session.is_received, "a receiver")
        finally:
            receiver.terminate()
            receiver.wait()
        wait_until(lambda: not session.is_received(), "its end")


def test_with_archiving_off_there_is_no_command(server):
    with connected(server) as session:
        assert session.archiving() == ("off", "", "")


def test_a_library_for_archiving_is_read(make_server):
    server = make_server(settings={"archive_mode": "on"})
    if not (server.data / "PG_VERSION").read_text() >= "15":
        pytest.skip("archive_library came with 15")
    server.configure(archive_library="basic_archive")
    server.start()
    with connected(server) as session:
        assert session.archiving() == ("on", "", "basic_archive")


def test_a_failing_archiver_is_told_until_it_succeeds(make_server):
    server = make_server(settings={"archive_mode": "on", "archive_command": "test -e may-archive"})
    server.start()
    with connected(server) as session:
        assert session.archiver_failure() is None
        server.psql("SELECT pg_switch_wal()")
        server.wait_for("SELECT failed_count > 0 FROM pg_stat_archiver")
        sentence = session.archiver_failure()
        assert re.fullmatch(
            r"The server's last attempt to archive failed: 0{7}1[0-9A-F]{16} at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, \d+ failures in all\.", sentence
        )
        (server.data / "may-archive").touch()
        server.psql("SELECT pg_switch_wal()")
        server.wait_for("SELECT archived_count > 0 FROM pg_stat_archiver")
        assert session.archiver_failure() is None


def test_an_error_of_the_server_leaves_the_session_usable(server):
    with connected(server) as session:
        with pytest.raises(ServerRefused) as caught:
            session._rows("trying nonsense", "SELECT nonsense")
        assert isinstance(caught.value.__cause__, psycopg.Error)
        session.ping()
