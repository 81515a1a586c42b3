"""What the resident archiver decides: which file next, what to do when the store is away, which file to mark, what to say."""

import os

import pytest
from fix_archive import records
from hypothesis import given
from hypothesis import strategies as st

from wal_e import log
from wal_e.errors import StoreUnavailable
from wal_e.operators import archiver_marks, archiver_schedule
from wal_e.operators.archiver_desk import LINGER_S, STORED, Desk, linger
from wal_e.operators.archiver_marks import ASKED_GRACE_S, GRACE_S, Marks, Stored, file_identity
from wal_e.operators.archiver_report import METRICS_S, REMIND_S, Report
from wal_e.operators.archiver_schedule import FIRST_REFUSAL_S, MAX_PROBE_S, Schedule
from wal_e.operators.backlog import Backlog
from wal_e.settings import Settings

HISTORY = "00000002.history"


def seg(number, timeline=1):
    return f"{timeline:08X}00000000{number:08X}"


def names(*numbers, timeline=1):
    return [seg(number, timeline) for number in numbers]


@pytest.fixture
def schedule():
    return Schedule(lambda: 1.0)


def take_all(schedule, now=0.0):
    """All that can be taken while nothing ends, where the store has none of it."""
    taken = []
    while (name := schedule.take(now)) is not None:
        taken.append(name)
        schedule.absent(name)
    return taken


def take_some(schedule, number):
    taken = []
    for _ in range(number):
        taken.append(schedule.take(0))
        schedule.absent(taken[-1])
    return taken


class TestOrder:
    def test_history_files_come_first_then_the_oldest(self, schedule):
        schedule.offer([*names(5, 3), f"{seg(4)}.partial", HISTORY, f"{seg(4)}.00000028.backup"])
        assert take_all(schedule) == [HISTORY, seg(3), f"{seg(4)}.00000028.backup", f"{seg(4)}.partial", seg(5)]

    def test_what_is_being_pushed_is_not_taken_again(self, schedule):
        schedule.offer(names(1))
        assert schedule.take(0) == seg(1)
        schedule.offer(names(1))
        assert schedule.take(0) is None
        schedule.forget(seg(1))
        schedule.offer(names(1))
        assert schedule.take(0) == seg(1)

    def test_a_file_that_is_asked_for_comes_before_all_others(self, schedule):
        schedule.offer(names(1, 2, 3))
        schedule.want(seg(3))
        schedule.want(seg(9))
        assert take_all(schedule) == names(3, 9, 1, 2)

    def test_a_timeline_waits_for_its_history(self, schedule):
        schedule.offer([HISTORY, *names(7, 8, timeline=2), seg(6)])
        assert take_all(schedule) == [HISTORY, seg(6)]
        schedule.forget(HISTORY)
        assert take_all(schedule) == names(7, 8, timeline=2)

    def test_a_timeline_waits_for_a_history_that_is_refused_but_for_what_is_asked_for(self, schedule):
        schedule.offer([HISTORY, *names(7, 8, timeline=2), seg(6)])
        schedule.want(seg(8, 2))
        assert take_all(schedule) == [HISTORY, seg(6)]
        schedule.refused(HISTORY, 0)
        assert take_all(schedule) == [seg(8, 2)]
        assert take_all(schedule, FIRST_REFUSAL_S) == [HISTORY]
        schedule.forget(HISTORY)
        assert take_all(schedule) == [seg(7, 2)]

    def test_a_timeline_goes_on_when_its_history_does_not_wait_any_more(self, schedule):
        schedule.offer([HISTORY, seg(7, 2)])
        schedule.retain({seg(7, 2)})
        assert take_all(schedule) == [seg(7, 2)]

    def test_what_does_not_wait_any_more_is_forgotten_but_not_what_is_asked_for_or_pushed(self, schedule):
        schedule.offer(names(1, 2, 3))
        assert schedule.take(0) == seg(1)
        schedule.absent(seg(1))
        schedule.want(seg(3))
        schedule.retain(set())
        assert seg(1) in schedule
        assert seg(2) not in schedule
        assert take_all(schedule) == [seg(3)]

    def test_a_bounded_number_of_names_is_known(self, schedule, monkeypatch):
        monkeypatch.setattr(archiver_schedule, "MAX_NAMES", 3)
        schedule.offer(names(*range(10)))
        assert take_all(schedule) == names(0, 1, 2)
        schedule.forget(seg(1))
        schedule.offer(names(*range(3, 10)))
        assert take_all(schedule) == names(3)


