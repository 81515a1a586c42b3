"""What waits to be archived, when that is too much, and giving it up."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_e.errors import WalDropped
from wal_e.operators import backlog
from wal_e.operators.backlog import Backlog
from wal_e.postgres import archive_status
from wal_e.postgres.wal import segment_name, wal_kind

SIZE = 1024 * 1024
SEGMENTS = [segment_name(1, number * SIZE, SIZE) for number in range(1, 8)]


@pytest.fixture
def pg_wal(tmp_path):
    (tmp_path / "archive_status").mkdir()
    return tmp_path


def add(pg_wal: Path, name: str, state: str = "ready", since: float | None = None) -> None:
    (pg_wal / name).touch()
    status = pg_wal / "archive_status" / f"{name}.{state}"
    status.touch()
    if since is not None:
        os.utime(status, (since, since))


def test_nothing_waits_where_there_is_no_directory(tmp_path):
    assert backlog.measure(str(tmp_path)) == Backlog((), 0.0)


def test_what_waits_is_told_in_the_servers_order_with_the_longest_wait(pg_wal):
    add(pg_wal, SEGMENTS[1], since=1000)
    add(pg_wal, SEGMENTS[0], since=1010)
    add(pg_wal, SEGMENTS[2], state="done", since=1)
    add(pg_wal, "00000002.history", since=1020)
    assert backlog.measure(str(pg_wal), 1100) == Backlog(("00000002.history", SEGMENTS[0], SEGMENTS[1]), 100.0)


def test_a_clock_that_was_set_back_makes_no_negative_wait(pg_wal):
    add(pg_wal, SEGMENTS[0], since=1000)
    assert backlog.measure(str(pg_wal), 900).oldest_age_s == 0.0


def test_the_wait_is_measured_against_the_clock_of_the_machine(pg_wal):
    add(pg_wal, SEGMENTS[0])
    assert 0 <= backlog.measure(str(pg_wal)).oldest_age_s < 60


def test_an_alarm_is_raised_beyond_the_limit_and_not_at_it():
    names = tuple(SEGMENTS[:3])
    assert backlog.alarm(Backlog((), 0.0), 1) is None
    assert backlog.alarm(Backlog(names, 90.0), 3) is None
    alarm = backlog.alarm(Backlog(names, 90.0), 2)
    assert alarm.message == "3 WAL files wait to be archived"
    assert names[0] in alarm.detail
    assert "1 min 30 s" in alarm.detail
    assert alarm.status == 1


def test_an_alarm_changes_nothing(pg_wal):
    add(pg_wal, SEGMENTS[0])
    assert backlog.alarm(backlog.measure(str(pg_wal)), 0) is not None
    assert archive_status.ready_names(str(pg_wal)) == [SEGMENTS[0]]


def test_the_oldest_segments_are_dropped_until_enough_are_gone_and_each_is_an_error_in_the_log(pg_wal, monkeypatch):
    logged = []
    monkeypatch.setattr(backlog.LOG, "error", lambda error, **pairs: logged.append((type(error), pairs["seg"])))
    for name in SEGMENTS[:5]:
        add(pg_wal, name)
    assert backlog.drop(str(pg_wal), 3) == SEGMENTS[:2]
    assert archive_status.ready_names(str(pg_wal)) == SEGMENTS[2:5]
    assert all(archive_status.is_done(str(pg_wal), name) for name in SEGMENTS[:2])
    assert all((pg_wal / name).exists() for name in SEGMENTS[:5])
    assert backlog.drop(str(pg_wal), 3) == []
    assert logged == [(WalDropped, name) for name in SEGMENTS[:2]]


def test_nothing_is_dropped_where_little_waits(pg_wal):
    add(pg_wal, SEGMENTS[0])
    assert backlog.drop(str(pg_wal), 1) == []
    assert archive_status.ready_names(str(pg_wal)) == [SEGMENTS[0]]


timelines = st.integers(1, 3)
small_files = st.builds("{:08X}.history".format, st.integers(2, 5)) | st.builds("{}.00000028.backup".format, st.sampled_from(SEGMENTS))
large_files = st.builds(lambda timeline, number: segment_name(timeline, number * SIZE, SIZE), timelines, st.integers(1, 12))
partial_files = st.builds("{}.partial".format, large_files)


@settings(max_examples=60, deadline=None)
@given(names=st.sets(small_files | large_files | partial_files, max_size=20), keep=st.integers(0, 22))
def test_dropping_spares_small_files_takes_the_oldest_first_and_never_leaves_fewer_than_asked_for(names, keep):
    with tempfile.TemporaryDirectory() as directory:
        pg_wal = Path(directory)
        (pg_wal / "archive_status").mkdir()
        for name in names:
            add(pg_wal, name)
        dropped = backlog.drop(directory, keep)
        left = archive_status.ready_names(directory)
        assert set(left) == names - set(dropped)
        assert len(left) >= min(keep, len(names))
        assert all(wal_kind(name) in ("segment", "partial") for name in dropped)
        droppable = sorted(name for name in names if wal_kind(name) in ("segment", "partial"))
        assert dropped == droppable[: len(dropped)]
        assert len(left) <= keep or len(dropped) == len(droppable)
