"""Lanes of bare greenlets, with real programs."""

import os
import signal

import pytest

from wal_e.errors import Terminated
from wal_e.pipeline import process
from wal_e.pipeline.side_by_side import SideBySide


@pytest.fixture
def programs(tmp_path):
    """Start shell commands, wait for them in lanes, and note their statuses in the order in which they end."""
    return Programs(tmp_path)


class Programs:
    def __init__(self, directory):
        self.directory = directory
        self.pids = []
        self.statuses = []
        self.cleaned = []

    def work(self, waits):
        def work(command):
            started = process.start(("sh", "-c", f"cd {self.directory}; {command}"), 0, 1)
            self.pids.append(started.pid)
            os.close(started.stderr)
            try:
                self.statuses.append(waits.reap(started))
            except BaseException:
                os.kill(started.pid, signal.SIGKILL)
                self.cleaned.append(waits.reap(started))
                raise
            if self.statuses[-1] == 7:
                raise LookupError(command)

        return work

    def all_gone(self):
        for pid in self.pids:
            with pytest.raises(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


MEET = ["mkfifo a; echo >a", "while ! [ -p a ]; do :; done; read x <a"]  # each waits for the other


def test_programs_of_several_lanes_run_at_the_same_time(programs):
    waits = SideBySide(2)
    assert [ended.error for ended in waits.run(programs.work(waits), MEET)] == [None, None]
    assert programs.statuses == [0, 0]
    programs.all_gone()


def test_no_more_than_so_many_lanes(programs):
    waits = SideBySide(2)
    count = "mkdir $$ && set -- [0-9]* && [ $# -le 2 ] && rmdir $$"
    assert [ended.error for ended in waits.run(programs.work(waits), [count] * 20)] == [None] * 20
    assert programs.statuses == [0] * 20


def test_every_item_ends_once_and_an_error_is_its_own(programs):
    waits = SideBySide(3)
    ended = dict(waits.run(programs.work(waits), ["exit 0", "exit 7", "exit 3"]))
    assert ended["exit 0"] is None and ended["exit 3"] is None
    assert isinstance(ended["exit 7"], LookupError)
    assert sorted(programs.statuses) == [0, 3, 7]


def test_closing_ends_the_programs_and_lets_each_lane_clean_up(programs):
    waits = SideBySide(3)
    ended = waits.run(programs.work(waits), ["exit 0", "sleep 100", "sleep 100"])
    assert next(ended).item == "exit 0"
    ended.close()
    assert programs.cleaned == [-signal.SIGKILL] * 2
    programs.all_gone()


def test_a_signal_that_hits_one_lane_ends_all(programs):
    waits = SideBySide(2)
    work = programs.work(waits)

    def hit(command):
        if command == "signal":
            raise Terminated(signal.SIGTERM)
        work(command)

    with pytest.raises(Terminated):
        list(waits.run(hit, ["sleep 100", "signal"]))
    assert programs.cleaned == [-signal.SIGKILL]
    programs.all_gone()


def test_a_program_can_be_waited_for_outside_of_lanes(programs):
    programs.work(SideBySide(1))("exit 3")
    assert programs.statuses == [3]
