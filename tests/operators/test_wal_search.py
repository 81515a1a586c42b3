"""Looking for commits, moments, transactions and restore points in a store in memory: what is found, and what is read for it."""

import re
from datetime import timedelta

import build_wal
import pytest
from build_records import HEAP, MOMENT, SIZE, Builder
from fix_memory import open_memory
from hypothesis import given
from hypothesis import strategies as st

from wal_e.archive import layout
from wal_e.archive.identity import claim_identity
from wal_e.archive.recovery_window import Way
from wal_e.archive.wal_reach import Stretch
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import BlobNotFound, DamageError, StoreUnavailable
from wal_e.operators import wal_search
from wal_e.operators.wal_search import ending, find_restore_point, find_xid, first_after, last_commit, last_record, latest_before
from wal_e.pipeline.lanes import Cooperative
from wal_e.postgres.wal import Lsn, segment_name
from wal_e.retry import Policy

FIRST = 7
SECOND = timedelta(seconds=1)


class Store(MemoryStore):
    """A memory store that tells which keys were read, and fails so many times."""

    def __init__(self):
        super().__init__()
        self.reads = []
        self.failures = 0

    def get(self, key, *, start=0, length=None):
        self.reads.append(key)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the network is away")
        return super().get(key, start=start, length=length)


@pytest.fixture
def archive():
    store = Store()
    claim_identity(store, build_wal.SYSTEM_IDENTIFIER, ".lzo")
    return open_memory(store, Cooperative(wal_search.LANES))


@pytest.fixture
def built():
    return Builder(FIRST * SIZE)


def key(number, timeline=1):
    return layout.wal_key(segment_name(timeline, number * SIZE, SIZE), ".lzo")