class TestSplitBrain:
    def test_nothing_follows_the_first_one_before_it_is_known_to_be_absent(self, schedule):
        schedule.offer([*names(1, 2, 3), *names(7, 8, timeline=3)])
        assert schedule.take(0) == seg(1)
        assert schedule.needs_lookup(seg(1))
        assert schedule.take(0) == seg(7, 3)
        assert schedule.take(0) is None
        schedule.absent(seg(1))
        assert schedule.take(0) == seg(2)
        assert not schedule.needs_lookup(seg(2))
        assert take_all(schedule) == [seg(3)]

    def test_nor_does_what_is_asked_for(self, schedule):
        schedule.offer(names(1, 2))
        assert schedule.take(0) == seg(1)
        schedule.want(seg(2))
        assert schedule.take(0) is None
        schedule.forget(seg(1))
        assert schedule.take(0) == seg(2)

    def test_while_the_store_has_them_they_go_one_by_one(self, schedule):
        schedule.offer(names(1, 2, 3))
        for number in (1, 2, 3):
            assert schedule.take(0) == seg(number)
            assert schedule.take(0) is None
            schedule.forget(seg(number))

    def test_one_alone_need_not_be_looked_up(self, schedule):
        schedule.offer(names(1))
        assert schedule.take(0) == seg(1)
        assert not schedule.needs_lookup(seg(1))
        schedule.offer(names(2))
        assert schedule.take(0) is None

    def test_nothing_goes_past_a_conflict_until_it_is_cured(self, schedule):
        schedule.offer([*names(2, 3, 4), *names(9, timeline=3)])
        schedule.want(seg(4))
        assert take_some(schedule, 2) == names(4, 2)
        schedule.conflicting(seg(2), 0)
        schedule.refused(seg(4), 0)
        assert [schedule.blocker(name) for name in names(1, 2, 3)] == [None, None, seg(2)]
        schedule.offer(names(1, 5))
        assert take_all(schedule) == [seg(1), seg(9, 3)]
        schedule.want(seg(3))
        assert take_all(schedule, 1000) == [seg(2)]
        schedule.forget(seg(2))
        assert take_all(schedule, 1000) == names(3, 4, 5)

    def test_the_first_of_two_conflicts_counts(self, schedule):
        schedule.offer(names(2, 3, 4))
        for name in take_some(schedule, 2)[::-1]:
            schedule.conflicting(name, 0)
        assert [schedule.blocker(name) for name in names(2, 3, 4)] == [None, seg(2), seg(2)]
        schedule.forget(seg(2))
        assert [schedule.blocker(name) for name in names(3, 4)] == [None, seg(3)]


class TestRefusals:
    def test_a_refused_file_holds_up_nobody_and_comes_again_more_and_more_slowly(self, schedule):
        schedule.offer(names(1, 2))
        assert schedule.take(0) == seg(1)
        schedule.refused(seg(1), 0)
        assert take_all(schedule) == [seg(2)]
        now, pauses = 0.0, []
        for _ in range(10):
            pause = schedule.pause(now)
            pauses.append(pause)
            assert schedule.take(now + pause * 0.99) is None
            now += pause
            assert schedule.take(now) == seg(1)
            schedule.refused(seg(1), now)
        assert pauses[:3] == [5, 10, 20]
        assert pauses[-1] == 300

    def test_one_that_is_asked_for_is_tried_at_once(self, schedule):
        schedule.offer(names(1))
        schedule.take(0)
        schedule.refused(seg(1), 0)
        schedule.want(seg(1))
        assert schedule.take(0) == seg(1)


