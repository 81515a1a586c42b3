"""How the progress of a restore looks, and what is said of a configuration that is elsewhere."""

import io
import itertools
import os
import sys

import pytest

from wal_e.cli.restore_text import absent_lines, bar
from wal_e.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def progress():
    seconds = itertools.count()
    made = Progress(4 << 20, lambda: float(next(seconds)))
    made.add(1 << 20)
    return made


def test_on_a_terminal_one_line_is_written_over_and_over_and_cleared_at_the_end(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((100, 24)))
    with bar() as line:
        line(progress())
        line(progress())
    written = sys.stderr.getvalue().split("\r")
    assert "\n" not in sys.stderr.getvalue()
    assert written[1].startswith("\x1b[K[####")
    assert "1.0 MiB of 4.0 MiB (25%), " in written[1]
    assert max(map(len, written)) <= 99 + len("\x1b[K")
    assert written[-1] == "\x1b[K"


def test_a_narrow_terminal_gets_the_sentence_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((20, 24)))
    with bar() as line:
        line(progress())
    assert sys.stderr.getvalue().split("\r")[1] == "\x1b[K1.0 MiB of 4.0 MiB "[:22]


def test_elsewhere_there_is_no_bar(monkeypatch):
    for stream in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with bar() as line:
            assert line is None


def test_the_bytes_of_an_attempt_that_failed_are_taken_back():
    made = progress()
    with pytest.raises(OSError, match="full"), made.attempt() as count:
        count(1 << 20)
        assert made.done_bytes == 2 << 20
        raise OSError("full")
    with made.attempt() as count:
        count(3 << 20)
    assert "4.0 MiB of 4.0 MiB (100%)" in made.line()


def test_absent_configuration_is_told_with_what_to_do():
    assert absent_lines((), "/pg") == []
    [line] = absent_lines(("postgresql.conf", "pg_hba.conf"), "/pg data")
    assert "config_file=FILE" in line
    assert "'data_directory=/pg data'" in line  # without it, a copy's server would start on the directory that the configuration names
    assert "put them there" in absent_lines(("pg_hba.conf",), "/pg")[0]
