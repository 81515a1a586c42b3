"""What wal-status finds in a built data directory."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from wal_e.operators import wal_status
from wal_e.operators.metrics import exposition
from wal_e.postgres.cluster import Cluster
from wal_e.postgres.monitor import ArchiverStats
from wal_e.postgres.wal import segment_name

SIZE = 1024 * 1024
NOW = 2_000_000_000.0
SEGMENTS = [segment_name(1, number * SIZE, SIZE) for number in range(1, 8)]


@pytest.fixture
def finished(data_directory):
    """Let segments have been finished so many seconds before now."""
    (data_directory / "PG_VERSION").write_text("15\n")

    def mark(state, *ages):
        for name, age in zip(SEGMENTS, ages, strict=False):
            (data_directory / "pg_wal" / name).touch()
            status = data_directory / "pg_wal" / "archive_status" / f"{name}.{state}"
            status.touch()
            os.utime(status, (NOW - age, NOW - age))

    return mark


def looked(data_directory, limit=128):
    return wal_status.look(Cluster.open(str(data_directory)), {}, limit, NOW)


def test_the_rate_is_that_of_segments_finished_lately(data_directory, finished):
    finished("done", 5000, 200, 150)
    status = looked(data_directory)
    assert status.disk.rate == pytest.approx(1 * SIZE / 200)
    assert status.disk.lasts_s == pytest.approx(status.disk.free_bytes / status.disk.rate)


def test_waiting_segments_count_for_the_rate_and_small_files_do_not(data_directory, finished):
    finished("ready", 100, 50, 25)
    small = data_directory / "pg_wal" / "archive_status" / f"{SEGMENTS[0]}.00000028.backup.done"
    small.touch()
    os.utime(small, (NOW - 10, NOW - 10))
    assert looked(data_directory).disk.rate == pytest.approx(2 * SIZE / 100)


@pytest.mark.parametrize("ages", [(), (10,), (1000, 5000, 10), (-50, -20, 10)])
def test_the_rate_is_not_known_where_fewer_than_two_were_finished_lately(data_directory, finished, ages):
    finished("done", *ages)
    status = looked(data_directory)
    assert (status.disk.rate, status.disk.lasts_s) == (None, None)
    text = exposition("", wal_status.metrics(status))
    assert "wale_wal_disk_lasts_seconds" not in text
    assert "wale_wal_backlog_files 0\n" in text


def test_a_burst_within_a_second_is_no_infinite_rate(data_directory, finished):
    finished("done", 0, 0, 0)
    assert looked(data_directory).disk.rate == pytest.approx(2 * SIZE)


def test_the_free_space_is_that_of_the_file_system_of_pg_wal(data_directory, finished):
    finished("done")
    found = os.statvfs(data_directory / "pg_wal")
    assert looked(data_directory).disk.size_bytes == found.f_blocks * found.f_frsize


def test_a_failure_counts_while_its_file_waits_and_nothing_was_archived_since(data_directory, finished):
    finished("ready", 100)
    pg_wal = str(data_directory / "pg_wal")
    early, late = (datetime.fromtimestamp(NOW - age, UTC) for age in (60, 10))

    def failure(archived, failed, name=SEGMENTS[0]):
        return wal_status._failure(ArchiverStats("x", archived, name, failed, 1, 4, None), pg_wal)

    alarm = failure(early, late)
    assert SEGMENTS[0] in alarm.detail
    assert "4 attempts" in alarm.detail
    assert failure(late, early) is None
    assert failure(early, late, SEGMENTS[1]) is None


def test_two_alarms_are_told_as_one(data_directory, finished):
    finished("ready", 100, 50)
    alarm = looked(data_directory, 1).alarm
    both = wal_status._merged([alarm, alarm])
    assert both.message == f"{alarm.message}; {alarm.message}"
    assert wal_status._merged([]) is None