class TestOutage:
    def begin(self, schedule):
        """Three files in flight fail; two more wait."""
        schedule.offer(names(1, 2, 3, 4, 5))
        for name in take_some(schedule, 3):
            schedule.unavailable(name, 0)

    def test_one_file_at_a_time_is_the_probe(self, schedule):
        self.begin(schedule)
        assert schedule.take(0) is None
        now = schedule.pause(0)
        probe = schedule.take(now)
        assert probe is not None
        assert schedule.take(now + 1000) is None

    def test_each_probe_is_another_file_and_comes_later(self, schedule):
        self.begin(schedule)
        now, probes, pauses = 0.0, [], []
        for _ in range(8):
            pauses.append(schedule.pause(now))
            now += pauses[-1]
            probes.append(schedule.take(now))
            schedule.unavailable(probes[-1], now)
        assert pauses == [0.5, 1, 2, 4, 8, 16, MAX_PROBE_S, MAX_PROBE_S]
        assert probes == names(4, 5, 1, 2, 3, 4, 5, 1)

    def test_failures_of_what_was_in_flight_do_not_put_off_the_probe(self, schedule):
        schedule.offer(names(*range(1, 9)))
        for name in take_some(schedule, 8):
            schedule.unavailable(name, 0)
        assert schedule.pause(0) == 0.5

    def test_the_first_success_ends_it_and_all_go_on_in_order(self, schedule):
        self.begin(schedule)
        assert schedule.take(1) == seg(4)
        assert schedule.answered(2.5) == 2.5
        schedule.forget(seg(4))
        assert take_all(schedule, 2.5) == names(1, 2, 3, 5)
        assert schedule.answered(3) is None

    def test_a_probe_that_is_gone_or_refused_does_not_end_it_and_the_next_one_follows(self, schedule):
        self.begin(schedule)
        assert schedule.take(1) == seg(4)
        schedule.forget(seg(4))
        assert schedule.take(1) == seg(5)
        schedule.refused(seg(5), 1)
        assert schedule.take(1) == seg(1)

    def test_a_file_that_is_asked_for_is_the_next_probe(self, schedule):
        self.begin(schedule)
        schedule.want(seg(5))
        assert schedule.take(1) == seg(5)

    def test_one_file_that_the_store_never_takes_does_not_stop_the_others(self, schedule):
        schedule.offer(names(1, *range(2, 40)))
        now, stored, failures = 0.0, set(), 0
        while len(stored) < 38:
            name = schedule.take(now)
            if name is None:
                now += schedule.pause(now)
            elif name == seg(1):
                schedule.unavailable(name, now)
                failures += 1
            else:
                stored.add(name)
                schedule.answered(now)
                schedule.forget(name)
        assert now < 60
        assert failures <= 3

    def test_with_nothing_to_do_it_does_not_spin(self, schedule):
        assert schedule.pause(0) is None
        schedule.offer(names(1))
        schedule.take(0)
        schedule.unavailable(seg(1), 0)
        assert schedule.take(1) == seg(1)
        assert schedule.pause(1) is None
        schedule.forget(seg(1))
        assert schedule.pause(2) is None


EVENTS = ["offer", "want", "take", "stored", "refused", "conflicting", "absent", "unavailable", "gone", "later"]
events = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 5)), max_size=60)


@given(events)
def test_nothing_is_ever_lost_or_pushed_twice_at_once(events):
    """Whatever happens, everything that was offered is taken sooner or later once the store takes it, and one at a time."""
    schedule, flying, waiting, now = Schedule(lambda: 0.5), set(), set(), 0.0
    all_names = [HISTORY, *names(1, 2, 3), *names(4, 5, timeline=2)]
    for event, number in events:
        name = all_names[number]
        if event == "offer":
            schedule.offer([name])
            waiting.add(name)
        elif event == "want":
            schedule.want(name)
            waiting.add(name)
        elif event == "take":
            taken = schedule.take(now)
            if taken is not None:
                assert taken not in flying
                assert taken in waiting
                assert schedule.blocker(taken) is None
                flying.add(taken)
        elif event == "later":
            now += number
        elif event == "absent":
            schedule.absent(name)
        elif name in flying:
            flying.discard(name)
            if event == "refused":
                schedule.refused(name, now)
            elif event == "conflicting" and name != HISTORY:
                schedule.conflicting(name, now)
            elif event == "unavailable":
                schedule.unavailable(name, now)
            else:
                if event == "stored":
                    schedule.answered(now)
                schedule.forget(name)
                waiting.discard(name)
    for _ in range(100):
        while (taken := schedule.take(now)) is not None:
            assert taken not in flying
            flying.add(taken)
        for name in flying:
            schedule.answered(now)
            schedule.forget(name)
            waiting.discard(name)
        flying.clear()
        now += 10
    assert waiting == set()
    assert len(schedule) == 0


