"""The state of archiving, and healing it, with real servers."""

from __future__ import annotations

import json
import subprocess

import pytest
from fix_archive import Watched, archive_into_store, refusal, settled, stored_wal, warnings
from fix_postgres import Server, wait_until

from wal_e.postgres.control import read_control


def kept(server: Server) -> dict[str, str]:
    """Settings that keep a server from recycling what is done."""
    major = int((server.data / "PG_VERSION").read_text())
    return {"wal_keep_size": "200MB"} if major >= 13 else {"wal_keep_segments": "200"}


def decoded(server: Server, name: str) -> bytes:
    return subprocess.run(["lzop", "-dc", str(server.directory / "store" / "wal_005" / f"{name}.lzo")], stdout=subprocess.PIPE, check=True).stdout


def written(server: Server, times: int) -> None:
    for _ in range(times):
        server.psql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 1000)")
        server.psql("SELECT pg_switch_wal()")


@pytest.fixture
def archiving(make_server):
    """A server with a backup and twelve or so segments in its store, all of them still in pg_wal."""
    server = make_server(wal_segsize_mb=1)
    store = archive_into_store(server, autovacuum="off", **kept(server))
    server.wal_e("backup-push", str(server.data), "--fast")
    written(server, 10)
    settled(server)
    return server, store, Watched(server)


def test_what_was_lost_in_the_store_is_pushed_again_byte_for_byte_and_recovery_succeeds(archiving, make_server):
    server, store, wal_e = archiving
    names = stored_wal(store)
    current = server.psql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
    lost = [names[2], names[5], names[6], names[-1], *(path.name.removesuffix(".lzo") for path in (store / "wal_005").glob("*.backup.lzo"))]
    assert len(lost) == 5
    for name in lost:
        (store / "wal_005" / f"{name}.lzo").unlink()

    result = wal_e("wal-push", "--missing", str(server.data))
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        *(f"pushed {name}" for name in sorted(lost)),
        "5 files pushed, 0 not pushed, 0 gaps left, 0 waiting for their turn",
    ]
    assert stored_wal(store) == names
    assert current not in names
    for name in lost:
        assert decoded(server, name) == (server.data / "pg_wal" / name).read_bytes()

    before = server.psql("SELECT count(*), sum(n) FROM t")
    target = server.directory / "restored"
    server.wal_e("backup-fetch", str(target), "LATEST")
    other = make_server(data=target)
    other.environ |= {name: value for name, value in server.environ.items() if name.startswith("WALE_")}
    (target / "recovery.signal").touch()
    other.start(archive_mode="off", restore_command='wal-e wal-fetch "%f" "%p"')
    other.wait_for("SELECT NOT pg_is_in_recovery()")
    assert other.psql("SELECT count(*), sum(n) FROM t") == before


def test_under_load_nothing_but_what_was_lost_is_pushed(archiving):
    server, store, wal_e = archiving
    lost = stored_wal(store)[3]
    (store / "wal_005" / f"{lost}.lzo").unlink()
    server.pgbench("-i", "-q")
    load = server.run(["sh", "-c", f"pgbench -n -c 2 -T 3 >/dev/null 2>&1 & wal-e wal-push --missing {server.data}; wait"], check=False)
    assert load.returncode == 0
    assert f"pushed {lost}\n" in load.stdout
    settled(server)
    for name in stored_wal(store):
        assert decoded(server, name) == (server.data / "pg_wal" / name).read_bytes()
    assert wal_e("wal-push", "--missing", str(server.data)).stdout.startswith("0 files pushed, 0 not pushed, 0 gaps left")


def test_a_gap_that_pg_wal_cannot_fill_is_named_and_the_rest_is_pushed(archiving):
    server, store, wal_e = archiving
    names = stored_wal(store)
    for name in (names[3], names[4], names[7]):
        (store / "wal_005" / f"{name}.lzo").unlink()
    for name in (names[3], names[4]):
        (server.data / "pg_wal" / name).unlink()
    result = wal_e("wal-push", "--missing", str(server.data))
    lines = [
        f"pushed {names[7]}",
        f"missing {names[3]} to {names[4]}: neither the store nor pg_wal has it",
        "1 file pushed, 0 not pushed, 1 gap left, 0 waiting for their turn",
    ]
    error = refusal(result, 2, f"{names[3]} to {names[4]}", stdout="".join(f"{line}\n" for line in lines))
    assert error.error == "WalGap"
    assert names[7] in stored_wal(store)


