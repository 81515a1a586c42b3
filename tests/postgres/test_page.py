"""Page checksums: real pages, a plain computation of the same, names of relation files, pages that change under the reader."""

from __future__ import annotations

import builtins
import gzip
import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wal_e.errors import ConfigurationError, LocalFileError
from wal_e.postgres.page import DamagedPages, LivePages, PageRanges, PageScan, RelationFile, page_lsn, relation_file, require_numpy
from wal_e.postgres.page_checksum import checksums, wrong_pages
from wal_e.postgres.wal import Lsn

GOLDEN = gzip.decompress((Path(__file__).parent / "golden" / "pages-15.gz").read_bytes())
BLOCKS = (2, 0, 0, 40, 0, 1)
STORED = (34595, 12163, 7610, 57974, 43916, 62427)
SIZE = 8192
START = Lsn(0x2000000)
PAGES = [GOLDEN[at : at + SIZE] for at in range(0, len(GOLDEN), SIZE)]
HEAP = PAGES[3]


def plain_checksum(page: bytes, block: int) -> int:
    """The same after checksum_impl.h, word by word."""
    offsets = """5B1F36E9 B8525960 02AB50AA 1DE66D2A 79FF467A 9BB9F8A3 217E7CD2 83E13D2C F8D4474F E39EB970 42C6AE16 993216FA 7B093B5D 98DAFF3C F718902A
    0B1C9CDB E58F764B 187636BC 5D7B3BB1 E73DE7DE 92BEC979 CCA6C0B2 304A0979 85AA43D4 783125BB 6CA8EAA2 E407EAC6 4B5CFC3E 9FBF8C76 15CA20BE F2CA9FD3 959BD756"""
    sums = [int(offset, 16) for offset in offsets.split()]
    page = page[:8] + b"\0\0" + page[10:]
    words = struct.unpack(f"<{len(page) // 4}I", page)
    for at in range(0, len(words) + 64, 32):
        for column in range(32):
            value = words[at + column] if at < len(words) else 0
            mixed = sums[column] ^ value
            sums[column] = (mixed * 16777619 & 0xFFFFFFFF) ^ (mixed >> 17)
    folded = block
    for one in sums:
        folded ^= one
    return folded % 65535 + 1


def with_checksum(page: bytes, block: int) -> bytes:
    return page[:8] + struct.pack("<H", int(checksums(page, len(page), block)[0])) + page[10:]


def at_lsn(page: bytes, lsn: int, block: int) -> bytes:
    """A page that says it was changed at a position, with the checksum of that."""
    return with_checksum(struct.pack("<II", lsn >> 32, lsn & 0xFFFFFFFF) + page[8:], block)


def flipped(page: bytes, at: int = 4000) -> bytes:
    return page[:at] + bytes([page[at] ^ 1]) + page[at + 1 :]


@pytest.mark.parametrize(("page", "block", "stored"), [*zip(PAGES, BLOCKS, STORED, strict=True)])
def test_the_checksums_of_real_pages_are_those_that_the_server_wrote(page, block, stored):
    assert struct.unpack_from("<H", page, 8)[0] == stored
    assert list(checksums(page, SIZE, block)) == [stored] == [plain_checksum(page, block)]
    assert wrong_pages(page, SIZE, block) == []
    assert wrong_pages(page, SIZE, block + 1) == [0]


@settings(max_examples=15)
@given(st.sampled_from([1024, 8192, 32768]), st.integers(1, 4), st.integers(0, 2**32 - 8), st.integers())
def test_many_pages_at_once_have_the_checksums_of_a_plain_computation(size, number, block, seed):
    data = random.Random(seed).randbytes(size * number)
    assert list(checksums(data, size, block)) == [plain_checksum(data[at * size : (at + 1) * size], block + at) for at in range(number)]


def test_any_flipped_bit_of_a_page_is_found():
    for at in [*range(32), *range(32, SIZE, 509), SIZE - 1]:
        assert wrong_pages(flipped(HEAP, at), SIZE, 40) == [0], at


