from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
from fix_postgres import bindir, give_to_server_user
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import LocalFileError, UsageError
from wal_e.postgres import files
from wal_e.postgres.control import read_control
from wal_e.postgres.files import FileEntry, tablespaces, walk

CATALOG = 202209061
MAJORS = range(10, 19)
EMPTIED = ["pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans"]
OWN = ["base", "global", "pg_commit_ts", "pg_logical", "pg_multixact", "pg_stat", "pg_tblspc", "pg_twophase", "pg_xact"]


@pytest.fixture
def data(tmp_path):
    data = tmp_path / "data"
    write(data / "PG_VERSION", b"15\n")
    write(data / "global/pg_control", b"\0" * 8192)
    write(data / "global/1262", b"x" * 8192)
    write(data / "base/5/16384", b"x" * 16384)
    for name in [*EMPTIED, *OWN, "pg_wal/archive_status"]:
        (data / name).mkdir(parents=True, exist_ok=True)
    return data


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def listed(data, major=15, catalog=CATALOG) -> tuple[dict[str, FileEntry], list[str]]:
    notices = []
    entries = list(walk(str(data), major, catalog, notices.append))
    found = {entry.path: entry for entry in entries}
    assert len(found) == len(entries), "a path was listed twice"
    return found, notices


def paths(data, major=15) -> set[str]:
    found, notices = listed(data, major)
    assert notices == []
    return set(found)


def test_the_first_entry_is_the_data_directory_itself(data):
    first = next(walk(str(data), 15, CATALOG, print))
    status = data.stat()
    assert first == ("", "directory", 0, status.st_mode & 0o7777, int(status.st_mtime), status.st_uid, status.st_gid, "")


def test_a_file_is_listed_with_its_size_mode_time_and_owner(data):
    path = data / "base/5/16384"
    path.chmod(0o640)
    os.utime(path, (1_000_000_000.9, 1_000_000_000.9))
    entry = listed(data)[0]["base/5/16384"]
    assert entry == FileEntry("base/5/16384", "file", 16384, 0o640, 1_000_000_000, os.getuid(), os.getgid(), "")


def test_directories_come_before_their_contents_and_names_in_order(data):
    write(data / "base/5/2")
    write(data / "base/5-a")
    order = [entry.path for entry in walk(str(data), 15, CATALOG, print)]
    assert [path for path in order if path.startswith("base")] == ["base", "base/5", "base/5/16384", "base/5/2", "base/5-a"]
    assert all(os.path.dirname(path) in order[:place] for place, path in enumerate(order) if path)


def test_pg_control_is_not_listed_but_a_namesake_elsewhere_is(data):
    write(data / "base/pg_control")
    found = paths(data)
    assert "global/pg_control" not in found
    assert {"global", "global/1262", "base/pg_control"} <= found


def test_empty_directories_are_listed(data):
    assert {"pg_twophase", "pg_commit_ts", "pg_tblspc"} <= paths(data)


@pytest.mark.parametrize("name", EMPTIED)
def test_what_the_server_empties_at_its_start_is_listed_as_an_empty_directory(data, name):
    write(data / name / "sub/0000")
    assert [path for path in paths(data) if path.startswith(name)] == [name]


@pytest.mark.parametrize("name", EMPTIED)
def test_a_link_in_place_of_such_a_directory_becomes_a_directory(data, tmp_path, name):
    (data / name).rmdir()
    write(tmp_path / "elsewhere/0000")
    (data / name).symlink_to(tmp_path / "elsewhere")
    data.chmod(0o750)
    found, notices = listed(data)
    assert found[name].kind == "directory"
    assert (found[name].mode, found[name].target, found[name].size) == (0o750, "", 0)
    assert f"{name}/0000" not in found
    assert notices == [f"{name} is a symbolic link to {tmp_path}/elsewhere; it comes back as an empty directory"]


