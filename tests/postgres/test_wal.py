from __future__ import annotations

import gzip
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from build_wal import SYSTEM_IDENTIFIER, build_header, build_segment
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import WalRefused
from wal_e.postgres.wal import (
    MAX_SEGMENT_SIZE,
    MIN_SEGMENT_SIZE,
    Lsn,
    Switch,
    check_segment,
    next_segment,
    parse_history,
    parse_wal_header,
    segment_name,
    segment_start,
    segment_timeline,
    segments_needed,
    wal_kind,
)

GOLDEN = Path(__file__).parent / "golden"
MIB = 1024 * 1024
SEGMENT = "00000001000000000000007F"

lsns = st.integers(0, 2**64 - 1).map(Lsn)
sizes = st.integers(20, 30).map(lambda power: 2**power)
timelines = st.integers(1, 2**32 - 1)


def golden_page(pattern: str) -> tuple[str, bytes]:
    (path,) = GOLDEN.glob(f"page-{pattern}.gz")
    return path.stem.rsplit("-", 1)[1], gzip.decompress(path.read_bytes())


# positions


@pytest.mark.parametrize(("text", "number"), [("0/A000028", 0xA000028), ("0/0", 0), ("1/0", 2**32), ("FFFFFFFF/FFFFFFFF", 2**64 - 1)])
def test_an_lsn_reads_and_prints_as_postgresql_does(text, number):
    assert Lsn.parse(text) == number
    assert str(Lsn(number)) == text
    assert f"at {Lsn(number)}" == f"at {text}"
    assert repr(Lsn(number)) == f"Lsn('{text}')"


def test_an_lsn_may_be_written_in_lower_case_or_with_leading_zeros():
    assert Lsn.parse("a/0000b") == Lsn.parse("A/B")


@given(lsns)
def test_every_lsn_survives_printing_and_reading(lsn):
    assert Lsn.parse(str(lsn)) == lsn


@pytest.mark.parametrize("text", ["", "/", "0", "0/", "/0", "0/0/0", "0x1/0", "1_0/0", " 1/0", "-1/0", "G/0", "123456789/0", "0/123456789", "0/0\n", "١/0"])
def test_what_is_no_lsn_is_refused(text):
    with pytest.raises(ValueError, match="not an LSN"):
        Lsn.parse(text)


# names


@pytest.mark.parametrize(
    ("timeline", "lsn", "size_mib", "name"),
    [
        (1, "0/7F000028", 16, "00000001000000000000007F"),
        (10, "0/3000028", 16, "0000000A0000000000000003"),
        (1, "1/0", 16, "000000010000000100000000"),
        (1, "0/FFFFFFFF", 16, "0000000100000000000000FF"),
        (1, "0/FFFFFFFF", 1, "000000010000000000000FFF"),
        (1, "0/FFFFFFFF", 64, "00000001000000000000003F"),
        (1, "0/FFFFFFFF", 1024, "000000010000000000000003"),
        (0xFFFFFFFF, "FFFFFFFF/FFFFFFFF", 16, "FFFFFFFFFFFFFFFF000000FF"),
    ],
)
def test_a_segment_is_named_after_the_byte_it_contains(timeline, lsn, size_mib, name):
    assert segment_name(timeline, Lsn.parse(lsn), size_mib * MIB) == name


@given(timelines, lsns, sizes)
def test_a_name_gives_back_its_timeline_and_the_segment_around_the_byte(timeline, lsn, size):
    name = segment_name(timeline, lsn, size)
    assert wal_kind(name) == "segment"
    assert segment_timeline(name) == timeline
    start = segment_start(name, size)
    assert start <= lsn < start + size
    assert start % size == 0
    assert isinstance(start, Lsn)


@pytest.mark.parametrize(("size_mib", "low"), [(1, "00000FFF"), (16, "000000FF"), (64, "0000003F"), (1024, "00000003")])
def test_the_last_part_of_a_name_ends_where_the_segment_size_says(size_mib, low):
    assert next_segment("0000000200000000" + low, size_mib * MIB) == "000000020000000100000000"


