"""Every page of a segment, as it streams by."""

import io

import build_wal
import pytest
from build_pages import PAGE, SIZE, build_pages, page_header, replaced
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import WalRefused
from wal_e.postgres.wal import Lsn
from wal_e.postgres.wal_pages import Expected, check_stream

SEG = "000000020000000300000007"
START = (3 << 32) + 7 * SIZE
OURS = (5, build_wal.SYSTEM_IDENTIFIER)


def check(data, name=SEG, system_identifiers=OURS, up_to=None):
    check_stream(io.BytesIO(data), Expected(name, system_identifiers, up_to))


@pytest.mark.parametrize("switch", ["zeros", "headers"])
@pytest.mark.parametrize("used", [1, 2, 77, SIZE // PAGE])
def test_a_segment_is_good_full_and_after_a_switch_of_every_version(used, switch):
    check(build_pages(SEG, used=used, switch=switch))


def test_any_cluster_is_good_where_the_prefix_does_not_say_whose_it_is():
    check(build_pages(SEG, system_identifier=77), system_identifiers=())
    with pytest.raises(WalRefused, match="comes from another cluster"):
        check(build_pages(SEG, system_identifier=77))


def test_a_promoted_server_goes_on_in_a_copy_of_the_old_timelines_segment():
    old = build_pages("000000010000000300000007")
    check(old[: 20 * PAGE] + build_pages(SEG)[20 * PAGE :])
    with pytest.raises(WalRefused, match="timeline 1, after a page of 2"):
        check(build_pages(SEG)[: 20 * PAGE] + old[20 * PAGE : 30 * PAGE] + build_pages(SEG)[30 * PAGE :])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a WAL segment"),
        (b"\0" * SIZE, "not a WAL segment"),
        (build_pages(SEG)[:100], "wrong size"),
        (build_pages(SEG)[:-PAGE], "wrong size"),
        (build_pages(SEG) + b"\0" * PAGE, "wrong"),
        (build_pages("000000020000000300000008"), "another segment's WAL"),
        (build_pages("000000030000000300000007"), "later timeline"),
    ],
)
def test_what_is_not_this_segment_is_refused_by_its_header_or_its_size(data, words):
    with pytest.raises(WalRefused, match=words) as caught:
        check(data)
    assert SEG in caught.value.message


@pytest.mark.parametrize("number", [1, 31, 32, 127])
def test_a_page_of_another_segment_is_found_wherever_it_is(number):
    other = build_pages("000000020000000300000006")[number * PAGE : (number + 1) * PAGE]
    with pytest.raises(WalRefused, match="wrong page at") as caught:
        check(replaced(build_pages(SEG), number * PAGE, other))
    assert str(Lsn(START + number * PAGE)) in caught.value.message
    assert str(Lsn(START - SIZE + number * PAGE)) in caught.value.detail


def test_a_page_of_another_version_or_of_a_later_timeline_is_found():
    for header, words in ((page_header(START + PAGE, 2, magic=0xD111), "0xD111"), (page_header(START + PAGE, 3), "timeline 3")):
        with pytest.raises(WalRefused, match="wrong page") as caught:
            check(replaced(build_pages(SEG), PAGE, header))
        assert words in caught.value.detail


def test_zeros_in_the_middle_of_a_segment_are_found():
    with pytest.raises(WalRefused, match="wrong page"):
        check(replaced(build_pages(SEG), 50 * PAGE, b"\0" * PAGE))
    with pytest.raises(WalRefused, match="wrong page"):
        check(replaced(build_pages(SEG, used=40), SIZE - 1, b"x"))
    with pytest.raises(WalRefused, match="wrong page"):
        check(build_pages(SEG, used=40)[: 64 * PAGE] + build_pages(SEG)[64 * PAGE :])


def test_behind_the_position_at_which_a_timeline_was_left_nothing_is_judged():
    stale = replaced(build_pages(SEG), 20 * PAGE, build_pages("000000020000000300000001")[20 * PAGE :])
    with pytest.raises(WalRefused):
        check(stale)
    check(stale, up_to=Lsn(START + 20 * PAGE))
    check(stale, up_to=Lsn(START))
    check(stale, up_to=Lsn(0))
    with pytest.raises(WalRefused):
        check(stale, up_to=Lsn(START + 20 * PAGE + 100))


class Dribble(io.RawIOBase):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data, sizes):
        self._data, self._sizes, self._at = data, sizes, 0

    def readinto(self, buffer):
        size = min(len(buffer), self._sizes[self._at % len(self._sizes)], len(self._data))
        buffer[:size], self._data, self._at = self._data[:size], self._data[size:], self._at + 1
        return size


@given(st.lists(st.integers(500, 100_000), min_size=1, max_size=9))
def test_pages_are_found_however_the_stream_is_cut(sizes):
    check_stream(Dribble(build_pages(SEG, used=77), sizes), Expected(SEG, OURS))