@pytest.mark.parametrize("major", MAJORS)
def test_pg_wal_is_empty_but_for_the_directories_of_its_version(data, major):
    write(data / "pg_wal/000000010000000000000001")
    write(data / "pg_wal/archive_status/000000010000000000000001.done")
    write(data / "pg_wal/summaries/x.summary")
    write(data / "pg_wal/.wal-e/prefetch/000000010000000000000002")
    expected = {"pg_wal", "pg_wal/archive_status"} | ({"pg_wal/summaries"} if major >= 17 else set())
    assert {path for path in paths(data, major) if path.startswith("pg_wal")} == expected


def test_a_linked_pg_wal_becomes_a_directory_and_says_where_it_was(data, tmp_path):
    shutil.move(data / "pg_wal", tmp_path / "fast")
    write(tmp_path / "fast/000000010000000000000001")
    (data / "pg_wal").symlink_to(tmp_path / "fast")
    found, notices = listed(data)
    assert [entry.kind for path, entry in found.items() if path.startswith("pg_wal")] == ["directory", "directory"]
    assert notices == [f"pg_wal is a symbolic link to {tmp_path}/fast; it comes back as an empty directory"]


@pytest.mark.parametrize("name", ["postmaster.pid", "postmaster.opts", "backup_label", "tablespace_map", "postgresql.auto.conf.tmp", "current_logfiles.tmp"])
@pytest.mark.parametrize("major", MAJORS)
def test_what_belongs_to_the_running_server_is_left_out(data, name, major):
    write(data / name)
    assert name not in paths(data, major)


@pytest.mark.parametrize(
    "name",
    ["backup_label.old", "tablespace_map.old", "postgresql.auto.conf", "postgresql.conf", "pg_hba.conf", "current_logfiles", "log/postgresql.log", "my.notes"],
)
@pytest.mark.parametrize("major", MAJORS)
def test_configuration_logs_and_other_files_are_listed(data, name, major):
    write(data / name)
    assert name in paths(data, major)


@pytest.mark.parametrize("major", MAJORS)
def test_a_manifest_is_left_out_by_versions_that_write_one(data, major):
    write(data / "backup_manifest")
    assert ("backup_manifest" in paths(data, major)) == (major < 13)


@pytest.mark.parametrize("major", MAJORS)
def test_a_copy_does_not_inherit_a_role(data, major):
    signals = {"recovery.signal", "standby.signal"} if major >= 12 else {"recovery.conf", "recovery.done"}
    for name in signals:
        write(data / name)
        write(data / "extra" / name)
    found = paths(data, major)
    assert not signals & found
    assert {f"extra/{name}" for name in signals} <= found


@pytest.mark.parametrize("name", ["pgsql_tmp123.4", "base/pgsql_tmp/pgsql_tmp99.0", "base/5/pgsql_tmp99.0", "extra/pgsql_tmp"])
def test_temporary_files_are_left_out_at_any_depth(data, name):
    write(data / name)
    assert not [path for path in paths(data) if "pgsql_tmp" in path]


@pytest.mark.parametrize("major", MAJORS)
def test_the_relation_cache_is_left_out_since_11(data, major):
    names = {"global/pg_internal.init", "base/5/pg_internal.init", "base/5/pg_internal.init.4711"}
    for name in names:
        write(data / name)
    assert names & paths(data, major) == (names if major == 10 else set())


@pytest.mark.parametrize("directory", ["base/5", f"pg_tblspc/16390/PG_15_{CATALOG}/5"])
@pytest.mark.parametrize("name", ["t3_16385", "t3_16385.1", "t3_16385_fsm", "t3_16385_vm.2", "t3_16385_init"])
def test_temporary_relations_are_left_out_of_database_directories(data, directory, name):
    write(data / directory / name)
    assert f"{directory}/{name}" not in paths(data)


@pytest.mark.parametrize(
    "name", ["base/t3_16385", "global/t3_16385", "base/5/t3", "base/5/t3_x", "base/5/xt3_1", "base/5/t3_1_main", "base/5/sub/t3_1", "1/t3_1"]
)
def test_what_only_resembles_a_temporary_relation_is_listed(data, name):
    write(data / name)
    assert name in paths(data)