def test_a_stopped_server_is_healed_by_what_its_directory_tells(archiving):
    server, store, wal_e = archiving
    lost = stored_wal(store)[4]
    server.stop()
    (store / "wal_005" / f"{lost}.lzo").unlink()
    result = wal_e("wal-push", "--missing", str(server.data), env={"PGHOST": "", "PGPORT": ""})
    assert result.returncode == 0
    assert f"pushed {lost}\n" in result.stdout
    assert [warning.message for warning in warnings(result)] == ["the server is not asked what it archived"]
    assert decoded(server, lost) == (server.data / "pg_wal" / lost).read_bytes()


def test_the_store_of_another_cluster_gets_nothing(archiving, make_server):
    server, _, _ = archiving
    other = make_server(wal_segsize_mb=16)
    other.environ |= {"WALE_FILE_PREFIX": server.environ["WALE_FILE_PREFIX"]}
    error = refusal(Watched(other)("wal-push", "--missing", str(other.data), env={"PGHOST": "", "PGPORT": ""}), 2, "another cluster")
    assert error.error == "WrongCluster"


def test_a_well_archive_is_told_to_a_person_and_to_programs(archiving):
    server, _, wal_e = archiving
    result = wal_e("wal-status", str(server.data))
    assert (result.returncode, result.stderr) == (0, "")
    names = [line.partition("  ")[0] for line in result.stdout.splitlines()]
    assert names == ["cluster", "waiting", "resident archiver", "server", "archiving", "last archived", "last failed", "free space", "state"]
    assert result.stdout.splitlines()[-1].split() == ["state", "well"]

    document = json.loads(wal_e("wal-status", "--json", str(server.data)).stdout)
    assert document["data_directory"] == str(server.data)
    assert document["system_identifier"] == str(read_control(str(server.data)).system_identifier)
    assert document["segment_size"] == 1024 * 1024
    assert document["waiting"] == {"files": 0, "limit": 128, "first": None, "last": None, "oldest_seconds": 0.0}
    assert (document["resident_archiver"], document["alarm"], document["server_error"]) == (False, None, None)
    assert document["server"]["role"] == "primary"
    assert document["server"]["archive_command"] == "wal-e wal-push %p"
    assert document["server"]["archiver"]["last_archived_wal"] is not None
    assert 0 < document["disk"]["free_bytes"] <= document["disk"]["size_bytes"]
    assert document["disk"]["wal_bytes_per_second"] > 0
    assert document["disk"]["lasts_seconds"] == pytest.approx(document["disk"]["free_bytes"] / document["disk"]["wal_bytes_per_second"])

    lines = wal_e("wal-status", "--prometheus", str(server.data)).stdout.splitlines()
    label = f'{{pgdata="{server.data}"}}'
    for sample in ("wal_backlog_files", "wal_alarm", "wal_resident_archiver_running"):
        assert f"wale_{sample}{label} 0" in lines
    assert f"wale_wal_server_up{label} 1" in lines


def test_a_resident_archiver_is_seen_while_it_runs(archiving):
    server, _, wal_e = archiving

    def resident() -> bool:
        return json.loads(wal_e("wal-status", "--json", str(server.data)).stdout)["resident_archiver"]

    with wal_e.started("wal-archive", str(server.data)) as archiver:
        wait_until(resident, "the resident archiver is seen")
        archiver.terminate()
        archiver.wait(60)
    assert not resident()