def test_the_wrong_ones_among_many_are_named():
    pages = [with_checksum(HEAP, block) for block in range(100, 140)]
    for index in (0, 7, 8, 39):
        pages[index] = flipped(pages[index])
    assert wrong_pages(b"".join(pages) + b"half a page", SIZE, 100) == [0, 7, 8, 39]


def test_a_page_of_zeros_is_good_and_one_without_data_must_be_of_zeros():
    assert wrong_pages(bytes(3 * SIZE), SIZE, 0) == []
    no_upper = with_checksum(HEAP[:14] + b"\0\0" + HEAP[16:], 0)
    assert wrong_pages(no_upper, SIZE, 0) == [0]
    assert wrong_pages(bytes(SIZE - 1) + b"\1", SIZE, 0) == [0]
    assert wrong_pages(b"", SIZE, 0) == wrong_pages(b"short", SIZE, 0) == []


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("base/5/16404", RelationFile("base/5/16404", 0)),
        ("base/5/16404.3", RelationFile("base/5/16404", 3)),
        ("base/5/16404_fsm", RelationFile("base/5/16404_fsm", 0)),
        ("base/5/16404_vm.12", RelationFile("base/5/16404_vm", 12)),
        ("base/5/16404_init", RelationFile("base/5/16404_init", 0)),
        ("global/1260", RelationFile("global/1260", 0)),
        ("pg_tblspc/16400/PG_15_202209061/5/16404.1", RelationFile("pg_tblspc/16400/PG_15_202209061/5/16404", 1)),
    ],
)
def test_files_of_relations_are_known_by_their_names(path, file):
    assert relation_file(path) == file


@pytest.mark.parametrize(
    "path",
    [
        "global/pg_control", "global/pg_filenode.map", "base/5/pg_filenode.map", "base/5/PG_VERSION", "base/5/pg_internal.init", "pg_xact/0000", "PG_VERSION",
        "base/5/t3_16404", "base/5/16404_old", "base/5/16404.", "base/5/16404.x", "base/5/16404.1_fsm", "base/5/16404/16405", "pg_wal/000000010000000000000001",
        "base/16404", "pg_multixact/offsets/0000", "pg_tblspc/16400/5/16404", "global/1260\n", "1260",
    ],
)  # fmt: skip
def test_other_files_have_no_pages(path):
    assert relation_file(path) is None


def test_blocks_count_through_all_segments():
    assert RelationFile("base/5/1", 3).first_block(8192) == 3 * 131072
    assert RelationFile("base/5/1", 1).first_block(32768) == 32768


def test_a_page_says_up_to_where_it_was_changed():
    assert page_lsn(struct.pack("<II", 0x16, 0xB374D848)) == Lsn.parse("16/B374D848")


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=12))
@settings(max_examples=20)
def test_a_scan_finds_the_same_however_the_bytes_are_cut(cuts):
    pages = [with_checksum(HEAP, block) for block in range(5, 15)]
    pages[3], pages[9] = flipped(pages[3]), flipped(pages[9])
    data, at, met = b"".join(pages), 0, []
    scan = PageScan(5, SIZE, lambda block, page: met.append((block, page)))
    for cut in cuts:
        scan.feed(data[at : at + cut])
        at += cut
    scan.feed(data[at:])
    assert met == [(8, pages[3]), (14, pages[9])]
    assert scan.pages == 10


def test_ranges_join_whatever_comes_in_any_order_and_read_like_a_sentence():
    ranges = PageRanges()
    for relation, first, last in (("b", 5, 6), ("a", 9, 9), ("b", 7, 7), ("b", 1, 2), ("b", 2, 3), ("a", 9, 9)):
        ranges.add(relation, first, last)
    other = PageRanges()
    other.extend(ranges.damaged())
    assert ranges.damaged() == other.damaged() == (DamagedPages("a", ((9, 9),)), DamagedPages("b", ((1, 3), (5, 7))))
    assert [str(one) for one in ranges.damaged()] == ["a, block 9", "b, blocks 1 to 3, 5 to 7"]
    assert [one.number for one in ranges.damaged()] == [1, 6]


