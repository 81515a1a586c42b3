from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from wal_e.errors import DamageError, LocalFileError, LockHeld, NotACluster, UsageError
from wal_e.postgres.cluster import Cluster


@pytest.fixture
def stopped(make_server):
    return make_server()


def opened(server) -> Cluster:
    return Cluster.open(str(server.data))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_postmaster_pid(server, text: str) -> None:
    (server.data / "postmaster.pid").write_text(text)


def test_opening_reads_version_and_control_file(stopped):
    cluster = opened(stopped)
    assert cluster.path == str(stopped.data)
    assert cluster.major == cluster.control.major == int((stopped.data / "PG_VERSION").read_text())
    assert cluster.control.segment_size == 16 * 1024 * 1024


def test_the_segment_size_is_the_clusters_own(make_server):
    assert opened(make_server(wal_segsize_mb=1)).control.segment_size == 1024 * 1024


def test_the_path_becomes_absolute_and_keeps_its_links(stopped, monkeypatch):
    link = stopped.directory / "link"
    link.symlink_to(stopped.data)
    monkeypatch.chdir(stopped.directory)
    assert Cluster.open("link").path == str(link)


def test_an_empty_directory_is_not_a_cluster(tmp_path):
    with pytest.raises(NotACluster, match=f"{tmp_path} is not a PostgreSQL data directory. There is no PG_VERSION in it"):
        Cluster.open(str(tmp_path))


def test_a_missing_directory_is_not_a_cluster(tmp_path):
    with pytest.raises(NotACluster, match="absent is not a PostgreSQL data directory"):
        Cluster.open(str(tmp_path / "absent"))


def test_a_file_is_not_a_cluster(stopped):
    with pytest.raises(NotACluster, match="is not a PostgreSQL data directory"):
        Cluster.open(str(stopped.data / "postgresql.conf"))


def test_a_directory_without_pg_control_is_not_a_cluster(stopped):
    (stopped.data / "global/pg_control").unlink()
    with pytest.raises(NotACluster, match="global/pg_control"):
        opened(stopped)


@pytest.mark.parametrize("text", ["", "fifteen\n", "-15\n", "\0\xff"])
def test_a_directory_with_another_kind_of_version_is_not_a_cluster(stopped, text):
    (stopped.data / "PG_VERSION").write_text(text)
    with pytest.raises(NotACluster, match="Its PG_VERSION says"):
        opened(stopped)


@pytest.mark.parametrize("version", ["9.6", "9.0", "8.4"])
def test_old_versions_are_refused_and_the_supported_ones_named(stopped, version):
    (stopped.data / "PG_VERSION").write_text(f"{version}\n")
    with pytest.raises(UsageError, match=f"PostgreSQL {version} is not supported. .*10 to 18"):
        opened(stopped)


def test_a_directory_mixed_from_two_versions_is_refused(stopped):
    major = int((stopped.data / "PG_VERSION").read_text())
    (stopped.data / "PG_VERSION").write_text(f"{major + 1}\n")
    with pytest.raises(NotACluster, match=f"PG_VERSION says {major + 1}, global/pg_control is of PostgreSQL {major}"):
        opened(stopped)


def test_a_newer_version_is_opened_as_far_as_its_control_file_is_understood(stopped, monkeypatch):
    control = opened(stopped).control
    monkeypatch.setattr("wal_e.postgres.cluster.read_control", lambda path: control._replace(control_version=1902))
    (stopped.data / "PG_VERSION").write_text("19\n")
    assert opened(stopped).major == 19


def test_a_damaged_control_file_is_an_error(stopped):
    control = stopped.data / "global/pg_control"
    control.write_bytes(control.read_bytes()[:100] + b"?" + control.read_bytes()[101:])
    with pytest.raises(DamageError):
        opened(stopped)


def test_the_clean_stop_is_read_from_the_control_file(stopped):
    assert opened(stopped).is_cleanly_stopped()
    stopped.start()
    assert not opened(stopped).is_cleanly_stopped()
    stopped.stop("immediate")
    assert not opened(stopped).is_cleanly_stopped()
    stopped.start()
    stopped.stop("fast")
    assert opened(stopped).is_cleanly_stopped()