def test_an_archiver_that_fails_is_an_alarm_until_it_succeeds(make_server):
    server = make_server(wal_segsize_mb=1)
    server.start(archive_mode="on", archive_command="false")
    written(server, 3)
    server.wait_for("SELECT failed_count > 0 FROM pg_stat_archiver")
    wal_e = Watched(server)

    result = wal_e("wal-status", "--json", str(server.data))
    document = json.loads(result.stdout)
    assert document["waiting"]["files"] == 3
    assert document["waiting"]["first"] == document["server"]["archiver"]["last_failed_wal"]
    error = refusal(result, 1, "last attempt to archive failed", document["waiting"]["first"], stdout=result.stdout)
    assert error.error == "BacklogAlarm"
    assert document["alarm"].startswith(error.message)

    table = wal_e("wal-status", str(server.data), "--max-backlog", "2")
    refusal(table, 1, "3 WAL files wait to be archived", "last attempt to archive failed", stdout=table.stdout)
    assert "ALARM" in table.stdout

    server.configure(archive_command="true")
    server.reload()
    server.psql("SELECT pg_switch_wal()")
    settled(server)
    server.wait_for("select last_archived_time > last_failed_time from pg_stat_archiver")  # the archiver says so after it has marked the file
    assert wal_e("wal-status", str(server.data), "--max-backlog", "0").returncode == 0


def test_a_failure_whose_file_was_stored_by_another_way_is_no_alarm(make_server):
    server = make_server(wal_segsize_mb=1)
    server.start(archive_mode="on", archive_command="false")
    written(server, 1)
    server.wait_for("SELECT failed_count > 0 FROM pg_stat_archiver")
    for path in (server.data / "pg_wal" / "archive_status").glob("*.ready"):
        path.rename(path.with_suffix(".done"))
    assert Watched(server)("wal-status", str(server.data)).returncode == 0


def test_the_limit_of_the_backlog_is_a_setting_and_an_option_wins(make_server):
    server = make_server(wal_segsize_mb=1)
    server.start(archive_mode="on", archive_command="sleep 60")
    written(server, 3)
    wal_e = Watched(server)
    for arguments, limit, status in ((), "2", 1), ((), "3", 0), (("--max-backlog", "2"), "3", 1), (("--max-backlog", "3"), "2", 0):
        result = wal_e("wal-status", str(server.data), "--json", *arguments, env={"WALE_BACKLOG_LIMIT": limit})
        assert result.returncode == status
        assert (json.loads(result.stdout)["alarm"] is None) == (status == 0)


def test_a_server_that_does_not_answer_is_told_and_is_no_error(make_server):
    server = make_server(wal_segsize_mb=1)
    wal_e = Watched(server)
    for arguments in (), ("--json",), ("--prometheus",):
        for where in {"PGHOST": "", "PGPORT": ""}, {}:
            result = wal_e("wal-status", str(server.data), *arguments, env=where)
            assert (result.returncode, result.stderr) == (0, "")
            if not arguments:
                assert "not asked: " in result.stdout
            elif arguments == ("--json",):
                document = json.loads(result.stdout)
                assert document["server"] is None
                assert "PostgreSQL" in document["server_error"]
            else:
                assert "wale_wal_server_up{" in result.stdout
                assert "wale_wal_position_bytes" not in result.stdout


def test_the_store_is_not_needed_to_see_the_state(make_server):
    server = make_server(wal_segsize_mb=1)
    assert Watched(server)("wal-status", str(server.data), env={"WALE_FILE_PREFIX": ""}).returncode == 0


def test_a_directory_that_is_no_cluster_is_refused(make_place):
    place = make_place()
    refusal(Watched(place)("wal-status", str(place.directory)), 2, "not a PostgreSQL data directory")
    refusal(Watched(place)("wal-status", "--json", "--prometheus", str(place.directory)), 2, "exclude each other")


def test_the_server_of_another_cluster_is_not_believed(make_server):
    server, other = make_server(wal_segsize_mb=1), make_server(wal_segsize_mb=16)
    other.start()
    error = refusal(Watched(server)("wal-status", str(server.data), env={"PGHOST": str(other.socket_dir), "PGPORT": str(other.port)}), 2, "different clusters")
    assert error.error == "WrongCluster"