def stored(archive, built):
    """Store what was built; return the way through it, with nothing read yet."""
    for number, segment in enumerate(built.segments(), built.start // SIZE):
        archive.store.put(key(number, built.timeline), list(archive.pipeline.encode(lambda stream, data=segment: stream.write(data))))
    archive.wal_suffixes()
    archive.store._store.reads.clear()
    return Way(SIZE, (Stretch(built.timeline, built.start // SIZE, built.start // SIZE + len(built.segments()) - 1),))


def reads(archive):
    return sorted({int(name[-12:-4], 16) for name in archive.store._store.reads})


def hourly(built, hours, *, per_segment=3):
    """A segment for each hour, with some commits a second apart; transactions are counted from 1."""
    xid = 0
    for hour in range(hours):
        for number in range(per_segment):
            xid += 1
            built.commit(xid, MOMENT + timedelta(hours=hour, seconds=number))
        built.next_segment()


def test_the_last_commit_costs_the_last_segment_and_no_other(archive, built):
    hourly(built, 20)
    way = stored(archive, built)
    found = last_commit(archive, way)
    assert (found.xid, found.time) == (60, MOMENT + timedelta(hours=19, seconds=2))
    assert reads(archive) == [FIRST + 19]


def test_an_idle_end_is_looked_through_backwards_as_far_as_is_asked(archive, built):
    hourly(built, 2)
    for number in range(10):
        built.checkpoint(MOMENT + timedelta(hours=9, seconds=number))
        built.next_segment()
    way = stored(archive, built)
    assert last_commit(archive, way, 5) is None
    assert reads(archive) == list(range(FIRST + 7, FIRST + 12))
    found = ending(archive, way)
    assert (found.commit.xid, found.written) == (6, (MOMENT + timedelta(hours=9, seconds=9)).replace(microsecond=0))
    assert (found.begin, found.end) == (built.previous, (FIRST + 12) * SIZE)
    assert last_record(archive, way) == built.previous


def test_the_end_is_where_the_last_whole_record_ends_and_not_where_the_segment_does(archive, built):
    built.commit(1)
    lsn = built.commit(2)
    end = built.start + len(built.data)
    built.add(HEAP, 0, bytes(2 * SIZE))
    way = stored(archive, built)
    short = Way(SIZE, (Stretch(1, FIRST, FIRST + 1),))
    assert (ending(archive, short).begin, ending(archive, short).end) == (lsn, end)
    assert ending(archive, short).commit.xid == 2
    assert ending(archive, way).commit.xid == 2
    assert last_record(archive, Way(SIZE, ())) is None


@pytest.mark.parametrize("left", [8, 24, 32])
def test_a_commit_over_two_segments_is_found_by_every_question(archive, built, left):
    built.commit(1)
    built.fill(left)
    built.commit(2, MOMENT + SECOND)
    built.add(HEAP, 0, bytes(SIZE))
    way = stored(archive, built)
    assert last_commit(archive, way).xid == 2
    assert find_xid(archive, way, 2).time == MOMENT + SECOND
    assert first_after(archive, way, MOMENT + SECOND / 2).xid == 2
    assert last_commit(archive, Way(SIZE, (Stretch(1, FIRST, FIRST),))).xid == 1, "only half of it is there"


def test_a_moment_is_found_by_halving(archive, built):
    hourly(built, 64)
    way = stored(archive, built)
    found = first_after(archive, way, MOMENT + timedelta(hours=40, seconds=1))
    assert found.xid == 40 * 3 + 3
    assert len(reads(archive)) <= 14, reads(archive)
    assert first_after(archive, way, MOMENT + timedelta(hours=40, seconds=2)).xid == 41 * 3 + 1
    assert first_after(archive, way, MOMENT - SECOND).xid == 1
    assert first_after(archive, way, MOMENT + timedelta(hours=63, seconds=2)) is None, "strictly later"
    assert first_after(archive, way, MOMENT + timedelta(hours=63, seconds=2, microseconds=-1)).xid == 192


def test_nothing_before_a_position_is_found(archive, built):
    hourly(built, 4)
    lsn = built.commit(1000, MOMENT)
    built.restore_point("x")
    way = stored(archive, built)
    assert first_after(archive, way, MOMENT - SECOND, Lsn(lsn)).xid == 1000
    assert find_xid(archive, way, 7, Lsn(lsn)) is None
    assert reads(archive) == [FIRST + 4]
    assert find_restore_point(archive, way, "x", Lsn(built.at)) is None


def test_a_transaction_and_a_restore_point_are_found_and_the_first_of_its_name(archive, built):
    hourly(built, 3)
    first = built.restore_point("here")
    built.next_segment()
    built.restore_point("here")
    built.restore_point("there", MOMENT + SECOND)
    way = stored(archive, built)
    assert find_restore_point(archive, way, "here").lsn == first
    there = find_restore_point(archive, way, "there")
    assert (there.kind, there.time, there.xid) == ("restore point", MOMENT + SECOND, 0)
    assert find_xid(archive, way, 5).time == MOMENT + timedelta(hours=1, seconds=1)
    assert find_xid(archive, way, 5000) is None
    assert find_xid(archive, way, 0) is None
    assert find_restore_point(archive, way, "") is None


def test_the_latest_commit_before_a_position_is_by_time_and_may_lie_in_an_earlier_segment(archive, built):
    hourly(built, 2)
    built.commit(98, MOMENT + timedelta(hours=2, seconds=5))
    built.commit(99, MOMENT + timedelta(hours=2))
    built.next_segment()
    built.checkpoint(MOMENT + timedelta(hours=5))
    lsn = built.at
    built.commit(100, MOMENT + timedelta(hours=9))
    way = stored(archive, built)
    assert latest_before(archive, way, Lsn(lsn)) == MOMENT + timedelta(hours=2, seconds=5)
    assert reads(archive) == [FIRST + 2, FIRST + 3]
    assert latest_before(archive, way, Lsn(lsn + 1)) == MOMENT + timedelta(hours=9)
    assert latest_before(archive, way, Lsn(built.start + 40)) is None


def test_a_way_over_timelines_reads_each_segment_of_the_timeline_that_it_names(archive, built):
    hourly(built, 3)
    stored(archive, built)
    other = Builder((FIRST + 3) * SIZE, timeline=2)
    other.previous = built.previous
    other.commit(500, MOMENT + timedelta(hours=3))
    stored(archive, other)
    way = Way(SIZE, (Stretch(1, FIRST, FIRST + 2), Stretch(2, FIRST + 3, FIRST + 3)))
    assert [way.name(position)[:8] for position in range(way.segments)] == ["00000001"] * 3 + ["00000002"]
    assert find_xid(archive, way, 500).time == first_after(archive, way, MOMENT + timedelta(hours=2, seconds=2)).time
    assert last_commit(archive, way).xid == 500


def test_wal_that_ends_in_the_middle_of_a_way_is_damage_that_names_the_segment_and_at_its_end_is_not(archive, built):
    hourly(built, 2)
    at = len(built.data)
    built.commit(7, MOMENT + timedelta(hours=2))
    built.next_segment()
    built.commit(8, MOMENT + timedelta(hours=3))
    built.data[at + 40 + 30] ^= 1
    way = stored(archive, built)
    with pytest.raises(DamageError, match=segment_name(1, (FIRST + 2) * SIZE, SIZE)):
        find_xid(archive, way, 8)
    assert find_xid(archive, way, 5).xid == 5, "it lies before the damage"
    assert last_commit(archive, Way(SIZE, (Stretch(1, FIRST, FIRST + 2),))).xid == 6


def test_what_is_no_segment_is_damage_that_names_the_key_and_what_is_away_is_told(archive, built):
    hourly(built, 3)
    way = stored(archive, built)
    archive.store.put(key(FIRST + 2), list(archive.pipeline.encode(lambda stream: stream.write(b"nonsense"))))
    with pytest.raises(DamageError, match=re.escape(key(FIRST + 2))):
        last_commit(archive, way)
    archive.store.delete([key(FIRST + 2)])
    with pytest.raises(BlobNotFound, match=segment_name(1, (FIRST + 2) * SIZE, SIZE)):
        last_commit(archive, way)


def test_an_attempt_that_failed_leaves_nothing_behind(archive, built, monkeypatch):
    built.commit(1)
    built.fill(24)
    built.commit(2)
    way = stored(archive, built)
    monkeypatch.setattr(archive, "fetch_policy", Policy(5, 5, 0.001))
    read = archive.pipeline.decode
    broken = []

    def break_once(coded, name, consume):
        read(coded, name, consume)
        if name not in broken:
            broken.append(name)
            raise StoreUnavailable("the connection broke at the very end")

    monkeypatch.setattr(archive.pipeline, "decode", break_once)
    assert find_xid(archive, way, 2).xid == 2
    assert broken == [key(FIRST), key(FIRST + 1)] or sorted(broken) == [key(FIRST), key(FIRST + 1)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 40), st.booleans()), min_size=1, max_size=25), st.integers(-3, 400))
def test_the_first_commit_after_a_moment_is_that_of_a_plain_search_with_times_out_of_order(steps, second):
    """A commit stands up to nine seconds behind a later one, with segments of any number of commits."""
    built, clock, times = Builder(FIRST * SIZE), 0, []
    for number, (late, step, switches) in enumerate(steps, 1):
        clock += step
        times.append((number, MOMENT + timedelta(seconds=clock - late)))
        built.commit(*times[-1])
        if switches:
            built.next_segment()
    store = Store()
    claim_identity(store, build_wal.SYSTEM_IDENTIFIER, ".raw")
    archive = open_memory(store)
    for number, segment in enumerate(built.segments(), FIRST):
        store.put(key(number).replace(".lzo", ".raw"), [segment])
    way = Way(SIZE, (Stretch(1, FIRST, FIRST + len(built.segments()) - 1),))
    moment = MOMENT + timedelta(seconds=second)
    expected = next((xid for xid, time in times if time > moment), None)
    found = first_after(archive, way, moment)
    assert (found.xid if found else None) == expected


def test_for_the_rest_of_a_commit_the_next_segment_is_read_and_not_what_goes_on_behind_that(archive, built, monkeypatch):
    for xid in range(1, 5):
        built.fill(24)
        built.commit(xid)
    way = stored(archive, built)
    monkeypatch.setattr(wal_search, "LANES", 1)
    assert find_xid(archive, way, 1).time == MOMENT + timedelta(microseconds=1)
    assert reads(archive) == [FIRST, FIRST + 1]


def test_a_commit_far_before_others_that_are_earlier_is_the_first_one_after_a_moment(archive, built):
    for xid, second in enumerate([0, 109, 101, 102, 103, 104, 105, 120, 121], 1):
        built.commit(xid, MOMENT + timedelta(seconds=second))
        built.next_segment()
    way = stored(archive, built)
    assert first_after(archive, way, MOMENT + timedelta(seconds=106)).xid == 2
