"""Lanes, without processes."""

import gevent
import pytest

from wal_e.pipeline import pool


def test_every_item_has_one_outcome():
    outcomes = list(pool.run(lambda item: item * 2, range(20), 3))
    assert sorted((outcome.item, outcome.value()) for outcome in outcomes) == [(item, item * 2) for item in range(20)]


def test_an_error_is_the_outcome_of_its_item_and_of_no_other():
    def work(item):
        if item == 3:
            raise LookupError(item)
        return item

    outcomes = {outcome.item: outcome for outcome in pool.run(work, range(6), 2)}
    with pytest.raises(LookupError):
        outcomes.pop(3).value()
    assert all(outcome.value() == item for item, outcome in outcomes.items())


def test_never_more_than_so_many_at_once():
    working = highest = 0

    def work(_):
        nonlocal working, highest
        working += 1
        highest = max(highest, working)
        gevent.sleep(0.001)
        working -= 1

    list(pool.run(work, range(30), 4))
    assert highest == 4


def test_items_are_taken_as_lanes_get_free():
    taken = 0

    def items():
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    lanes = pool.run(lambda item: gevent.sleep(0.001), items(), 4)
    next(lanes)
    lanes.close()
    assert taken < 20


def test_closing_cancels_the_lanes_and_lets_each_clean_up():
    cleaned = []

    def work(item):
        try:
            if item:
                gevent.sleep(100)
        finally:
            cleaned.append(item)

    lanes = pool.run(work, range(4), 4)
    next(lanes)
    lanes.close()
    assert sorted(cleaned) == [0, 1, 2, 3]


def test_an_error_while_taking_items_is_raised():
    def items():
        yield 1
        raise LookupError("the walk")

    with pytest.raises(LookupError, match="the walk"):
        list(pool.run(lambda item: item, items(), 3))


def test_the_tick_comes_while_lanes_work_and_while_outcomes_pour_in():
    ticks = []
    list(pool.run(lambda item: gevent.sleep(0.002), range(60), 2, pool.Tick(0.01, lambda: ticks.append(1))))
    assert ticks


def test_an_error_in_the_tick_cancels_everything():
    def fail():
        raise LookupError("session lost")

    with pytest.raises(LookupError, match="session lost"):
        list(pool.run(lambda item: gevent.sleep(100), range(4), 4, pool.Tick(0.01, fail)))
