from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from build_wal import SYSTEM_IDENTIFIER, build_control
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import DamageError, LocalFileError, NotACluster
from wal_e.postgres.control import ControlFile, parse_control, read_control, read_control_bytes, read_system_identifier
from wal_e.postgres.wal import Lsn

GOLDEN = Path(__file__).parent / "golden"
MIB = 1024 * 1024

# major: system identifier, control and catalog version, checkpoint, redo, segment size, page checksums; as the server's SQL functions said
REAL = {
    10: (7710234995265119851, 1002, 201707211, "0/1D67010", "0/1D66FD8", 16 * MIB, 1),
    11: (7710234999166273161, 1100, 201809051, "0/E96D08", "0/E96CD0", MIB, 1),
    12: (7710235003518301863, 1201, 201909212, "0/E911D8", "0/E911A0", MIB, 1),
    13: (7710235006985864901, 1300, 202007201, "0/E3BA00", "0/E3B9C8", MIB, 1),
    14: (7710235010591491811, 1300, 202107181, "0/D1BD48", "0/D1BD10", MIB, 0),
    15: (7710235014459963137, 1300, 202209061, "0/D71708", "0/D716D0", MIB, 1),
    16: (7710235017876576030, 1300, 202307071, "0/D50EB0", "0/D50E78", MIB, 1),
    17: (7710235021366978363, 1700, 202406281, "0/D50500", "0/D504A8", MIB, 1),
    18: (7710235024637634392, 1800, 202506291, "0/D7B400", "0/D7B3A8", MIB, 1),
}
LOGICAL = 2


def golden(name: str) -> bytes:
    return gzip.decompress((GOLDEN / f"pg_control-{name}.gz").read_bytes())


def cluster(directory: Path, data: bytes) -> str:
    (directory / "global").mkdir()
    (directory / "global" / "pg_control").write_bytes(data)
    return str(directory)


@pytest.mark.parametrize("major", REAL)
def test_a_real_file_of_every_version_says_what_its_server_said(major):
    system_identifier, version, catalog, checkpoint, redo, segment_size, checksums = REAL[major]
    control = parse_control(golden(str(major)))
    assert control == ControlFile(
        system_identifier=system_identifier,
        control_version=version,
        catalog_version=catalog,
        state=6,
        checkpoint=Lsn.parse(checkpoint),
        redo=Lsn.parse(redo),
        timeline=1,
        min_recovery_point=Lsn(0),
        wal_level=LOGICAL,
        block_size=8192,
        segment_size=segment_size,
        data_checksum_version=checksums,
    )
    assert control.major == major
    assert control.state_words == "in production"
    assert str(control.redo) == redo


def test_a_real_standby_has_a_minimum_recovery_point():
    control = parse_control(golden("15-standby"))
    assert (control.state_words, str(control.min_recovery_point), str(control.redo)) == ("in archive recovery", "0/1123FF8", "0/E00028")


def test_a_real_stopped_cluster_is_shut_down():
    control = parse_control(golden("15-stopped"))
    assert (control.state_words, str(control.redo), control.segment_size) == ("shut down", "0/5000028", 16 * MIB)


def test_a_real_promoted_cluster_is_on_its_new_timeline():
    control = parse_control(golden("15-promoted"))
    assert (control.timeline, str(control.redo)) == (2, "0/1104628")


VERSIONS = [(row[1], row[2]) for row in REAL.values()]


@given(
    st.sampled_from(VERSIONS),
    st.integers(0, 2**64 - 1),
    st.integers(0, 6),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(1, 2**32 - 1),
    st.sampled_from([2**power for power in range(20, 31)]),
)
def test_a_built_file_of_every_version_reads_back_as_it_was_built(version, system_identifier, state, lsn, redo, timeline, segment_size):
    data = build_control(
        system_identifier,
        version=version[0],
        catalog=version[1],
        state=state,
        redo=redo,
        checkpoint=lsn,
        timeline=timeline,
        min_recovery_point=lsn,
        wal_level=1,
        segment_size=segment_size,
        block_size=4096,
        checksums=1,
    )
    assert len(data) == 8192
    expected = (system_identifier, *version, state, lsn, redo, timeline, lsn, 1, 4096, segment_size, 1)
    assert parse_control(data) == expected


@given(st.sampled_from(sorted(REAL)), st.integers(0, 279), st.integers(1, 255))
def test_any_changed_byte_is_found(major, offset, flip):
    data = bytearray(golden(str(major)))
    data[offset] ^= flip
    if 8 <= offset < 12 and int.from_bytes(data[8:12], "little") not in {row[1] for row in REAL.values()}:
        with pytest.raises(DamageError, match="which this wal-e does not know"):
            parse_control(bytes(data))
    else:
        with pytest.raises(DamageError, match="the CRC stored in it is not the CRC of its bytes"):
            parse_control(bytes(data))