@pytest.mark.parametrize("directory", ["base/5", f"pg_tblspc/16390/PG_15_{CATALOG}/5"])
def test_only_the_initial_fork_of_an_unlogged_relation_is_listed(data, directory):
    for name in ["77", "77.1", "77_fsm", "77_vm", "77_vm.1", "77_init", "770", "7", "x77", "77_fsm.old"]:
        write(data / directory / name)
    found = {os.path.basename(path) for path in paths(data) if path.startswith(f"{directory}/")}
    assert found - {"16384"} == {"77_init", "770", "7", "x77", "77_fsm.old"}


def test_an_initial_fork_counts_in_its_own_directory_only(data):
    write(data / "base/5/77_init")
    write(data / "base/6/77")
    write(data / "extra/77_init")
    write(data / "extra/77")
    assert {"base/5/77_init", "base/6/77", "extra/77"} <= paths(data)


def test_version_10_copies_temporary_and_unlogged_relations_as_its_server_does(data):
    names = {"base/5/t3_16385", "base/5/77", "base/5/77_init"}
    for name in names:
        write(data / name)
    assert names <= paths(data, 10)


def test_traces_of_other_tools_and_file_systems_are_left_out(data):
    write(data / ".wal-e/prefetch/x")
    write(data / "lost+found/x")
    write(data / "base/lost+found/x")
    write(data / "base/.DS_Store")
    assert not [path for path in paths(data) if ".wal-e" in path or "lost" in path or "DS_Store" in path]


def test_a_tablespace_is_walked_below_its_version_directory_and_its_link_is_not_listed(data, tmp_path):
    place = tmp_path / "space"
    write(place / f"PG_15_{CATALOG}/5/16400", b"x" * 10)
    write(place / f"PG_15_{CATALOG}/5/t1_2")
    write(place / f"PG_15_{CATALOG}/pgsql_tmp/pgsql_tmp1.0")
    write(place / "PG_14_202107181/5/16400")
    write(place / "somebody.elses")
    (data / "pg_tblspc/16390").symlink_to(place)
    top = f"pg_tblspc/16390/PG_15_{CATALOG}"
    assert {path for path in paths(data) if path.startswith("pg_tblspc/")} == {top, f"{top}/5", f"{top}/5/16400"}
    assert tablespaces(str(data)) == {"16390": str(place)}


def test_a_tablespace_inside_the_data_directory_is_listed_once(data):
    write(data / f"spaces/one/PG_15_{CATALOG}/5/16400")
    (data / "pg_tblspc/16390").symlink_to(data / "spaces/one")
    found = paths(data)
    assert f"pg_tblspc/16390/PG_15_{CATALOG}/5/16400" in found
    assert {path for path in found if path.startswith("spaces")} == {"spaces", "spaces/one"}


def test_an_in_place_tablespace_is_an_ordinary_directory(data):
    write(data / f"pg_tblspc/16390/PG_15_{CATALOG}/5/16400")
    found, _ = listed(data)
    assert found["pg_tblspc/16390"].kind == "directory"
    assert f"pg_tblspc/16390/PG_15_{CATALOG}/5/16400" in found
    assert tablespaces(str(data)) == {}


def test_a_tablespace_without_our_version_directory_is_told(data, tmp_path):
    (tmp_path / "unmounted").mkdir()
    (data / "pg_tblspc/16390").symlink_to(tmp_path / "unmounted")
    found, notices = listed(data)
    assert "pg_tblspc/16390" not in found
    assert notices == [f"pg_tblspc/16390 leads to {tmp_path}/unmounted, where there is no PG_15_{CATALOG}; nothing of it is in the backup"]


def test_what_is_no_tablespace_stays_out_of_pg_tblspc(data, tmp_path):
    (data / "pg_tblspc/old").symlink_to(tmp_path)
    write(data / "pg_tblspc/note")
    found, notices = listed(data)
    assert {path for path in found if path.startswith("pg_tblspc/")} == set()
    assert notices == ["pg_tblspc/note is not a tablespace; it is not in the backup", "pg_tblspc/old is not a tablespace; it is not in the backup"]