@given(timelines, st.integers(0, 2**64 - 1 - MAX_SEGMENT_SIZE).map(Lsn), sizes)
def test_the_next_segment_begins_where_this_one_ends(timeline, lsn, size):
    name = segment_name(timeline, lsn, size)
    following = next_segment(name, size)
    assert segment_start(following, size) == segment_start(name, size) + size
    assert segment_timeline(following) == timeline
    assert following > name


@pytest.mark.parametrize("function", [segment_start, next_segment])
def test_a_name_that_the_segment_size_rules_out_is_refused(function):
    with pytest.raises(WalRefused, match="cannot be a segment of 67108864 bytes"):
        function("000000010000000000000040", 64 * MIB)


@pytest.mark.parametrize("name", ["", "00000002.history", SEGMENT + ".partial", SEGMENT.lower(), SEGMENT + "0", "../" + SEGMENT])
def test_only_a_whole_segment_name_has_a_timeline_and_a_start(name):
    with pytest.raises(WalRefused, match="is not the name of a WAL segment"):
        segment_timeline(name)
    with pytest.raises(WalRefused, match="is not the name of a WAL segment"):
        segment_start(name, 16 * MIB)


@pytest.mark.parametrize(
    ("start", "stop", "last"),
    [
        ("0/2000028", "0/2000100", "02"),
        ("0/2000028", "0/3000000", "02"),
        ("0/2000028", "0/3000001", "03"),
        ("0/2000000", "0/2000000", "02"),
        ("0/2FFFFFF", "0/5000000", "04"),
    ],
)
def test_a_stop_on_a_boundary_does_not_need_the_segment_that_begins_there(start, stop, last):
    needed = list(segments_needed(7, Lsn.parse(start), Lsn.parse(stop), 16 * MIB))
    assert needed[0] == "000000070000000000000002"
    assert needed[-1] == "0000000700000000000000" + last
    assert len(needed) == int(last) - 1


def test_the_segments_needed_run_over_the_end_of_a_name_part():
    needed = segments_needed(1, Lsn.parse("0/FFFFFF00"), Lsn.parse("1/1"), 16 * MIB)
    assert list(needed) == ["0000000100000000000000FF", "000000010000000100000000"]


@given(timelines, lsns, st.integers(1, 40), sizes)
def test_the_segments_needed_contain_every_byte_and_no_more(timeline, start, count, size):
    stop = Lsn(min(start + (count - 1) * size + 1, 2**64 - 1))
    needed = list(segments_needed(timeline, start, stop, size))
    assert segment_start(needed[0], size) <= start
    assert segment_start(needed[-1], size) < max(stop, start + 1) <= segment_start(needed[-1], size) + size
    assert all(next_segment(before, size) == after for before, after in pairwise(needed))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (SEGMENT, "segment"),
        ("000000010000000000000FFF", "segment"),
        (SEGMENT + ".partial", "partial"),
        ("00000002.history", "history"),
        (SEGMENT + ".00000028.backup", "backup"),
    ],
)
def test_the_four_kinds_of_archived_files_are_told_apart(name, kind):
    assert wal_kind(name) == kind


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        ".history",
        "RECOVERYXLOG",
        "archive_status",
        SEGMENT[:-1],
        SEGMENT + "0",
        SEGMENT + "\n",
        SEGMENT + ".",
        SEGMENT + ".lzo",
        SEGMENT + ".partial.lzo",
        SEGMENT + ".history",
        SEGMENT + ".0000028.backup",
        SEGMENT + ".0000002g.backup",
        SEGMENT + ".00000028.backups",
        SEGMENT + "..backup",
        SEGMENT + ".backup",
        "x" + SEGMENT,
        "00000001000000000000007f",
        "000000010000000000001000",
        "0000000100000000FFFFFFFF",
        "00000002.partial",
        "00000002",
        "0000002.history",
        "00000002.history.tmp",
        "0000000a.history",
        "/" + SEGMENT,
    ],
)
def test_any_other_name_is_of_no_kind(name):
    assert wal_kind(name) is None


@given(st.text("0123456789ABCDEFabg.", max_size=34) | st.sampled_from(["partial", "history", "backup"]).map(lambda word: SEGMENT + "." + word))
def test_a_name_of_some_kind_is_safe_as_a_file_name(name):
    if wal_kind(name):
        assert "/" not in name
        assert name[0] != "."
        assert len(name) in (16, 24, 32, 40)


