"""The grammar of keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.archive import layout
from wal_e.archive.layout import BackupName

SEGMENTS = st.text("0123456789ABCDEF", min_size=24, max_size=24)
NAMES = st.builds(BackupName, SEGMENTS, st.integers(0, 2**30))


@given(NAMES)
def test_a_backup_name_is_taken_apart_into_what_it_was_made_of(name):
    assert layout.parse_backup_name(str(name)) == name


@given(NAMES)
def test_a_sentinel_key_is_taken_apart_into_its_backup(name):
    assert layout.parse_sentinel_key(layout.sentinel_key(str(name))) == str(name)


@given(NAMES, st.integers(0, 99_999_999), st.sampled_from([".lzo", ".zst", ""]))
def test_a_partition_key_is_taken_apart_into_its_number(name, number, suffix):
    assert layout.parse_partition_key(layout.partition_key(str(name), number, suffix)) == number


def test_keys_are_those_of_layout_005():
    name = str(BackupName("00000001000000000000007F", 0x28))
    assert name == "base_00000001000000000000007F_00000040"
    assert layout.wal_key("00000001000000000000007F", ".lzo") == "wal_005/00000001000000000000007F.lzo"
    assert layout.version_key(name) == f"basebackups_005/{name}/extended_version.txt"
    assert layout.partition_key(name, 7, ".lzo") == f"basebackups_005/{name}/tar_partitions/part_00000007.tar.lzo"
    assert layout.sentinel_key(name) == f"basebackups_005/{name}_backup_stop_sentinel.json"


def test_the_unpadded_partition_numbers_of_before_2014_are_read():
    assert layout.parse_partition_key("basebackups_005/base_X/tar_partitions/part_3.tar.lzo") == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "LATEST",
        "base_",
        "base_00000001000000000000007F",
        "base_00000001000000000000007F_40",
        "base_00000001000000000000007F_00000040x",
        "base_00000001000000000000007f_00000040",
        "base_0000000100000000000007F_00000040",
        "base_00000001000000000000007F_0000004٠",
        "xbase_00000001000000000000007F_00000040",
        "base_00000001000000000000007F_0000000040",
    ],
)
def test_what_is_no_backup_name_is_not_taken_for_one(text):
    assert layout.parse_backup_name(text) is None


@pytest.mark.parametrize(
    "key",
    [
        "wal_005/base_00000001000000000000007F_00000040_backup_stop_sentinel.json",
        "basebackups_005/base_00000001000000000000007F_00000040",
        "basebackups_005/x/base_00000001000000000000007F_00000040_backup_stop_sentinel.json",
        "basebackups_005/base_007F_backup_stop_sentinel.json",
    ],
)
def test_what_is_no_sentinel_is_not_taken_for_one(key):
    assert layout.parse_sentinel_key(key) is None


@pytest.mark.parametrize("name", ["part_.tar.lzo", "part_x.tar.lzo", "part_1.tarx", "xpart_1.tar.lzo", "part_1.lzo", "part_²"])
def test_what_is_no_partition_is_not_taken_for_one(name):
    assert layout.parse_partition_key(f"basebackups_005/base_X/tar_partitions/{name}") is None


@given(SEGMENTS, st.sampled_from([".lzo", ".zst", ""]), st.sampled_from(["", ".partial", ".00000028.backup"]))
def test_a_wal_key_is_taken_apart_into_its_name(segment, suffix, ending):
    name = f"{segment[:16]}000000{segment[22:]}{ending}"
    assert layout.parse_wal_key(layout.wal_key(name, suffix), [".lzo", ".zst", ""]) == name


@pytest.mark.parametrize(
    "key",
    [
        "00000001000000000000007F.lzo",
        "basebackups_005/00000001000000000000007F.lzo",
        "wal_005/00000001000000000000007F",
        "wal_005/00000001000000000000007F.lz4",
        "wal_005/00000001000000000000007F.lzo.tmp",
        "wal_005/x/00000001000000000000007F.lzo",
        "wal_005/.lzo",
        "wal_005/readme.lzo",
    ],
)
def test_what_is_no_wal_of_these_suffixes_is_not_taken_for_some(key):
    assert layout.parse_wal_key(key, [".lzo"]) is None


def test_history_files_are_wal():
    assert layout.parse_wal_key(layout.streaming_key(f"{1:024X}", ".lzo"), [".lzo"]) == f"{1:024X}.streaming"
    for name in ("00000002.history.streaming", f"{1:024X}.partial.streaming", f"{1:024X}.streaming.streaming"):
        assert layout.parse_wal_key(f"wal_005/{name}.lzo", [".lzo"]) is None
    assert layout.parse_wal_key("wal_005/00000002.history.lzo", [".lzo"]) == "00000002.history"


@given(NAMES)
def test_the_keys_of_a_backup_s_objects_name_it_and_its_sentinel_is_none_of_them(name):
    for key in (
        layout.version_key(str(name)),
        layout.partition_key(str(name), 3, ".lzo"),
        layout.manifest_key(str(name), ".lzo"),
        layout.config_key(str(name), ".lzo"),
    ):
        assert layout.parse_object_key(key) == str(name)
        assert layout.parse_foreign_start(key) is None
    assert layout.parse_object_key(layout.sentinel_key(str(name))) is None
    assert layout.parse_foreign_start(layout.sentinel_key(str(name))) is None


@pytest.mark.parametrize(
    "key", ["basebackups_005/base_X/a", "basebackups_005/base_00000001000000000000007F/a", "wal_005/base_00000001000000000000007F_00000040/a"]
)
def test_what_belongs_to_no_backup_is_not_taken_for_an_object(key):
    assert layout.parse_object_key(key) is None


@pytest.mark.parametrize(
    "rest",
    [
        "/tar_partitions/part_1.tar.lz4",
        "_backup_stop_sentinel.json",
        "/metadata.json",
        "_D_000000010000000000000070/tar_partitions/part_1.tar.lz4",
        "_D_000000010000000000000070_backup_stop_sentinel.json",
    ],
)
def test_the_start_of_a_wal_g_backup_is_in_its_keys(rest):
    assert layout.parse_foreign_start(f"basebackups_005/base_00000001000000000000007F{rest}") == "00000001000000000000007F"


@pytest.mark.parametrize("key", ["basebackups_005/notes.txt", "basebackups_005/base_X_backup_stop_sentinel.json", "wal_005/base_00000001000000000000007F/x",
                                 "basebackups_005/base_00000001000000000000007F", "basebackups_005/base_00000001000000000000007F0/x"])  # fmt: skip
def test_other_keys_have_no_start(key):
    assert layout.parse_foreign_start(key) is None
