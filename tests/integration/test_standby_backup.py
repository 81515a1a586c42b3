"""Base backups of standbys and of idle servers: what may not be trusted is refused, and nothing waits without a word or for ever."""

from __future__ import annotations

import json

import pytest
from fix_archive import Gate, Watched, archive_into_store, records, refusal, settled, unchanged, warnings

LATER = 1
NEVER = 2


@pytest.fixture
def primary(make_server):
    """A server that archives when a segment is full or ended, and never by itself, with one backup."""
    server = make_server(wal_segsize_mb=1)
    archive_into_store(server, archive_timeout="0", max_wal_senders="4")
    server.psql("create table t as select generate_series(1, 100) as n")
    server.wal_e("backup-push", str(server.data), "--fast")
    return server


@pytest.fixture
def make_standby(make_server, primary):
    """Restore standbys of the archive, which stream from a server if one is given."""

    def make(upstream=None, **settings):
        data = primary.directory / f"standby-{len(list(primary.directory.glob('standby-*')))}"
        primary.wal_e("restore", str(data), "--standby")
        standby = make_server(data=data)
        standby.environ |= {name: value for name, value in primary.environ.items() if name.startswith("WALE_")}
        if upstream:
            settings["primary_conninfo"] = f"host={upstream.directory} port={upstream.port} user=postgres"
        standby.start(hot_standby="on", **{"archive_mode": "off", **settings})
        if upstream:
            standby.wait_for("select count(*) = 1 from pg_stat_wal_receiver where status = 'streaming'")
        return standby

    return make


def backups(server):
    return json.loads(server.wal_e("backup-list", "--json").stdout)


def checkpointed(primary, *standbys):
    """Write on the primary up to a checkpoint and a new segment, and bring the standbys there."""
    primary.psql("insert into t values (0); checkpoint")
    position = primary.psql("select pg_switch_wal()")
    settled(primary)
    for standby in standbys:
        standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{position}'")
        standby.psql("checkpoint")
    return position


@pytest.mark.slow
def test_an_idle_server_is_backed_up_at_once_again_and_again(primary):
    for _ in range(2):
        assert Watched(primary)("backup-push", str(primary.data), "--fast", env={"WALE_ARCHIVE_TIMEOUT": "20"}).returncode == 0
    assert len({backup["name"] for backup in backups(primary)}) == 3


def test_on_a_standby_whose_primary_is_idle_it_says_what_it_waits_for_and_does_not_wait_for_ever(primary, make_standby):
    standby = make_standby(primary)
    checkpointed(primary, standby)
    primary.psql("insert into t values (1); checkpoint")  # its segment stays unfinished
    standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{primary.psql('select pg_current_wal_flush_lsn()')}'")
    command = ("backup-push", str(standby.data), "--fast")
    with unchanged(primary.directory / "store"):
        late = Watched(standby)(*command, env={"WALE_ARCHIVE_TIMEOUT": "0.5"})
    error = refusal(late, LATER, "did not arrive in the store", "This server is a standby", "SELECT pg_switch_wal()")
    assert error.error == "ArchiveTimeout"
    standby.wait_for("select count(*) = 0 from pg_stat_activity where application_name = 'wal-e'")

    with Watched(standby).started(*command, env={"WALE_ARCHIVE_TIMEOUT": "100"}) as push:
        while "MSG: waiting for WAL segment" not in (line := push.stderr.readline()):
            assert line, push.wait()
        assert "This server is a standby" in push.stderr.readline()
        primary.psql("select pg_switch_wal()")
        _, stderr = push.communicate(timeout=60)
        assert push.returncode == 0, stderr
    newest = backups(primary)[-1]["name"]
    again = Watched(standby)(*command)
    assert (again.returncode, [record.message for record in warnings(again)]) == (0, [f"nothing new since {newest}"])


def test_a_promotion_in_the_middle_is_noticed_and_nothing_is_recorded(primary, make_standby):
    standby = make_standby(primary)
    checkpointed(primary, standby)
    before = backups(primary)
    gate = Gate(standby, 1)
    with Watched(standby).started("backup-push", str(standby.data), "--fast", env=gate.env) as push:
        gate.wait(push)
        standby.promote()
        gate.open()
        _, stderr = push.communicate(timeout=60)
    [error] = [record for record in records(stderr) if record.level == "ERROR"]
    assert (push.returncode, error.error) == (LATER, "BackupInterrupted"), stderr
    assert "promoted" in error.text
    assert backups(primary) == before
    assert [path.name for path in (primary.directory / "store/basebackups_005").iterdir() if path.is_dir()] == [before[0]["name"]]
    standby.wait_for("select count(*) = 0 from pg_stat_activity where application_name = 'wal-e'")
    standby.stop()  # a backup that were still in progress would be in the way


@pytest.mark.slow
def test_another_timeline_that_a_standby_follows_in_the_middle_is_noticed(primary, make_standby):
    standby, heir = make_standby(), make_standby(primary, archive_mode="on", archive_command="wal-e wal-push %p")
    checkpointed(primary, standby, heir)
    gate = Gate(standby, 1)
    with Watched(standby).started("backup-push", str(standby.data), "--fast", env={**gate.env, "WALE_ARCHIVE_TIMEOUT": "60"}) as push:
        gate.wait(push)
        primary.stop()
        heir.promote()
        position = checkpointed(heir)
        standby.wait_for(f"select pg_last_wal_replay_lsn() >= '{position}'")
        standby.psql("checkpoint")  # up to here it would end on the first timeline, and be good
        gate.open()
        _, stderr = push.communicate(timeout=60)
    [error] = [record for record in records(stderr) if record.level == "ERROR"]
    assert (push.returncode, error.error) == (LATER, "BackupInterrupted"), stderr
    assert "to another timeline" in error.message
    assert "timeline 2" in error.detail


@pytest.mark.slow
def test_on_a_second_timeline_a_standby_names_its_backup_by_the_position_and_that_restores(primary, make_standby, make_server):
    heir = make_standby(primary, archive_mode="on", archive_command="wal-e wal-push %p")
    primary.stop()
    heir.promote()
    checkpointed(heir)
    standby = make_standby(heir)
    checkpointed(heir, standby)
    heir.psql("insert into t values (7)")
    start = heir.psql("select pg_walfile_name(redo_lsn) from pg_control_checkpoint()")
    heir.psql("select pg_switch_wal()")
    settled(heir)
    standby.wal_e("backup-push", str(standby.data), "--fast")
    assert (backups(heir)[-1]["name"][:29], backups(heir)[-1]["timeline"]) == (f"base_{start}", 2)
    again = make_standby(heir)
    again.wait_for("select exists (select from t where n = 7)")
    assert again.psql("select pg_is_in_recovery()") == "t"


@pytest.mark.slow
def test_a_primary_without_full_page_writes_is_told_and_so_is_what_to_do(primary, make_standby):
    standby = make_standby(primary)
    primary.psql("alter system set full_page_writes = off")
    primary.reload()
    checkpointed(primary, standby)
    before = backups(primary)
    refusal(Watched(standby)("backup-push", str(standby.data), "--fast"), NEVER, "full_page_writes=off", "CHECKPOINT on the primary")
    assert backups(primary) == before
