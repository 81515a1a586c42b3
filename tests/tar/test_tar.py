"""Files to tar and back, through the writer, the reader and GNU tar."""

import io
import os
import stat
import subprocess
import tarfile
import time

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.errors import DamageError, LocalFileError
from wal_e.postgres.files import FileEntry
from wal_e.tar import partition
from wal_e.tar.destination import CONTROL, HELD_CONTROL, Destination
from wal_e.tar.reader import PartitionReader
from wal_e.tar.writer import PartitionWriter, Throttle, write_contents

FREE = Throttle(0, time.sleep, time.monotonic)


def entry(path, kind="file", size=0, mode=0o600, mtime=1_700_000_000, target=""):
    return FileEntry(path, kind, size, mode, mtime, os.getuid(), os.getgid(), target)


def ignore(_):
    pass


class Pipe(io.BytesIO):
    pass


def written(root, entries):
    stream = Pipe()
    writer = PartitionWriter(str(root), entries, FREE, ignore)
    writer.write(stream)
    return stream.getvalue(), writer.members


def extracted(data, root, links=frozenset()):
    destination = Destination(str(root), links, False)
    reader = PartitionReader("part_00000000.tar.lzo", destination, ignore)
    reader.read(io.BytesIO(data))
    return reader.members, destination


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    root.mkdir()
    return root


@pytest.fixture
def target(tmp_path):
    root = tmp_path / "target"
    root.mkdir()
    return root


ODD = ["plain", "with space", "tab\there", "new\nline", "-dash", "ünïcode", "x" * 200, os.fsdecode(b"not-utf8-\xff\xfe"), "100%", "back\\slash"]


def test_odd_names_and_contents_come_back_as_they_were(source, target):
    entries = [entry("", "directory", mode=0o700), entry("sub", "directory", mode=0o750)]
    for number, name in enumerate(ODD):
        (source / "sub").mkdir(exist_ok=True)
        (source / "sub" / name).write_bytes(os.urandom(number * 700))
        entries.append(entry(f"sub/{name}", mode=0o640 if number % 2 else 0o600))
    data, members = written(source, entries)
    got, destination = extracted(data, target)
    destination.finish()
    assert got == members
    for number, name in enumerate(ODD):
        assert (target / "sub" / name).read_bytes() == (source / "sub" / name).read_bytes()
        status = (target / "sub" / name).stat()
        assert stat.S_IMODE(status.st_mode) == (0o640 if number % 2 else 0o600)
        assert int(status.st_mtime) == 1_700_000_000
    assert stat.S_IMODE((target / "sub").stat().st_mode) == 0o750


@given(st.lists(st.binary(max_size=3000), max_size=8))
def test_any_contents_round_trip_with_their_checksums(tmp_path_factory, contents):
    root = tmp_path_factory.mktemp("any")
    (root / "s").mkdir()
    (root / "t").mkdir()
    for number, content in enumerate(contents):
        (root / "s" / str(number)).write_bytes(content)
    data, members = written(root / "s", [entry(str(number)) for number in range(len(contents))])
    got, _ = extracted(data, root / "t")
    assert got == members
    assert [member.crc32c for member in got] == [google_crc32c.value(content) for content in contents]
    assert [(root / "t" / str(number)).read_bytes() for number in range(len(contents))] == contents