@pytest.mark.parametrize("data", [b"", bytes(8), golden("15")[:295]])
def test_a_cut_off_file_is_damage(data):
    with pytest.raises(DamageError, match=f"too short. It has {len(data)} bytes of 8192"):
        parse_control(data)


def test_a_file_of_zeros_is_damage():
    with pytest.raises(DamageError, match="version 0"):
        parse_control(bytes(8192))


@pytest.mark.parametrize("layout_of", [1100, 1700, 1800])
def test_an_unknown_version_with_a_known_layout_is_read(layout_of):
    data = bytearray(build_control(version=layout_of, redo=0xA000028, timeline=3, segment_size=64 * MIB))
    end = {1100: 280, 1700: 288, 1800: 292}[layout_of]
    data[8:16] = (1902).to_bytes(4, "little") + (202604091).to_bytes(4, "little")
    data[end : end + 4] = crc32c(bytes(data[:end])).to_bytes(4, "little")
    control = parse_control(bytes(data))
    assert (control.control_version, control.redo, control.timeline, control.segment_size) == (1902, 0xA000028, 3, 64 * MIB)
    assert control.major is None


def crc32c(data: bytes) -> int:
    """CRC-32C, bit by bit, from the polynomial."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def test_a_catalog_of_no_release_has_no_major():
    assert parse_control(build_control(version=1300, catalog=202207010)).major is None


@pytest.mark.parametrize(
    ("state", "words"), [(0, "starting up"), (1, "shut down"), (2, "shut down in recovery"), (5, "in archive recovery"), (9, "unknown (9)")]
)
def test_a_state_has_words(state, words):
    assert parse_control(build_control(state=state)).state_words == words


# reading


def test_reading_returns_the_bytes_and_what_they_say(tmp_path):
    data = golden("18")
    directory = cluster(tmp_path, data)
    assert read_control_bytes(directory) == (data, parse_control(data))
    assert read_control(directory) == parse_control(data)


def test_a_torn_read_is_tried_again(tmp_path):
    whole = golden("15")
    directory = cluster(tmp_path, whole[:100] + golden("15-promoted")[100:])
    pauses = []

    def server_finishes_on_the_third(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            (tmp_path / "global" / "pg_control").write_bytes(whole)

    assert read_control_bytes(directory, sleep=server_finishes_on_the_third)[0] == whole
    assert pauses == [0.02] * 3


def test_a_file_that_stays_torn_is_damage_after_ten_attempts(tmp_path):
    directory = cluster(tmp_path, b"x" * 8192)
    pauses = []
    with pytest.raises(DamageError, match="pg_control"):
        read_control(directory, sleep=pauses.append)
    assert len(pauses) == 9


def test_the_system_identifier_is_read_even_while_the_file_is_torn(tmp_path):
    directory = cluster(tmp_path, build_control()[:100] + bytes(8092))
    assert read_system_identifier(directory) == SYSTEM_IDENTIFIER


def test_a_file_without_a_whole_system_identifier_is_damage(tmp_path):
    with pytest.raises(DamageError, match="too short"):
        read_system_identifier(cluster(tmp_path, b"1234567"))


READERS = [read_control, read_control_bytes, read_system_identifier]


@pytest.mark.parametrize("reader", READERS)
def test_a_directory_without_the_file_is_not_a_cluster(reader, tmp_path):
    with pytest.raises(NotACluster, match=r"is not a PostgreSQL data directory. There is no .*/global/pg_control"):
        reader(str(tmp_path))
    (tmp_path / "global").write_text("a file")
    with pytest.raises(NotACluster):
        reader(str(tmp_path))


@pytest.mark.parametrize("reader", READERS)
def test_another_failure_names_the_file(reader, tmp_path):
    (tmp_path / "global" / "pg_control").mkdir(parents=True)
    with pytest.raises(LocalFileError, match=r"reading .*/global/pg_control"):
        reader(str(tmp_path))


@pytest.mark.parametrize("reader", READERS)
def test_a_file_of_another_user_is_permission_denied(reader, tmp_path, monkeypatch):
    def refused(path: str, *_: object, **__: object) -> object:
        raise PermissionError(13, os.strerror(13), path)

    monkeypatch.setattr("wal_e.postgres.control.open", refused, raising=False)
    with pytest.raises(LocalFileError, match="permission denied while reading"):
        reader(cluster(tmp_path, build_control()))
