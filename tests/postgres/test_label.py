from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import DamageError, TargetRefused
from wal_e.postgres.label import BackupLabel, parse_backup_label, parse_tablespace_map, render_tablespace_map
from wal_e.postgres.wal import Lsn

GOLDEN = Path(__file__).parent / "golden"


def golden_label(name: str) -> str:
    return (GOLDEN / f"backup_label-{name}").read_bytes().decode()


def golden_map(major: int) -> bytes:
    return gzip.decompress((GOLDEN / f"tablespace_map-{major}.gz").read_bytes())


def test_a_real_label_of_15_is_read():
    assert parse_backup_label(golden_label("15")) == BackupLabel(
        start=Lsn.parse("0/1000028"),
        start_segment="000000010000000000000010",
        checkpoint=Lsn.parse("0/1000060"),
        timeline=1,
        taken_from="primary",
        start_time="2026-11-20 12:47:51 UTC",
        label='nightly "x"',
    )


def test_a_real_label_of_10_has_its_timeline_in_the_segments_name_and_comes_from_a_master():
    assert "START TIMELINE" not in golden_label("10")
    assert "BACKUP FROM: master" in golden_label("10")
    label = parse_backup_label(golden_label("10"))
    assert (label.timeline, label.taken_from, label.start_segment) == (1, "primary", "000000010000000000000002")


def test_a_real_label_of_13_is_read():
    label = parse_backup_label(golden_label("13"))
    assert (str(label.start), str(label.checkpoint), label.timeline, label.taken_from) == ("0/F00028", "0/F00060", 1, "primary")


def test_a_real_label_of_a_standby_says_so():
    assert parse_backup_label(golden_label("15-standby")).taken_from == "standby"


def test_the_lines_of_an_incremental_backup_do_no_harm():
    text = golden_label("15") + "INCREMENTAL FROM LSN: 0/2000028\nINCREMENTAL FROM TLI: 1\n"
    assert parse_backup_label(text) == parse_backup_label(golden_label("15"))


def test_lines_that_the_server_does_not_need_may_be_missing():
    label = parse_backup_label("START WAL LOCATION: 1/28 (file 0000000A0000000100000000)\nCHECKPOINT LOCATION: 1/60\n")
    assert label == (2**32 + 0x28, "0000000A0000000100000000", 2**32 + 0x60, 10, "primary", "", "")


def test_a_label_that_holds_other_lines_cannot_move_the_start():
    text = golden_label("15").replace('nightly "x"', "x\nSTART WAL LOCATION: 0/28 (file 000000010000000000000000)\nCHECKPOINT LOCATION: 0/28")
    assert parse_backup_label(text).start == Lsn.parse("0/1000028")
    assert parse_backup_label(text).checkpoint == Lsn.parse("0/1000060")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("START WAL LOCATION", "START", "no line START WAL LOCATION"),
        ("CHECKPOINT LOCATION", "CHECKPOINT", "no line CHECKPOINT LOCATION"),
        ("0/1000028 ", "0/1000028", "line START WAL LOCATION says"),
        ("000000010000000000000010)", "000000010000000000000010", "line START WAL LOCATION says"),
        ("000000010000000000000010", "00000001000000000001FFFF", "line START WAL LOCATION says"),
        ("0/1000060", "1000060", "line CHECKPOINT LOCATION says '1000060'"),
        ("0/1000060", "0/1000060 ", "line CHECKPOINT LOCATION says '0/1000060 '"),
        ("TIMELINE: 1", "TIMELINE: 2", "line START TIMELINE says '2'"),
        ("TIMELINE: 1", "TIMELINE: one", "line START TIMELINE says 'one'"),
        ("\n", "\r\n", "line START WAL LOCATION says"),
    ],
)
def test_a_label_that_the_server_would_refuse_is_damage(old, new, reason):
    text = golden_label("15")
    assert old in text
    with pytest.raises(DamageError, match=reason):
        parse_backup_label(text.replace(old, new))


def test_an_empty_label_is_damage():
    with pytest.raises(DamageError, match="no line START WAL LOCATION"):
        parse_backup_label("")


