"""The manifest: written, read, and not believed when it changed."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.archive.manifest import Manifest, ManifestWriter, StoredPartition
from wal_e.errors import DamageError
from wal_e.tar.writer import Member

NAME = "base_00000001000000000000007F_00000040"
MEMBERS = st.builds(
    Member,
    st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
    st.just("file"),
    st.integers(0, 2**40),
    st.integers(0, 0o7777),
    st.integers(0, 2**33),
    st.integers(0, 2**32 - 1),
    st.just(""),
)
CONTENTS = st.lists(st.lists(MEMBERS, max_size=5), max_size=4)


def written(contents):
    writer = ManifestWriter(NAME, 15)
    for number, members in enumerate(contents):
        writer.add(StoredPartition(number, f"part_{number}", 100 + number, "ab" * 32, len(members)), members)
    digest = writer.finish()
    stream = io.BytesIO()
    writer.write(stream)
    writer.close()
    return stream.getvalue(), digest


def read(data, digest, name=NAME):
    return Manifest.fetch(lambda consume: consume(io.BytesIO(data)), "the/key", name, digest)


@given(CONTENTS)
def test_what_was_written_is_read(contents):
    manifest = read(*written(contents))
    assert [members for _, members in manifest.partitions()] == contents
    assert [stored.number for stored, _ in manifest.partitions()] == list(range(len(contents)))
    manifest.close()


@given(CONTENTS)
def test_the_largest_partitions_come_first_with_the_same_members(contents):
    manifest = read(*written(contents))
    found = list(manifest.largest_first())
    assert sorted(found, key=lambda one: one[0].number) == list(manifest.partitions())
    sizes = [sum(member.size for member in members) for _, members in found]
    assert sizes == sorted(sizes, reverse=True)
    manifest.close()


def test_directories_and_links_come_back():
    members = [Member("", "directory", 0, 0o700, 5, 0, ""), Member("log", "symlink", 0, 0o777, 6, 0, "/var/log/\udcff")]
    manifest = read(*written([members]))
    assert next(manifest.partitions())[1] == members
    manifest.close()


MEMBER = Member("base/1/1259", "file", 8192, 0o600, 1_700_000_000, 0xDEADBEEF, "")


@given(st.data())
def test_any_changed_byte_is_damage(data):
    content, digest = written([[MEMBER]])
    place = data.draw(st.integers(0, len(content) - 1))
    changed = content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    with pytest.raises(DamageError, match="the/key"):
        read(changed, digest)


@pytest.mark.parametrize("cut", [0, 1, 10, 200])
def test_a_cut_manifest_is_damage(cut):
    content, digest = written([[MEMBER]])
    with pytest.raises(DamageError):
        read(content[:-cut] if cut else b"", digest)


def test_something_after_the_end_is_damage():
    content, digest = written([[MEMBER]])
    with pytest.raises(DamageError):
        read(content + b"{}\n", digest)


def test_a_whole_manifest_that_the_sentinel_does_not_name_is_damage():
    content, _ = written([[MEMBER]])
    with pytest.raises(DamageError):
        read(content, "0" * 64)


def test_the_manifest_of_another_backup_is_damage():
    content, digest = written([[MEMBER]])
    with pytest.raises(DamageError, match="manifest of this backup"):
        read(content, digest, name="base_00000001000000000000007F_00000041")


def test_the_format_is_what_the_documentation_says():
    content, digest = written([[MEMBER]])
    lines = [json.loads(line) for line in content.splitlines()]
    assert lines == [
        {"format": 1, "backup": NAME, "major": 15},
        {"path": "base/1/1259", "kind": "file", "size": 8192, "mode": 0o600, "mtime": 1_700_000_000, "crc32c": "deadbeef", "partition": 0},
        {"partition": 0, "key": "part_0", "size": 100, "sha256": "ab" * 32, "files": 1},
        {"sha256": digest},
    ]
