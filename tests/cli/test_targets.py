"""The options that name a point to restore to."""

import pytest

from wal_e.archive.restore_plan import IMMEDIATE, Goal
from wal_e.cli.targets import goal_of, timeline_of
from wal_e.errors import UsageError


def given(**options):
    return {**{f"target_{name}": None for name in ("time", "lsn", "xid", "name")}, "target_immediate": False, "inclusive": True, **options}


@pytest.mark.parametrize(
    ("options", "goal"),
    [
        ({}, Goal()),
        ({"target_immediate": True}, Goal(IMMEDIATE)),
        ({"target_name": "x"}, Goal("name", "x")),
        ({"target_xid": "7", "inclusive": False}, Goal("xid", "7", False, xid=7)),
        ({"target_lsn": "0/a"}, Goal("lsn", "0/A", True, lsn=10)),
    ],
)
def test_an_option_names_the_goal_and_is_taken_out_of_what_was_given(options, goal):
    everything = given(**options)
    assert goal_of(everything) == goal
    assert everything == {}


def test_a_time_is_shown_in_utc():
    assert goal_of(given(target_time="2026-03-01 13:00:00+01")).value == "2026-03-01 12:00:00+00"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_immediate": True, "target_name": "x"}, "--target-name and --target-immediate exclude each other"),
        ({"inclusive": False}, "--exclusive goes with"),
        ({"inclusive": False, "target_name": "x"}, "--exclusive goes with"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        goal_of(given(**options))


def test_a_timeline_is_a_number_latest_or_current():
    assert [timeline_of({"target_timeline": text}) for text in ("latest", "current", "12")] == ["latest", "current", "12"]
    for text in ("0", "-1", "0x2", "newest", str(2**32)):
        with pytest.raises(UsageError, match="not a timeline"):
            timeline_of({"target_timeline": text})
