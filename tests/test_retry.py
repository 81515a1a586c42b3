import logging

import pytest

from wal_e.errors import BlobNotFound, DamageError, StoreForbidden, StoreUnavailable
from wal_e.retry import Policy, fraction, once_more, retrying


class Time:
    """A clock that only sleep moves, and what was noticed before each sleep."""

    def __init__(self):
        self.now = 1000.0
        self.sleeps = []
        self.notices = []

    def clock(self):
        return self.now

    def sleep(self, seconds):
        assert len(self.notices) == len(self.sleeps) + 1
        self.sleeps.append(seconds)
        self.now += seconds

    def notice(self, error, delay_s):
        self.notices.append((error, delay_s))


class Failing:
    """A call that takes some time and fails so many times before it succeeds."""

    def __init__(self, time, times, error=StoreUnavailable, takes_s=0.0, wait_s=None):
        self.time = time
        self.left = times
        self.calls = 0
        self.error = error
        self.takes_s = takes_s
        self.wait_s = wait_s

    def __call__(self):
        self.calls += 1
        self.time.now += self.takes_s
        if self.left:
            self.left -= 1
            error = self.error(f"failure {self.calls}")
            error.wait_s = self.wait_s
            raise error
        return f"result of call {self.calls}"


@pytest.fixture
def time():
    return Time()


def run(time, call, policy, jitter=lambda: 1.0):
    return retrying(call, policy, sleep=time.sleep, clock=time.clock, jitter=jitter, notice=time.notice)


def test_a_success_is_returned_without_a_wait(time):
    assert run(time, Failing(time, 0), Policy(5, 60)) == "result of call 1"
    assert time.notices == time.sleeps == []


def test_transient_errors_are_tried_again_until_success(time):
    assert run(time, Failing(time, 3), Policy(10, 60)) == "result of call 4"


def test_delays_double_up_to_the_longest(time):
    run(time, Failing(time, 8), Policy(100, 1000, first_delay_s=0.5, max_delay_s=10))
    assert time.sleeps == [0.5, 1, 2, 4, 8, 10, 10, 10]


def test_the_longest_delay_bounds_the_first_one_too(time):
    run(time, Failing(time, 2), Policy(100, 1000, first_delay_s=5, max_delay_s=3))
    assert time.sleeps == [3, 3]


def test_a_delay_is_the_jitter_times_the_ceiling(time):
    jitters = iter([0.0, 0.5, 0.25])
    run(time, Failing(time, 3), Policy(100, 1000, first_delay_s=1), jitter=lambda: next(jitters))
    assert time.sleeps == [0, 1, 1]


@pytest.mark.parametrize("error", [BlobNotFound, StoreForbidden, ValueError, KeyboardInterrupt])
def test_other_errors_are_raised_at_once(time, error):
    call = Failing(time, 1, error)
    with pytest.raises(error):
        run(time, call, Policy(10, 60))
    assert call.calls == 1
    assert time.notices == []


def test_a_lasting_error_after_a_transient_one_is_raised(time):
    errors = iter([StoreUnavailable("first"), BlobNotFound("then")])

    def call():
        raise next(errors)

    with pytest.raises(BlobNotFound):
        run(time, call, Policy(10, 60))


def test_the_last_error_is_raised_when_the_attempts_are_used_up(time):
    call = Failing(time, 99)
    with pytest.raises(StoreUnavailable, match="failure 4"):
        run(time, call, Policy(4, 1000))
    assert call.calls == 4
    assert len(time.sleeps) == 3


@pytest.mark.parametrize("attempts", [1, 0])
def test_there_is_always_one_attempt(time, attempts):
    call = Failing(time, 99)
    with pytest.raises(StoreUnavailable, match="failure 1"):
        run(time, call, Policy(attempts, 1000))
    assert time.notices == []


def test_the_last_attempt_starts_at_the_deadline(time):
    call = Failing(time, 10**9)
    with pytest.raises(StoreUnavailable):
        run(time, call, Policy(10**9, 60))
    assert sum(time.sleeps) == pytest.approx(60)
    assert time.now == pytest.approx(1060)


def test_slow_attempts_use_up_the_deadline(time):
    call = Failing(time, 99, takes_s=25.0)
    with pytest.raises(StoreUnavailable, match="failure 3"):
        run(time, call, Policy(100, 60))


def test_each_wait_is_noticed_before_it_begins(time):
    run(time, Failing(time, 3), Policy(100, 60))
    assert [str(error) for error, _ in time.notices] == ["failure 1", "failure 2", "failure 3"]
    assert [delay for _, delay in time.notices] == time.sleeps


def test_a_thousand_attempts_do_not_overflow(time):
    run(time, Failing(time, 5000), Policy(10**6, 10**6))
    assert time.sleeps[-1] == 20


def test_the_default_notice_is_a_log_record(time, monkeypatch):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    monkeypatch.setattr("wal_e.log._threshold", logging.INFO)
    logger = logging.getLogger("wal_e.retry")
    logger.addHandler(handler)
    try:
        retrying(Failing(time, 1), Policy(2, 60), sleep=lambda _: None)
    finally:
        logger.removeHandler(handler)
    assert "failure 1; trying again in 0." in records[0].getMessage()
    assert records[0].levelname == "WARNING"


def test_fractions_are_from_zero_to_one_and_differ():
    drawn = {fraction() for _ in range(50)}
    assert all(0 <= one < 1 for one in drawn)
    assert len(drawn) > 40


def test_a_wait_that_the_store_asks_for_is_kept(time):
    run(time, Failing(time, 2, wait_s=7), Policy(10, 60))
    assert time.sleeps == [7, 7]


def test_after_a_stale_connection_the_second_attempt_comes_at_once_and_no_other(time):
    run(time, Failing(time, 3, wait_s=0), Policy(10, 60, first_delay_s=0.5))
    assert time.sleeps[0] == 0
    assert all(sleep > 0 for sleep in time.sleeps[1:])


def test_a_wait_that_the_store_asks_for_is_cut_at_the_deadline(time):
    run(time, Failing(time, 1, wait_s=300), Policy(10, 60))
    assert time.sleeps == [60]


def test_what_arrives_damaged_is_fetched_once_more_and_no_more(time):
    assert once_more(Failing(time, 1, DamageError)) == "result of call 2"
    call = Failing(time, 2, DamageError)
    with pytest.raises(DamageError, match="failure 2"):
        once_more(call)
    assert call.calls == 2


def test_nothing_is_waited_for_once_it_has_no_sense():
    time, over = Time(), iter([False, False, True])
    failing = Failing(time, 9)
    with pytest.raises(StoreUnavailable):
        retrying(failing, Policy(9, 100, is_over=lambda: next(over)), sleep=time.sleep, clock=time.clock, notice=time.notice)
    assert failing.calls == 3
    assert len(time.sleeps) == 2