class TestMarks:
    @pytest.fixture
    def marks(self, data_directory):
        return Marks(str(data_directory / "pg_wal"))

    @pytest.fixture
    def ready(self, data_directory, marks):
        def make(*ready_names):
            for name in ready_names:
                (data_directory / "pg_wal" / "archive_status" / f"{name}.ready").touch()
                marks.waits(name)

        return make

    def test_what_is_stored_is_marked_but_for_what_the_server_asks_for_next(self, marks, ready):
        ready(*names(1, 2, 3))
        for name in names(3, 2, 1):
            marks.stored(name, 0)
        assert marks.due(0, ()) == names(2, 3)
        assert marks.due(0, ()) == []

    def test_the_first_one_is_marked_when_the_server_does_not_ask(self, marks, ready):
        ready(*names(1, 2))
        marks.stored(seg(1), 0)
        assert marks.due(GRACE_S / 2, ()) == []
        assert marks.due(GRACE_S, ()) == [seg(1)]

    def test_nothing_is_marked_while_somebody_waits_for_it(self, marks, ready):
        ready(*names(1, 2))
        marks.stored(seg(2), 0)
        assert marks.due(100, {seg(2)}) == []
        assert marks.due(100, ()) == [seg(2)]

    def test_what_was_asked_for_is_left_for_the_server_to_mark(self, marks, ready):
        ready(*names(1, 2, 3))
        for name in names(1, 2, 3):
            marks.stored(name, 0)
        marks.asked(seg(1), 8)
        marks.asked(seg(2), 9)
        assert marks.due(10, ()) == [seg(3)]
        assert marks.due(8 + ASKED_GRACE_S, ()) == [seg(1)], "who asked is dead, or it was not the server"

    def test_what_the_server_marked_itself_is_left_alone(self, marks, ready, data_directory):
        ready(*names(1, 2))
        marks.stored(seg(2), 0)
        (data_directory / "pg_wal" / "archive_status" / f"{seg(2)}.ready").unlink()
        assert marks.due(0, ()) == []

    def test_a_history_file_is_the_first(self, marks, ready):
        ready(seg(1), HISTORY)
        for name in (seg(1), HISTORY):
            marks.stored(name, 0)
        assert marks.due(0, ()) == [seg(1)]


class TestStored:
    def test_a_file_that_was_replaced_or_changed_is_not_the_stored_one(self, segment):
        stored, path = Stored(), segment(seg(1))
        stored.add(seg(1), file_identity(path))
        assert stored.holds(seg(1), path)
        os.utime(path, ns=(1, 1))
        assert not stored.holds(seg(1), path)
        stored.add(seg(1), file_identity(path))
        segment(seg(2))
        os.replace(os.path.join(os.path.dirname(path), seg(2)), path)
        assert not stored.holds(seg(1), path)
        os.unlink(path)
        assert not stored.holds(seg(1), path)

    def test_a_bounded_number_is_remembered(self, segment, monkeypatch):
        monkeypatch.setattr(archiver_marks, "MAX_NAMES", 2)
        stored, identity = Stored(), (1, 2, 3, 4)
        for name in names(1, 2, 1, 3):
            stored.add(name, identity)
        assert [name in stored for name in names(1, 2, 3)] == [True, False, True]


class TestDesk:
    def test_a_client_is_told_when_its_file_is_stored(self):
        desk = Desk()
        assert list(desk.wait(seg(1), 10, lambda: desk.tell(seg(1), STORED), lambda: None)) == [STORED]
        assert seg(1) not in desk

    def test_at_the_deadline_it_is_told_the_trouble(self):
        error = StoreUnavailable("the store is away", "The key is hunter2.", "Wait.")
        log.hide("hunter2")
        first, *_, last = Desk().wait(seg(1), 0.01, lambda: None, lambda: error)
        assert first == ("working", "The store is away. The key is ********.")
        assert last == ("failed", "StoreUnavailable", "the store is away", "The key is ********.", "Wait.")

    def test_at_the_deadline_without_trouble_it_is_told_that_it_is_slow(self):
        *_, last = Desk().wait(seg(1), 0.01, lambda: None, lambda: None)
        assert last[:2] == ("failed", "StoreUnavailable")

    def test_while_it_waits_there_are_signs_of_life(self, monkeypatch):
        monkeypatch.setattr("wal_e.operators.archiver_desk.BEAT_S", 0.01)
        desk = Desk()
        replies = desk.wait(seg(1), 60, lambda: None, lambda: StoreUnavailable("the store is away", "Why."))
        assert next(replies) == ("working", "The store is away. Why.")
        assert seg(1) in desk
        replies.close()
        assert seg(1) not in desk