class Dribble(io.RawIOBase):
    """A stream that has a few bytes at a time, as a pipe may."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self._data.read(min(len(buffer), 7))
        buffer[: len(data)] = data
        return len(data)


def test_a_stream_that_comes_in_small_pieces_is_read_like_any_other(source, target):
    (source / ("n" * 150)).write_bytes(os.urandom(3000))
    (source / "empty").write_bytes(b"")
    data, members = written(source, [entry("", "directory", mode=0o700), entry("n" * 150), entry("empty")])
    reader = PartitionReader("part_00000000.tar.lzo", Destination(str(target), frozenset(), False), ignore)
    reader.read(Dribble(data))
    assert reader.members == members
    assert (target / ("n" * 150)).read_bytes() == (source / ("n" * 150)).read_bytes()


def test_a_header_that_would_take_much_memory_is_damage(target):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 1 << 20
    with pytest.raises(DamageError, match="is damaged") as caught:
        extracted(name.tobuf(tarfile.GNU_FORMAT) + b"x" * (1 << 20), target)
    assert "a header of 1048576 bytes" in caught.value.detail


def test_a_large_file_begins_to_go_to_disk_while_it_is_written(target, monkeypatch):
    begun = []
    monkeypatch.setattr("wal_e.tar.destination.start_writeback", lambda _fd, offset, length: begun.append((offset, length)))
    destination = Destination(str(target), frozenset(), False)
    fd = destination.open_file("large")
    for _ in range(20 * 4):
        destination.write(fd, bytes(256 * 1024))
    os.close(fd)
    assert begun == [(0, 8 << 20), (8 << 20, 8 << 20)]


def test_gnu_tar_reads_what_is_written(source, target):
    (source / "a").mkdir()
    (source / "a" / ("n" * 150)).write_bytes(b"content")
    data, _ = written(source, [entry("a", "directory", mode=0o700), entry("a/" + "n" * 150), entry("link", "symlink", target="/etc/pg.conf")])
    subprocess.run(["tar", "-x", "-C", str(target)], input=data, check=True)
    assert (target / "a" / ("n" * 150)).read_bytes() == b"content"
    assert os.readlink(target / "link") == "/etc/pg.conf"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_the_original_writes_is_read(target, format):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|", format=format) as archive:
        root = tarfile.TarInfo("")
        root.type, root.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(root)
        info = tarfile.TarInfo("base/1/" + "é" * 80)
        info.size, info.mtime = 5, 1_600_000_000.123
        archive.addfile(info, io.BytesIO(b"hello"))
    members, _ = extracted(stream.getvalue(), target)
    assert [member.path for member in members] == ["", "base/1/" + "é" * 80]
    assert (target / "base" / "1" / ("é" * 80)).read_bytes() == b"hello"


def test_a_vanished_file_is_left_out(source):
    (source / "there").write_bytes(b"x")
    _, members = written(source, [entry("gone"), entry("there")])
    assert [member.path for member in members] == ["there"]


def test_a_file_that_grew_is_taken_with_the_size_it_was_opened_with(source, target):
    (source / "grows").write_bytes(b"a" * 1000)
    growing = PartitionWriter(str(source), [entry("grows", size=10)], FREE, lambda _: (source / "grows").write_bytes(b"a" * 100_000))
    stream = Pipe()
    growing.write(stream)
    extracted(stream.getvalue(), target)
    assert (target / "grows").read_bytes() == b"a" * 1000


def test_a_file_that_shrinks_while_it_is_read_is_filled_with_zeros(source, target):
    (source / "shrinks").write_bytes(b"a" * 1_000_000)

    def cut(_):
        os.truncate(source / "shrinks", 300_000)

    stream = Pipe()
    writer = PartitionWriter(str(source), [entry("shrinks"), entry("shrinks2")], FREE, cut)
    (source / "shrinks2").write_bytes(b"b")
    writer.write(stream)
    members, _ = extracted(stream.getvalue(), target)
    content = (target / "shrinks").read_bytes()
    assert len(content) == 1_000_000
    assert content == b"a" * (1_000_000 - content.count(0)) + bytes(content.count(0))
    assert content.count(0) >= 600_000
    assert members == writer.members
    assert (target / "shrinks2").read_bytes() == b"b"


def test_a_link_in_the_place_of_a_file_is_not_followed(source):
    (source / "link").symlink_to("/etc/passwd")
    with pytest.raises(LocalFileError, match="link"):
        written(source, [entry("link")])


@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "a/../../evil", "a//b", "./a", "a/./b"])
def test_hostile_names_are_refused(target, name):
    info = tarfile.TarInfo(name)
    info.size = 4
    data = info.tobuf(tarfile.GNU_FORMAT) + b"evil".ljust(512, b"\0") + bytes(1024)
    with pytest.raises(DamageError, match="unsafe name"):
        extracted(data, target)
    assert list(target.parent.rglob("evil")) == []


def test_nothing_is_written_through_a_link_from_the_tar(target, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = tarfile.TarInfo("base")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    info = tarfile.TarInfo("base/evil")
    info.size = 4
    data = link.tobuf() + info.tobuf() + b"evil".ljust(512, b"\0") + bytes(1024)
    with pytest.raises((DamageError, LocalFileError)):
        extracted(data, target)
    assert list(outside.iterdir()) == []


def test_a_file_does_not_replace_what_a_link_leads_to(target, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    link = tarfile.TarInfo("x")
    link.type, link.linkname = tarfile.SYMTYPE, str(victim)
    info = tarfile.TarInfo("x")
    info.size = 4
    with pytest.raises(LocalFileError):
        extracted(link.tobuf() + info.tobuf() + b"evil".ljust(512, b"\0") + bytes(1024), target)
    assert victim.read_bytes() == b"precious"


def test_tablespace_links_of_this_restore_are_followed(source, target, tmp_path):
    location = tmp_path / "fast disk"
    location.mkdir()
    (target / "pg_tblspc").mkdir()
    (target / "pg_tblspc" / "16400").symlink_to(location)
    (source / "pg_tblspc" / "16400" / "PG_15_1").mkdir(parents=True)
    (source / "pg_tblspc" / "16400" / "PG_15_1" / "f").write_bytes(b"x")
    entries = [entry("pg_tblspc", "directory", mode=0o700), entry("pg_tblspc/16400/PG_15_1", "directory", mode=0o700), entry("pg_tblspc/16400/PG_15_1/f")]
    data, _ = written(source, entries)
    extracted(data, target, frozenset({"pg_tblspc/16400"}))
    assert (location / "PG_15_1" / "f").read_bytes() == b"x"


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_other_kinds_of_members_are_refused(target, kind):
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, "y"
    with pytest.raises(DamageError, match="part_00000000"):
        extracted(info.tobuf() + bytes(1024), target)


def test_pg_control_has_another_name_until_it_is_placed(target):
    stream = Pipe()
    write_contents(stream, [(entry(CONTROL), b"control")])
    _, destination = extracted(stream.getvalue(), target)
    assert not (target / CONTROL).exists()
    assert (target / HELD_CONTROL).exists()
    destination.place_control()
    assert (target / CONTROL).read_bytes() == b"control"


def test_a_backup_without_pg_control_is_damage(target):
    (target / "global").mkdir()
    with pytest.raises(DamageError, match="no pg_control"):
        Destination(str(target), frozenset(), False).place_control()


def test_a_tar_cut_within_a_member_is_damage(source, target):
    (source / "f").write_bytes(b"x" * 5000)
    data, _ = written(source, [entry("f")])
    with pytest.raises(DamageError, match="part_00000000"):
        extracted(data[:3000], target)


def test_a_broken_header_is_not_the_end(source, target):
    for name in "ab":
        (source / name).write_bytes(name.encode() * 700)
    data, _ = written(source, [entry("a"), entry("b")])
    broken = bytearray(data)
    broken[512 + 1024 + 3] ^= 0xFF
    with pytest.raises(DamageError, match="broken header"):
        extracted(bytes(broken), target)


def test_a_throttle_pauses_for_as_long_as_the_bytes_may_take():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    throttle = Throttle(1000, sleep, lambda: now[0])
    for _ in range(5):
        throttle.spend(500)
    assert sum(slept) == pytest.approx(2.5)


def walked(sizes):
    return [entry("", "directory"), *(entry(f"f{number:05d}", size=size) for number, size in enumerate(sizes))]


@given(st.lists(st.integers(0, 3 * partition.MAX_BYTES // 2), max_size=60), st.integers(1, 8))
def test_every_file_is_in_exactly_one_partition(sizes, lanes):
    entries = walked(sizes)
    planned = list(partition.partitions(partition.survey(entries), lambda: iter(entries), lanes))
    assert [part.number for part in planned] == list(range(len(planned)))
    assert sorted(one.path for part in planned for one in part.entries) == sorted(one.path for one in entries)
    assert planned[0].entries[0].path == ""


@given(st.lists(st.integers(0, partition.MAX_BYTES), max_size=60), st.integers(1, 8))
def test_partitions_are_full_but_not_overfull(sizes, lanes):
    entries = walked(sizes)
    full = partition.target_bytes(sum(sizes), lanes)
    assert partition.MIN_BYTES <= full <= partition.MAX_BYTES
    for part in partition.partitions(partition.survey(entries), lambda: iter(entries), lanes):
        filled = [one.size for one in part.entries if one.size]
        assert len(filled) <= 1 or sum(filled) <= full


def test_large_files_go_first_the_largest_of_them_first_of_all():
    entries = walked([1, 900 << 20, 5, 1000 << 20, 20 << 20, 3])
    planned = list(partition.partitions(partition.survey(entries), lambda: iter(entries), 2))
    order = [one.size for part in planned for one in part.entries]
    assert order == [0, 1000 << 20, 900 << 20, 20 << 20, 1, 5, 3]


def test_a_partition_has_no_more_members_than_the_original_allows():
    entries = walked([0] * 20_000)
    assert max(len(part.entries) for part in partition.partitions(partition.survey(entries), lambda: iter(entries), 4)) == 6144


def test_files_that_are_not_of_pages_share_no_partition_with_those_that_are_unless_one_holds_all():
    relations = [entry(f"base/5/{number}", size=8 << 20) for number in range(20)]
    others = [entry(name, size=100) for name in ("PG_VERSION", "base/5/PG_VERSION", "base/5/pg_filenode.map", "postgresql.auto.conf")]
    walk = [entry("", "directory"), entry("base/5", "directory"), *sorted(relations + others), entry("base/5/9.1", size=30 << 20)]
    planned = [{one.path for one in part.entries} for part in partition.partitions(partition.survey(walk), lambda: iter(walk), 1)]
    assert planned[-1] == {one.path for one in others} | {"base/5"}
    assert len(planned) > 2
    few = [one for one in walk if one.size < 1000]
    assert len(list(partition.partitions(partition.survey(few), lambda: iter(few), 1))) == 1


def test_the_data_directory_comes_first_even_where_other_files_fill_a_partition_before():
    walk = [entry("", "directory"), *(entry(f"aaa/{number}") for number in range(7000)), *(entry(f"base/5/{number}", size=8 << 20) for number in range(9))]
    planned = list(partition.partitions(partition.survey(walk), lambda: iter(walk), 1))
    assert [part.number for part in planned] == list(range(len(planned)))
    assert planned[0].entries[0].path == ""
    assert max(len(part.entries) for part in planned) <= partition.MAX_MEMBERS
    assert sorted(one.path for part in planned for one in part.entries) == sorted(one.path for one in walk)


def test_files_that_come_and_go_between_the_walks_do_no_harm():
    first = walked([20 << 20, 30 << 20])
    second = [*walked([20 << 20]), entry("new", size=1 << 30)]
    planned = list(partition.partitions(partition.survey(first), lambda: iter(second), 1))
    assert sorted(one.path for part in planned for one in part.entries) == ["", "f00000", "f00001", "new"]


@pytest.mark.parametrize("name", ["pg_wal", "pg_xlog"])
def test_a_link_to_a_servers_wal_becomes_an_empty_directory(target, tmp_path, name):
    (tmp_path / "live").mkdir()
    data, _ = written(tmp_path, [entry(name, "symlink", target=str(tmp_path / "live"))])
    _, destination = extracted(data, target)
    assert not (target / name).is_symlink()
    assert (target / name).is_dir()
    assert str(tmp_path / "live") in destination.notices[0]