# headers

MAGICS = {10: 0xD097, 11: 0xD098, 12: 0xD101, 13: 0xD106, 14: 0xD10D, 15: 0xD110, 16: 0xD113, 17: 0xD116, 18: 0xD118}


@pytest.mark.parametrize("major", MAGICS)
def test_a_real_segment_of_every_version_passes(major):
    name, page = golden_page(f"{major}-0*")
    segment_size = 16 * MIB if major == 10 else MIB
    header = check_segment(name, page, segment_size, None)
    assert header.magic == MAGICS[major]
    assert header.page_address == segment_start(name, segment_size)
    assert (header.timeline, header.segment_size, header.block_size) == (1, segment_size, 8192)


def test_a_real_segment_of_the_default_size_passes_with_its_cluster():
    name, page = golden_page("15-16mb-*")
    header = check_segment(name, page[:40], 16 * MIB, 7710234557633402168)
    assert header.page_address == Lsn.parse("0/4000000")


def test_the_first_segment_after_a_promotion_passes_with_the_old_timeline_in_it():
    name, page = golden_page("15-promoted-*")
    assert segment_timeline(name) == 2
    assert check_segment(name, page, MIB, 7710234541589218576).timeline == 1


def test_a_recycled_segment_that_the_server_has_not_written_is_refused():
    name, page = golden_page("15-recycled-*")
    with pytest.raises(WalRefused, match=r"another segment's WAL.*begins at 0/1500000; its header says 0/C00000"):
        check_segment(name, page, MIB, 7710234541589218576)


@given(timelines, lsns, sizes, st.integers(0, 2**64 - 1), st.integers(0xD097, 0xD1FF), st.integers(0, 15))
def test_a_built_header_reads_back_as_it_was_built(timeline, lsn, size, system_identifier, magic, flags):
    name = segment_name(timeline, lsn, size)
    data = build_header(name, size, system_identifier, magic=magic, info=flags | 2)
    assert len(data) == 40
    header = check_segment(name, data, size, system_identifier)
    assert header == (magic, flags | 2, timeline, segment_start(name, size), system_identifier, size, 8192)


@given(st.binary(max_size=64))
def test_garbage_is_refused_and_nothing_else_happens(data):
    with pytest.raises(WalRefused):
        check_segment(SEGMENT, data, 16 * MIB, None)


@pytest.mark.parametrize("fill", ["random", "zero"])
def test_a_built_segment_passes(fill):
    data = build_segment(SEGMENT, 16 * MIB, fill=fill)
    assert check_segment(SEGMENT, data, len(data), SYSTEM_IDENTIFIER).segment_size == 16 * MIB


def test_a_partial_segment_is_checked_as_its_segment():
    name = SEGMENT + ".partial"
    data = build_segment(name, MIB)
    assert check_segment(name, data, len(data), SYSTEM_IDENTIFIER).page_address == Lsn.parse("0/7F00000")
    with pytest.raises(WalRefused, match="another segment's WAL"):
        check_segment("000000010000000000000080.partial", data, len(data), SYSTEM_IDENTIFIER)


HEADER = build_header(SEGMENT, 16 * MIB)


def with_field(offset: int, size: int, value: int) -> bytes:
    return HEADER[:offset] + value.to_bytes(size, "little") + HEADER[offset + size :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "only 0 bytes"),
        (HEADER[:39], "only 39 bytes"),
        (bytes(40), "begins with 0x0000"),
        (with_field(0, 2, 0xD096), "begins with 0xD096"),
        (with_field(0, 2, 0xD200), "begins with 0xD200"),
        (with_field(2, 2, 5), "flags 0x0005.*middle of a segment"),
        (with_field(4, 4, 0), "timeline 0"),
        (with_field(32, 4, 0), "segment size of 0 bytes"),
        (with_field(32, 4, 3 * MIB), "segment size of 3145728 bytes"),
        (with_field(32, 4, MIN_SEGMENT_SIZE // 2), "segment size of 524288 bytes"),
        (with_field(32, 4, MAX_SEGMENT_SIZE * 2), "segment size of 2147483648 bytes"),
        (with_field(36, 4, 0), "block size of 0 bytes"),
        (with_field(36, 4, 8191), "block size of 8191 bytes"),
    ],
)
def test_what_cannot_begin_a_segment_is_refused_with_the_reason(data, reason):
    with pytest.raises(WalRefused, match=reason):
        parse_wal_header(data)
    with pytest.raises(WalRefused, match=f"{SEGMENT} is not a WAL segment. .*{reason}"):
        check_segment(SEGMENT, data, 16 * MIB, None)


