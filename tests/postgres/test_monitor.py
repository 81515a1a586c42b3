"""Short questions to a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import build_wal
import pytest

from wal_e.errors import ServerRefused, ServerUnavailable, WrongCluster
from wal_e.postgres import monitor
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.control import read_control
from wal_e.postgres.monitor import ArchiverStats
from wal_e.postgres.wal import Lsn

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def running(make_shared_server):
    """A server that archives with success, shared by the tests of this file."""
    server = make_shared_server()
    server.start(archive_mode="on", archive_command="true", max_replication_slots="3")
    return server


def asked(server, **environ):
    return monitor.connect({**server.env, **environ})


def test_a_server_is_found_by_its_directory_or_by_libpqs_variables(running):
    cluster = Cluster.open(str(running.data))
    for environ, where in (({"PGUSER": "postgres"}, cluster), (running.env, cluster), (running.env, None)):
        with monitor.connect(environ, where) as server:
            assert server.system_identifier() == read_control(str(running.data)).system_identifier
            assert server.segment_size() == 1024 * 1024
            assert server.version_num == int(running.psql("SHOW server_version_num"))


def test_the_archivers_success_is_told(running):
    name = running.psql("SELECT pg_walfile_name(pg_switch_wal())")
    running.wait_for(f"SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver")
    with asked(running) as server:
        stats = server.archiver()
    assert stats.last_archived_wal >= name
    assert timedelta(0) <= datetime.now(UTC) - stats.last_archived_time < timedelta(minutes=1)
    assert stats.last_archived_time.tzinfo is UTC
    assert stats.archived_count >= 1
    assert (stats.last_failed_wal, stats.last_failed_time, stats.failed_count, stats.is_failing) == (None, None, 0, False)
    assert stats.stats_reset is not None


def test_the_archivers_failure_is_told_until_it_succeeds(make_server):
    failing = make_server(wal_segsize_mb=1)
    failing.start(archive_mode="on", archive_command="false")
    name = failing.psql("SELECT pg_walfile_name(pg_switch_wal())")
    failing.wait_for("SELECT failed_count > 0 FROM pg_stat_archiver")
    with asked(failing) as server:
        stats = server.archiver()
        assert (stats.last_failed_wal, stats.last_archived_wal, stats.last_archived_time, stats.is_failing) == (name, None, None, True)
        failing.configure(archive_command="true")
        failing.reload()
        failing.psql("SELECT pg_switch_wal()")
        failing.wait_for("SELECT last_archived_wal IS NOT NULL FROM pg_stat_archiver")
        assert not server.archiver().is_failing


@pytest.mark.parametrize("archived, failed, is_failing", [(None, None, False), (0, None, False), (None, 0, True), (1, 0, False), (0, 1, True), (0, 0, False)])
def test_the_later_of_two_attempts_decides_whether_the_archiver_fails(archived, failed, is_failing):
    times = [None if minutes is None else EPOCH + timedelta(minutes=minutes) for minutes in (archived, failed)]
    assert ArchiverStats("A", times[0], "B", times[1], 1, 1, None).is_failing is is_failing


def test_the_settings_for_archiving_are_told(running):
    with asked(running) as server:
        assert server.archiving() == ("on", "true", "")


def test_a_plain_role_is_told_all_of_this(running):
    running.psql("CREATE ROLE plain LOGIN")
    with asked(running, PGUSER="plain") as server:
        assert server.archiving().command == "true"
        assert server.archiver().stats_reset is not None
        assert server.position().timeline == 1
        assert server.segment_size() == 1024 * 1024
        assert server.slot("none") is None


def test_the_position_moves_with_what_is_written(running):
    with asked(running) as server:
        before = server.position()
        running.psql("CREATE TABLE moved AS SELECT generate_series(1, 1000)")
        after = server.position()
    assert before.lsn < after.lsn <= Lsn.parse(running.psql("SELECT pg_current_wal_lsn()::text"))
    assert (after.timeline, after.role) == (1, "primary")


def test_the_position_of_a_standby_is_on_the_timeline_it_was_promoted_to(make_server):
    primary = make_server(wal_segsize_mb=1)
    primary.start(wal_level="replica", hot_standby="on")
    data = primary.directory / "standby"
    primary.stop()
    primary.run(["cp", "-a", primary.data, data])
    primary.start()
    standby = make_server(data=data)
    standby.configure(primary_conninfo=f"host={primary.socket_dir} port={primary.port} user=postgres")
    (data / "standby.signal").touch()
    standby.start()
    primary.psql("CREATE TABLE t AS SELECT generate_series(1, 1000)")
    written = primary.psql("SELECT pg_current_wal_flush_lsn()::text")
    standby.wait_for(f"SELECT pg_last_wal_replay_lsn() >= '{written}'")
    with asked(standby) as server:
        position = server.position()
        assert (position.timeline, position.role) == (1, "standby")
        assert position.lsn >= Lsn.parse(written)
        standby.promote()
        position = server.position()
        assert (position.timeline, position.role) == (2, "primary")
        assert position.lsn >= Lsn.parse(written)


def test_a_slot_keeps_wal_from_its_creation_on_and_is_made_once(running):
    with asked(running) as server:
        assert server.slot("kept") is None
        server.create_slot("kept")
        slot = server.slot("kept")
        assert (slot.name, slot.active) == ("kept", False)
        assert Lsn(0) < slot.restart_lsn <= server.position().lsn
        assert slot.wal_status == "reserved"
        server.create_slot("kept")
        assert server.slot("kept") == slot
        server.drop_slot("kept")
        assert server.slot("kept") is None
        server.drop_slot("kept")


def test_no_slot_left_is_refused_with_what_to_do(running):
    with asked(running) as server:
        for number in range(3):
            server.create_slot(f"slot{number}")
        with pytest.raises(ServerRefused) as caught:
            server.create_slot("slot3")
        assert "max_replication_slots" in caught.value.hint
        for number in range(3):
            server.drop_slot(f"slot{number}")
        server.create_slot("slot3")
        server.drop_slot("slot3")


def test_a_role_that_may_not_replicate_is_told_what_to_grant(running):
    running.psql("CREATE ROLE reader LOGIN")
    with asked(running, PGUSER="reader") as server:
        with pytest.raises(ServerRefused) as caught:
            server.create_slot("mine")
        running.psql(caught.value.hint.partition("run: ")[2])
    with asked(running, PGUSER="reader") as server:
        server.create_slot("mine")
        server.drop_slot("mine")


def test_a_name_that_cannot_be_a_slots_is_refused_in_the_servers_words(running):
    with asked(running) as server, pytest.raises(ServerRefused, match="invalid character") as caught:
        server.create_slot("Not-a-slot")
    assert "letters" in caught.value.hint


def test_a_slot_for_logical_replication_is_no_slot_of_ours(make_server):
    logical = make_server(wal_segsize_mb=1)
    logical.start(wal_level="logical")
    logical.psql("SELECT pg_create_logical_replication_slot('other', 'pgoutput')")
    with asked(logical) as server:
        assert server.slot("other") is None
        with pytest.raises(ServerRefused, match="other"):
            server.create_slot("other")


def test_a_lost_session_is_unavailable(running):
    with asked(running) as server:
        running.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'wal-e'")
        with pytest.raises(ServerUnavailable, match="was lost while"):
            server.position()


def test_a_question_that_takes_too_long_is_given_up(running, monkeypatch):
    monkeypatch.setattr(monitor, "STATEMENT_TIMEOUT_S", 0.05)
    monkeypatch.setattr(monitor, "_ARCHIVER_QUERY", "SELECT pg_sleep(20)")
    with asked(running) as server, pytest.raises(ServerUnavailable, match="gave up"):
        server.archiver()


def test_nothing_of_the_sessions_own_settings_changes_an_answer(running):
    running.psql("CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'")
    running.psql("CREATE ROLE odd LOGIN SUPERUSER")
    for setting in ("search_path = public, pg_catalog", "datestyle = 'SQL, DMY'", "timezone = 'Asia/Tokyo'"):
        running.psql(f"ALTER ROLE odd SET {setting}")
    with asked(running, PGUSER="odd") as server:
        assert server.position().role == "primary"
        assert abs(server.archiver().stats_reset - datetime.now(UTC)) < timedelta(hours=1)


def test_a_server_of_another_cluster_is_told(running, tmp_path):
    (tmp_path / "global").mkdir()
    (tmp_path / "PG_VERSION").write_text("15\n")
    (tmp_path / "global" / "pg_control").write_bytes(build_wal.build_control(5))
    with pytest.raises(WrongCluster, match=r"has 5\."):
        monitor.connect(running.env, Cluster.open(str(tmp_path)))


def test_a_server_that_is_not_there_is_unavailable(make_server):
    stopped = make_server(wal_segsize_mb=1)
    with pytest.raises(ServerUnavailable, match="no PostgreSQL server runs"):
        monitor.connect({}, Cluster.open(str(stopped.data)))
    with pytest.raises(ServerUnavailable, match="cannot connect"):
        monitor.connect(stopped.env)
