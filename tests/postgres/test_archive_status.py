from __future__ import annotations

import os

import pytest

from wal_e.errors import DiskFull, LocalFileError
from wal_e.postgres.archive_status import Marked, mark_done, ready_names, statuses

ONE, TWO, THREE = (f"00000001000000000000000{digit}" for digit in "9AF")


@pytest.fixture
def pg_wal(tmp_path):
    (tmp_path / "archive_status").mkdir()
    return tmp_path


def add(pg_wal, *names, status=".ready"):
    for name in names:
        (pg_wal / name).touch()
        (pg_wal / "archive_status" / (name + status)).touch()


def status_files(pg_wal):
    return sorted(path.name for path in (pg_wal / "archive_status").iterdir())


def test_without_the_directory_nothing_waits(tmp_path):
    assert ready_names(str(tmp_path)) == []
    assert ready_names(str(tmp_path / "absent")) == []


def test_names_come_as_the_server_takes_them_history_first_then_ascending(pg_wal):
    later = "000000020000000000000001"
    add(pg_wal, later, THREE, ONE, "00000003.history", TWO + ".partial", TWO, ONE + ".00000028.backup", "00000002.history")
    assert ready_names(str(pg_wal)) == ["00000002.history", "00000003.history", ONE, ONE + ".00000028.backup", TWO, TWO + ".partial", THREE, later]


def test_only_ready_files_wait(pg_wal):
    add(pg_wal, ONE, status=".done")
    add(pg_wal, TWO)
    add(pg_wal, THREE, status="")
    assert ready_names(str(pg_wal)) == [TWO]


def test_a_ready_file_whose_wal_is_gone_is_left_out(pg_wal):
    add(pg_wal, ONE, TWO)
    (pg_wal / ONE).unlink()
    assert ready_names(str(pg_wal)) == [TWO]


def test_names_of_no_kind_are_left_out(pg_wal):
    add(pg_wal, "other", THREE.lower(), ONE + ".lzo", "00000002.history.bak", TWO)
    assert ready_names(str(pg_wal)) == [TWO]


def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path):
    (tmp_path / "archive_status").write_text("a file")
    with pytest.raises(LocalFileError, match=r"reading .*/archive_status"):
        ready_names(str(tmp_path))


def test_marking_renames_ready_to_done(pg_wal):
    add(pg_wal, ONE, TWO)
    mark_done(str(pg_wal), ONE)
    assert status_files(pg_wal) == [ONE + ".done", TWO + ".ready"]
    assert ready_names(str(pg_wal)) == [TWO]


def test_marking_replaces_an_older_done(pg_wal):
    add(pg_wal, ONE)
    add(pg_wal, ONE, status=".done")
    mark_done(str(pg_wal), ONE)
    assert status_files(pg_wal) == [ONE + ".done"]


def test_marking_what_no_longer_waits_changes_nothing(pg_wal):
    add(pg_wal, ONE, status=".done")
    mark_done(str(pg_wal), ONE)
    mark_done(str(pg_wal), TWO)
    assert status_files(pg_wal) == [ONE + ".done"]


def test_marking_leaves_no_descriptor_open(pg_wal):
    add(pg_wal, ONE)
    before = os.listdir("/proc/self/fd")
    mark_done(str(pg_wal), ONE)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize(
    ("number", "error", "words"), [(13, LocalFileError, "permission denied while renaming"), (28, DiskFull, "no space left while renaming")]
)
def test_a_refused_rename_names_the_file(pg_wal, monkeypatch, number, error, words):
    add(pg_wal, ONE)

    def rename(source, _target):
        raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(error, match=f"{words} .*/archive_status/{ONE}.ready"):
        mark_done(str(pg_wal), ONE)


def test_each_file_has_one_status_and_waiting_wins(pg_wal):
    add(pg_wal, ONE, "00000002.history")
    add(pg_wal, ONE, TWO, status=".done")
    add(pg_wal, "rubbish", status=".done")
    (pg_wal / "archive_status" / (TWO + ".done.tmp")).touch()
    (pg_wal / TWO).unlink()
    os.utime(pg_wal / "archive_status" / (TWO + ".done"), (1000, 1000))
    found = statuses(str(pg_wal))
    assert {name: marked.state for name, marked in found.items()} == {ONE: "ready", TWO: "done", "00000002.history": "ready"}
    assert found[TWO] == Marked("done", 1000.0)


def test_without_the_directory_no_file_has_a_status(tmp_path):
    assert statuses(str(tmp_path)) == {}
    (tmp_path / "archive_status").touch()
    with pytest.raises(LocalFileError):
        statuses(str(tmp_path))