def refusal(name: str = SEGMENT, data: bytes = HEADER, size_bytes: int = 16 * MIB, system_identifier: int | None = SYSTEM_IDENTIFIER) -> str:
    with pytest.raises(WalRefused) as caught:
        check_segment(name, data, size_bytes, system_identifier)
    assert caught.value.message.startswith(name)
    assert caught.value.hint.endswith(".")
    return str(caught.value)


def test_a_cut_off_segment_is_refused_with_both_sizes():
    assert "has the wrong size. The file has 16777215 bytes; its header says that a segment has 16777216." in refusal(size_bytes=16 * MIB - 1)
    assert "16777217" in refusal(size_bytes=16 * MIB + 1)


def test_a_segment_under_another_name_is_refused_with_both_positions():
    assert "begins at 0/80000000; its header says 0/7F000000." in refusal(name="000000010000000000000080")


def test_a_segment_of_a_later_timeline_is_refused_with_both_timelines():
    assert "timeline 1; its header says 2." in refusal(data=build_header(SEGMENT, 16 * MIB, timeline=2))


def test_a_segment_of_another_cluster_is_refused_with_both_identifiers():
    assert f"identifier is {SYSTEM_IDENTIFIER}; this cluster's is 42." in refusal(system_identifier=42)
    assert check_segment(SEGMENT, HEADER, 16 * MIB, None).system_identifier == SYSTEM_IDENTIFIER


def test_a_name_beyond_the_headers_segment_size_is_refused():
    name = "0000000100000000000001FF"
    with pytest.raises(WalRefused, match="cannot be a segment of 16777216 bytes"):
        check_segment(name, HEADER, 16 * MIB, SYSTEM_IDENTIFIER)


def test_only_segments_are_checked_as_segments():
    with pytest.raises(WalRefused, match="not the name of a WAL segment"):
        check_segment("00000002.history", HEADER, 16 * MIB, None)


def test_the_modules_on_the_wal_path_import_nothing_slow():
    program = (
        "import sys; import __future__, os, errno, stat, struct, time, collections; before = set(sys.modules)\n"
        "import wal_e.postgres.wal, wal_e.postgres.control, wal_e.postgres.recovery, wal_e.postgres.archive_status\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('wal_e')))"
    )
    added = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert added.stdout.split() == []


def test_a_history_names_the_ancestors_and_where_each_was_left():
    text = b"1\t0/3000000\tno recovery target specified\n\n# a comment\n 2 16/B374D848 before 2026-03-01 00:00:00+00\n"
    assert parse_history(text, 7) == (Switch(1, Lsn(0x3000000)), Switch(2, Lsn.parse("16/B374D848")))


@given(st.sets(st.integers(1, 2**32 - 1), min_size=2, max_size=8), st.data())
def test_a_history_is_read_as_it_is_written(timelines, data):
    *ancestors, timeline = sorted(timelines)
    switches = tuple(Switch(one, Lsn(data.draw(st.integers(0, 2**64 - 1)))) for one in ancestors)
    text = "".join(f"{switch.timeline}\t{switch.end}\tbecause ü\n\n" for switch in switches)
    assert parse_history(text.encode(), timeline) == switches


@pytest.mark.parametrize(
    "text", [b"", b"# nothing\n", b"x\t0/1\n", b"1\n", b"1\t0-1\n", b"2\t0/1\n1\t0/2\n", b"1\t0/1\n1\t0/2\n", b"3\t0/1\n", b"0\t0/1\n", b"\x89LZO\0\xff"]
)
def test_what_is_not_the_history_of_a_timeline_is_refused(text):
    with pytest.raises(WalRefused, match=r"00000003\.history"):
        parse_history(text, 3)