# tablespace_map


@pytest.mark.parametrize(
    ("major", "oid", "path"),
    [
        (10, "16390", b"/tmp/purehalf/x\\y\nz"),
        (13, "16390", b"/tmp/purehalf/x\\y\nz"),
        (15, "16384", b"/tmp/purehalf/a\\b\nc1"),
    ],
)
def test_a_real_map_with_backslash_and_newline_is_read_and_written_as_its_version_does(major, oid, path):
    assert parse_tablespace_map(golden_map(major), major) == {oid: path}
    assert render_tablespace_map({oid: path}, major) == golden_map(major)


def test_an_empty_map_has_no_entries():
    assert parse_tablespace_map(b"", 15) == {}
    assert render_tablespace_map({}, 15) == b""


def test_several_tablespaces_keep_their_order():
    data = b"16400 /b\n16385 /a with spaces \n"
    assert list(parse_tablespace_map(data, 15).items()) == [("16400", b"/b"), ("16385", b"/a with spaces ")]


oids = st.integers(1, 2**32 - 1).map(str)
paths = st.lists(st.sampled_from([b"\\", b"\n", b"\r", b" ", b"/", b"a", b"n", b"\xff"])).map(lambda parts: b"/" + b"".join(parts))


@given(st.dictionaries(oids, paths, max_size=4), st.integers(14, 18))
def test_from_14_on_every_map_reads_back_as_it_was_written(mapping, major):
    data = render_tablespace_map(mapping, major)
    assert list(parse_tablespace_map(data, major).items()) == list(mapping.items())
    assert server_14_reads(data) == mapping


@given(st.dictionaries(oids, paths.filter(lambda path: not path.endswith(b"\\")), max_size=4), st.integers(10, 13))
def test_before_14_every_map_without_a_last_backslash_reads_back_as_it_was_written(mapping, major):
    data = render_tablespace_map(mapping, major)
    assert list(parse_tablespace_map(data, major).items()) == list(mapping.items())
    assert server_10_reads(data) == mapping


def server_14_reads(data: bytes) -> dict[str, bytes]:
    """read_tablespace_map() of 14 and later, line by line."""
    mapping, line, was_backslash = {}, bytearray(), False
    for char in data:
        if not was_backslash and char in b"\n\r":
            if line:
                oid, _, path = bytes(line).partition(b" ")
                mapping[oid.decode()] = path
            line.clear()
        elif not was_backslash and char == ord("\\"):
            was_backslash = True
        else:
            line.append(char)
            was_backslash = False
    assert not line
    return mapping


def server_10_reads(data: bytes) -> dict[str, bytes]:
    """read_tablespace_map() of 10 to 13, line by line."""
    mapping, line, previous = {}, bytearray(), 0
    for char in data:
        if char in b"\n\r" and previous != ord("\\"):
            oid, _, path = bytes(line).partition(b" ")
            mapping[oid.decode()] = path
            line.clear()
            continue
        if char in b"\n\r":
            line[-1] = char
        else:
            line.append(char)
        previous = char
    assert not line
    return mapping


@pytest.mark.parametrize("major", [10, 13])
def test_before_14_a_path_with_a_last_backslash_is_refused(major):
    with pytest.raises(TargetRefused, match=r"tablespace 16385 .* ends in a backslash"):
        render_tablespace_map({"16384": b"/a\\b", "16385": b"/a\\"}, major)


@pytest.mark.parametrize(
    ("data", "major"),
    [
        (b"16384 /a", 15),
        (b"16384 /a", 13),
        (b"16384 /a\\\n", 15),
        (b"16384 /a\\\n", 13),
        (b"16384 /a\\", 15),
        (b"16384\n", 15),
        (b"16384 \n", 15),
        (b" /a\n", 15),
        (b"/a\n", 15),
        (b"x16 /a\n", 15),
        (b"\n", 13),
        (b"16384 /a\r\n", 13),
    ],
)
def test_a_map_that_no_server_writes_is_damage(data, major):
    with pytest.raises(DamageError, match="tablespace_map is not what a server writes"):
        parse_tablespace_map(data, major)