class TestLingering:
    @pytest.fixture
    def moments(self):
        moments = [0.0]

        def sleep(seconds):
            moments.append(moments[-1] + seconds)

        return {"sleep": sleep, "clock": lambda: moments[-1]}, moments

    def test_an_answer_is_held_back_while_more_is_on_its_way(self, moments):
        keywords, passed = moments
        linger(lambda: len(passed) < 5, **keywords)
        assert len(passed) == 5

    def test_but_not_for_long(self, moments):
        keywords, passed = moments
        linger(lambda: True, **keywords)
        assert LINGER_S <= passed[-1] < LINGER_S + 0.1

    def test_with_nothing_else_to_do_it_comes_at_once(self, moments):
        keywords, passed = moments
        linger(lambda: False, **keywords)
        assert passed == [0.0]

    def test_there_is_something_to_do_while_files_are_ready_or_being_pushed_not_when_they_are_put_off(self, schedule):
        assert not schedule.is_busy()
        schedule.offer(names(1))
        assert schedule.is_busy()
        schedule.take(0)
        assert schedule.is_busy()
        schedule.refused(seg(1), 0)
        assert not schedule.is_busy()


class TestReport:
    @pytest.fixture
    def report(self, tmp_path):
        log.configure(Settings({"WALE_LOG_DESTINATION": "stderr"}), "info")
        return Report("/data", 3, str(tmp_path / "metrics.prom"))

    def test_an_error_of_a_file_is_logged_once_and_again_when_it_is_another(self, report, capsys):
        for message in ("one", "one", "two", "one"):
            report.once(seg(1), StoreUnavailable(message))
        assert [record.message for record in records(capsys.readouterr().err)] == ["one", "two", "one"]

    def test_what_was_said_of_a_file_that_is_gone_is_forgotten(self, report, capsys):
        report.once(seg(1), StoreUnavailable("one"))
        report.once("place", StoreUnavailable("two"))
        report.counted(Backlog((), 0))
        report.once(seg(1), StoreUnavailable("one"))
        report.once("place", StoreUnavailable("two"))
        assert [record.message for record in records(capsys.readouterr().err)] == ["one", "two", "one"]

    def test_the_alarm_is_told_when_it_is_raised_and_when_it_ends(self, report, capsys):
        for number in (3, 4, 5, 9, 3, 2, 4):
            report.counted(Backlog(tuple(names(*range(number))), 1))
        assert [record.error for record in records(capsys.readouterr().err)] == ["BacklogAlarm", "", "BacklogAlarm"]

    def test_an_outage_is_told_once_a_minute(self, report, capsys):
        error = StoreUnavailable("the store is away", "Why.")
        report.went_away(error, 0)
        for now in range(0, 181, 5):
            report.remind(error, now, now)
        report.is_back(181)
        told = records(capsys.readouterr().err)
        assert REMIND_S == 60
        assert [record.level for record in told] == ["WARNING"] * 5
        assert "2 min" in told[2].message
        assert "3 min" in told[-1].message

    def test_metrics_are_written_as_often_as_promised(self, report, tmp_path):
        path = tmp_path / "metrics.prom"
        report.publish(0)
        assert "wale_archiver_pushed_files_total" in path.read_text()
        report.stored(seg(1), 10)
        report.dropped()
        report.publish(METRICS_S - 1)
        assert 'pushed_bytes_total{pgdata="/data"} 0' in path.read_text()
        report.publish(METRICS_S)
        assert 'pushed_bytes_total{pgdata="/data"} 10' in path.read_text()
        assert 'dropped_files_total{pgdata="/data"} 1' in path.read_text()

    def test_metrics_that_cannot_be_written_are_told_once(self, capsys):
        log.configure(Settings({"WALE_LOG_DESTINATION": "stderr"}), "info")
        report = Report("/data", 3, "/nowhere/metrics.prom")
        report.publish(0)
        report.publish(METRICS_S)
        assert [record.error for record in records(capsys.readouterr().err)] == ["LocalFileError"]