class Live:
    """A file of pages that is read while something happens to it."""

    def __init__(self, path: Path, *pages: bytes) -> None:
        self.path = path
        path.write_bytes(b"".join(pages))
        self.live = LivePages(SIZE, START)

    def read(self, then=lambda _path: None, name: str = "base/5/16404") -> LivePages:
        """Read all of it, let something happen, and only then look at the pages."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            data = os.read(fd, 1 << 20)
            then(self.path)
            scan = self.live.scan(name, fd)
            if scan:
                scan.feed(data)
        finally:
            os.close(fd)
        return self.live


OLD = [at_lsn(HEAP, START - 8, block) for block in range(4)]


def test_a_page_that_stays_wrong_is_damaged(tmp_path):
    live = Live(tmp_path / "f", OLD[0], flipped(OLD[1]), OLD[2]).read()
    assert live.damaged.damaged() == (DamagedPages("base/5/16404", ((1, 1),)),)
    assert (live.suspects, live.pages) == ([], 3)


def test_blocks_of_a_later_segment_are_read_again_at_their_place_in_the_file(tmp_path):
    first = 2 * 131072
    pages = [with_checksum(OLD[0], first), flipped(with_checksum(OLD[0], first + 1))]
    live = Live(tmp_path / "f", *pages).read(name="base/5/16404.2")
    assert live.damaged.damaged() == (DamagedPages("base/5/16404", ((first + 1, first + 1),)),)


def test_a_torn_page_that_is_another_one_a_moment_later_is_not_damaged(tmp_path):
    newer = at_lsn(HEAP[:6000] + b"new".ljust(SIZE - 6000, b"!"), START + 800, 1)
    torn = OLD[1][:4096] + newer[4096:]
    assert wrong_pages(torn, SIZE, 1) == [0]
    live = Live(tmp_path / "f", OLD[0], torn).read(then=lambda path: path.write_bytes(OLD[0] + newer))
    assert (live.damaged.damaged(), live.suspects) == ((), [])


def test_a_page_of_a_file_that_was_cut_meanwhile_is_not_damaged(tmp_path):
    live = Live(tmp_path / "f", OLD[0], flipped(OLD[1])).read(then=lambda path: os.truncate(path, SIZE))
    assert (live.damaged.damaged(), live.suspects) == ((), [])


def test_a_wrong_page_that_is_newer_than_the_start_is_left_to_the_end(tmp_path):
    newer = flipped(at_lsn(HEAP, START, 0))
    live = Live(tmp_path / "f", newer).read()
    assert live.damaged.damaged() == ()
    assert [(one.block, one.lsn) for one in live.suspects] == [(0, START)]


def test_a_disk_full_of_garbage_is_no_race(tmp_path, monkeypatch):
    monkeypatch.setattr("wal_e.postgres.page.MAX_SUSPECTS", 3)
    live = Live(tmp_path / "f", *[b"\xee" * SIZE] * 10).read()
    assert len(live.suspects) == 3
    assert live.damaged.damaged()[0].number == 7


def test_files_without_pages_are_not_looked_at(tmp_path):
    live = Live(tmp_path / "f", b"\xee" * SIZE).read(name="pg_xact/0000")
    assert (live.damaged.damaged(), live.suspects, live.pages) == ((), [], 0)


def test_a_disk_that_does_not_give_the_page_again_is_told(tmp_path, monkeypatch):
    def fails(*_):
        raise OSError(5, "Input/output error")

    live = Live(tmp_path / "f", flipped(OLD[0]))
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(LocalFileError, match="base/5/16404"):
        live.read()


def test_without_numpy_it_is_said_how_to_get_it(monkeypatch):
    require_numpy()
    real = builtins.__import__

    def absent(name, *args, **options):
        if name == "numpy":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigurationError, match="numpy is not installed") as told:
        require_numpy()
    assert "pip install 'wal-e[verify]'" in told.value.hint


def test_numpy_does_not_wrap_with_a_warning():
    with np.errstate(all="raise"):
        assert wrong_pages(b"\xff" * SIZE, SIZE, 2**32 - 1) == [0]