@pytest.mark.parametrize("name", ["postgresql.conf", "log", "log/current", "conf.d/a.conf"])
def test_a_link_outside_of_the_servers_directories_comes_along_as_a_link(data, tmp_path, name):
    target = write(tmp_path / "etc" / "file")
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).symlink_to(target)
    found, notices = listed(data)
    assert (found[name].kind, found[name].target, found[name].size) == ("symlink", str(target), 0)
    assert notices == [f"{name} is a symbolic link to {target}; the link is in the backup, what it leads to is not"]


@pytest.mark.parametrize("name", [*OWN, "PG_VERSION", "base/5", "base/5/16384", "global/1262", "pg_xact/0000", "pg_logical/mappings"])
def test_a_link_that_would_take_data_out_of_the_backup_is_refused(data, tmp_path, name):
    place = data / name
    if place.exists():
        shutil.move(place, tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError) as caught:
        listed(data)
    assert caught.value.message == f"{name} is a symbolic link"
    assert str(tmp_path / "elsewhere") in caught.value.detail
    assert "tablespace" in caught.value.hint


@pytest.mark.parametrize("inner", ["", "/5", "/5/16400"])
def test_a_link_within_a_tablespace_is_refused(data, tmp_path, inner):
    version = tmp_path / f"space/PG_15_{CATALOG}"
    write(version / "5/16400")
    shutil.move(f"{version}{inner}", tmp_path / "elsewhere")
    Path(f"{version}{inner}").symlink_to(tmp_path / "elsewhere")
    (data / "pg_tblspc/16390").symlink_to(tmp_path / "space")
    with pytest.raises(UsageError, match=rf"pg_tblspc/16390/PG_15_{CATALOG}{inner} is a symbolic link"):
        listed(data)


def test_sockets_and_pipes_are_passed_over_and_told(data):
    os.mkfifo(data / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(data / ".s.PGSQL.5432"))
    found, notices = listed(data)
    assert not {"pipe", ".s.PGSQL.5432"} & set(found)
    assert notices == [f"{name} is a socket, pipe or device; it is not in the backup" for name in (".s.PGSQL.5432", "pipe")]


def test_what_vanishes_during_the_walk_is_passed_over_in_silence(data):
    write(data / "base/5/1")
    write(data / "base/5/2")
    write(data / "base/6/1")
    write(data / "base/7/1")
    found, notices = [], []
    for entry in walk(str(data), 15, CATALOG, notices.append):
        found.append(entry.path)
        if entry.path == "base/5/1":
            (data / "base/5/2").unlink()
            shutil.rmtree(data / "base/6")
        if entry.path == "base/7":
            shutil.rmtree(data / "base/7")
    assert [path for path in found if path.startswith("base/")] == ["base/5", "base/5/1", "base/5/16384", "base/7"]
    assert notices == []


def test_a_missing_data_directory_is_an_error(tmp_path):
    with pytest.raises(LocalFileError, match="absent"):
        listed(tmp_path / "absent")


def test_an_unreadable_directory_is_an_error(make_server):
    stopped = make_server()
    secret = stopped.data / "base/secret"
    secret.mkdir(mode=0o000)
    with as_owner_of(stopped.data), pytest.raises(LocalFileError, match=f"permission denied while reading {secret}"):
        listed(stopped.data)


def test_a_tablespace_behind_a_closed_door_is_an_error(make_server):
    stopped = make_server()
    closed = stopped.make_directory("closed")
    (closed / "space").mkdir()
    closed.chmod(0o000)
    (stopped.data / "pg_tblspc/16390").symlink_to(closed / "space")
    with as_owner_of(stopped.data), pytest.raises(LocalFileError, match=r"permission denied while reading .*pg_tblspc/16390"):
        listed(stopped.data)


@contextlib.contextmanager
def as_owner_of(path):
    """Permissions mean nothing to root."""
    us = os.geteuid()
    os.seteuid(path.stat().st_uid)
    try:
        yield
    finally:
        os.seteuid(us)