def test_a_running_postmaster_is_found_with_all_it_says(server):
    postmaster = opened(server).postmaster()
    assert postmaster.data_directory == str(server.data)
    assert (postmaster.port, postmaster.socket_directory, postmaster.listen_address) == (server.port, str(server.socket_dir), "")
    assert Path(f"/proc/{postmaster.pid}/cwd").readlink() == server.data
    started = datetime.fromisoformat(server.psql("SELECT pg_postmaster_start_time() AT TIME ZONE 'UTC'")).replace(tzinfo=UTC)
    assert abs((postmaster.started - started).total_seconds()) < 30


def test_a_stopped_server_has_no_postmaster(server):
    cluster = opened(server)
    server.stop()
    assert cluster.postmaster() is None


def test_a_left_over_postmaster_pid_is_no_server(server):
    cluster = opened(server)
    text = (server.data / "postmaster.pid").read_text()
    server.stop()
    write_postmaster_pid(server, text.replace(text.split("\n")[0], str(dead_pid()), 1))
    assert cluster.postmaster() is None


def test_a_server_of_another_user_is_alive(stopped, monkeypatch):
    def forbidden(pid, signal):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "kill", forbidden)
    write_postmaster_pid(stopped, f"1\n{stopped.data}\n1700000000\n5432\n/tmp\n*\n")
    assert opened(stopped).postmaster().listen_address == "*"


def test_a_standalone_backend_counts_as_running(stopped):
    write_postmaster_pid(stopped, f"-{os.getpid()}\n{stopped.data}\n1700000000\n")
    assert opened(stopped).postmaster() == (os.getpid(), str(stopped.data), datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC), 0, "", "")


@pytest.mark.parametrize(
    "text", ["", "\n", "here\nthere\n", "17\n/data\n", "0\n/data\n1700000000\n", f"{2**31}\n/data\n1700000000\n", f"17\n/data\n{10**30}\n"]
)
def test_an_unreadable_postmaster_pid_is_an_error_and_not_a_stopped_server(stopped, text):
    write_postmaster_pid(stopped, text)
    with pytest.raises(LocalFileError, match=r"postmaster\.pid cannot be understood"):
        opened(stopped).postmaster()


def test_tablespaces_are_listed_by_their_oid(server):
    places = [server.make_directory(f"space {number}") for number in range(2)]
    for number, place in enumerate(places):
        server.psql(f"CREATE TABLESPACE s{number} LOCATION '{place}'")
    oids = server.psql("SELECT oid FROM pg_tablespace WHERE spcname LIKE 's_' ORDER BY oid").split("\n")
    assert opened(server).tablespaces() == dict(zip(oids, map(str, places), strict=True))


def test_a_second_process_does_not_get_the_lock(stopped):
    program = f"from wal_e.postgres.cluster import Cluster\nwith Cluster.open({str(stopped.data)!r}).lock(): print('locked', flush=True); input()"
    cluster = opened(stopped)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(LockHeld, match=f"another backup-push works on {stopped.data}"), cluster.lock():
            pass
        other.kill()
        other.wait()
        with cluster.lock():
            pass


def test_the_lock_ends_with_its_block_even_after_an_error(stopped):
    cluster = opened(stopped)
    with pytest.raises(ZeroDivisionError), cluster.lock():
        raise ZeroDivisionError
    with cluster.lock(), pytest.raises(LockHeld), opened(stopped).lock():
        pass


def test_locking_leaves_no_trace_in_the_directory(stopped):
    before = sorted(os.listdir(stopped.data))
    with opened(stopped).lock():
        assert sorted(os.listdir(stopped.data)) == before


def test_clusters_are_locked_apart(make_server):
    with opened(make_server()).lock(), opened(make_server()).lock():
        pass


def test_a_file_system_without_locks_is_a_warning(stopped, monkeypatch, capfd):
    def unsupported(descriptor, operation):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with opened(stopped).lock():
        pass
    assert "cannot be locked" in capfd.readouterr().err


def test_any_other_failure_to_lock_is_an_error(stopped, monkeypatch):
    def broken(descriptor, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(LocalFileError, match="locking"), opened(stopped).lock():
        pass
