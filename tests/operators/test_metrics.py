"""Prometheus' text format: rendered, and read back by its grammar."""

from __future__ import annotations

import re

import pytest

from wal_e.errors import LocalFileError
from wal_e.operators.metrics import ArchiverState, Metric, exposition, render, write

STATE = ArchiverState(3, 3 * 16777216, 2, 7, 12.5, 1700000000.25, None, 0, "/data")
SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{pgdata="((?:[^"\\\n]|\\["\\n])*)"\})? ([0-9.e+-]+)$')


def samples(text: str) -> dict[str, float]:
    """Read an exposition: each sample comes after the HELP and TYPE of its name."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    lines = text.splitlines()
    for help_line, type_line, sample in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, _, value = SAMPLE.match(sample).groups()
        assert re.match(rf"# HELP {name} [A-Z0-9].*\.$", help_line)
        kind = re.match(rf"# TYPE {name} (gauge|counter)$", type_line).group(1)
        assert (kind == "counter") == name.endswith("_total")
        assert name.startswith("wale_")
        assert name not in found
        found[name] = float(value)
    return found


def test_the_archivers_state_is_rendered():
    assert samples(render(STATE)) == {
        "wale_archiver_pushed_files_total": 3,
        "wale_archiver_pushed_bytes_total": 50331648,
        "wale_archiver_failed_attempts_total": 2,
        "wale_archiver_dropped_files_total": 0,
        "wale_archiver_backlog_files": 7,
        "wale_archiver_backlog_oldest_seconds": 12.5,
        "wale_archiver_last_pushed_timestamp_seconds": 1700000000.25,
        "wale_archiver_store_available": 1,
    }


def test_a_store_that_is_away_is_told_with_the_time_since_when():
    found = samples(render(STATE._replace(store_away_since=1700000100.0, last_pushed_at=None)))
    assert found["wale_archiver_store_available"] == 0
    assert found["wale_archiver_store_away_since_timestamp_seconds"] == 1700000100
    assert "wale_archiver_last_pushed_timestamp_seconds" not in found


@pytest.mark.parametrize("pgdata, label", [("/a b", "/a b"), ('/a"b', '/a\\"b'), ("/a\\b", "/a\\\\b"), ("/a\nb", "/a\\nb")])
def test_the_data_directory_is_a_label_whatever_its_name(pgdata, label):
    text = exposition(pgdata, [Metric("one", "gauge", "One.", 1)])
    assert text.splitlines()[2] == f'wale_one{{pgdata="{label}"}} 1'
    assert samples(text) == {"wale_one": 1}


def test_without_a_directory_there_is_no_label():
    assert exposition("", [Metric("one", "gauge", "One.", 0.5)]).splitlines()[2] == "wale_one 0.5"


def test_large_numbers_stay_exact():
    assert exposition("", [Metric("one", "gauge", "One.", 2**60)]).splitlines()[2] == "wale_one 1152921504606846976"


def test_the_file_is_replaced_whole_and_readable_for_everybody(tmp_path):
    path = tmp_path / "wale.prom"
    path.write_text("old")
    with path.open() as reader:
        write(str(path), STATE)
        assert reader.read() == "old"
    assert path.read_text() == render(STATE)
    assert path.stat().st_mode & 0o777 == 0o644
    assert [one.name for one in tmp_path.iterdir()] == ["wale.prom"]


def test_a_directory_whose_name_is_no_text_is_written(tmp_path):
    write(str(tmp_path / "m"), STATE._replace(pgdata="/a\udcffb"))
    assert '{pgdata="/a\\\\xffb"}' in (tmp_path / "m").read_text()


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    with pytest.raises(LocalFileError, match="writing"):
        write(str(tmp_path / "absent" / "m"), STATE)
    (tmp_path / "m").mkdir()
    with pytest.raises(LocalFileError, match="writing"):
        write(str(tmp_path / "m"), STATE)
    assert [one.name for one in tmp_path.iterdir()] == ["m"]