@pytest.mark.parametrize("name", ["with\nnewline", os.fsdecode(b"\xff\xfe"), "-rf", "x" * 200, "ünï", " ", "back\\slash", "%s", "base"])
def test_odd_names_are_listed_as_they_are(data, name):
    write(data / "base/5" / name)
    assert f"base/5/{name}" in paths(data)


@pytest.mark.parametrize("name", ["base", "global", "pg_wal", "pg_tblspc/16384", "base/5", "pgsql_tmp", "lost+found"])
def test_the_place_of_the_data_directory_changes_nothing(data, tmp_path, name):
    expected = paths(data)
    moved = tmp_path / "elsewhere" / name
    moved.parent.mkdir(parents=True)
    shutil.move(data, moved)
    assert paths(moved) == expected
    (tmp_path / "link").symlink_to(moved)
    assert paths(tmp_path / "link") == expected


_left_out = (b".", b"..", *map(os.fsencode, files._NAMES))
_names = st.binary(min_size=1, max_size=40).filter(lambda name: not set(b"/\0") & set(name) and name not in _left_out and not name.startswith(b"pg"))


@given(names=st.sets(_names, max_size=8))
def test_any_name_the_file_system_takes_is_found_again_in_order(names):
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / "pg_tblspc").mkdir()
        (Path(top) / "extra").mkdir()
        for name in names:
            Path(os.path.join(top, "extra", os.fsdecode(name))).write_bytes(b"")
        found = [path.removeprefix("extra/") for path in listed(top)[0] if path.startswith("extra/")]
        assert found == sorted(found)
        assert set(map(os.fsencode, found)) == names


def test_a_walk_lists_what_pg_basebackup_copies(server):
    space = server.make_directory("space")
    server.psql("CREATE UNLOGGED TABLE unlogged AS SELECT generate_series(1, 100000) AS n")
    server.psql("CREATE INDEX ON unlogged (n)")
    server.psql("VACUUM unlogged")
    server.psql(f"CREATE TABLESPACE space LOCATION '{space}'")
    server.psql("CREATE TABLE far TABLESPACE space AS SELECT generate_series(1, 1000) AS n")
    server.psql("CREATE UNLOGGED TABLE far_unlogged (n int PRIMARY KEY) TABLESPACE space")
    server.psql("SELECT pg_create_physical_replication_slot('slot', true)")
    server.psql("CHECKPOINT")
    database = server.data / "base" / server.psql("SELECT oid FROM pg_database WHERE datname = 'postgres'")
    for name in ["t7_4711", "t7_4711_fsm.1", "pgsql_tmp/pgsql_tmp1.2", "pg_internal.init.99"]:
        write(database / name)
    odd = [
        "with\nnewline",
        os.fsdecode(b"\xff\xfe"),
        "-rf",
        "x" * 90,
        "log/server.log",
        "conf.d/my.conf",
        "backup_label.old",
        ".hidden",
        "pgsql_tmp9",
        "backup_manifest",
    ]
    for name in odd:
        write(server.data / name)
    give_to_server_user(server.data)

    found, notices = listed(server.data, int(server.psql("SHOW server_version_num")) // 10000, read_control(str(server.data)).catalog_version)
    copy = server.directory / "copy"
    server.run([bindir() / "pg_basebackup", "-D", copy, "-X", "none", "-c", "fast", "--no-sync", "-T", f"{space}={server.directory}/copied"])
    copied = {os.path.relpath(os.path.join(place, name), copy) for place, names, others in os.walk(copy) for name in names + others}
    for oid in tablespaces(str(copy)):
        link = copy / "pg_tblspc" / oid
        copied |= {os.path.relpath(os.path.join(place, name), copy) for place, names, others in os.walk(link) for name in names + others}
        copied.remove(f"pg_tblspc/{oid}")

    assert set(found) | {"backup_label", "backup_manifest", "global/pg_control"} == copied | {""}
    assert notices == []
    kinds = {path: "directory" if (copy / path).is_dir() else "file" for path in found}
    assert {path: entry.kind for path, entry in found.items()} == kinds
