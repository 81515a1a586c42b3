"""What every store does, whatever is behind it."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wal_e.blobstore.base import SelfWriting
from wal_e.errors import BlobExists, BlobNotFound

pytest_plugins = ("fix_stores",)

MIB = 1 << 20

same_store = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None, max_examples=25)

names = st.text(alphabet="ab-.0/é", min_size=1, max_size=6)


def is_key(text):
    return all(part and not part.startswith(".") for part in text.split("/"))


def without_directories(keys):
    return {key for key in keys if not any(other.startswith(key + "/") for other in keys)}


def read(store, key, **part):
    return b"".join(store.get(key, **part))


def keys(store, prefix=""):
    return [blob.key for blob in store.list(prefix)]


@same_store
@given(chunks=st.lists(st.binary(max_size=2000), max_size=8))
def test_what_was_put_is_got_however_it_was_cut(store, chunks):
    assert store.put("dir/blob", iter(chunks)) == len(b"".join(chunks))
    assert read(store, "dir/blob") == b"".join(chunks)


@same_store
@given(content=st.binary(max_size=60), start=st.integers(0, 70), length=st.none() | st.integers(0, 70))
def test_a_range_is_a_slice(store, content, start, length):
    store.put("blob", [content])
    assert read(store, "blob", start=start, length=length) == content[start : None if length is None else start + length]


def test_a_range_past_the_end_yields_nothing(store):
    store.put("blob", [b"12345"])
    for start, length in [(5, None), (5, 1), (9, 3), (2**40, None), (0, 0), (3, 0)]:
        assert list(store.get("blob", start=start, length=length)) == []
    assert list(store.get("blob", start=3, length=2**40)) == [b"45"]


class Text(SelfWriting):
    """Chunks that can write themselves; ``way`` tells which way was taken."""

    way = ""

    def __init__(self, fails=False):
        self.fails = fails

    def __iter__(self):
        self.way = "chunks"
        yield b"one "
        self.end()
        yield b"two"

    def write_to(self, descriptor):
        self.way = "file"
        os.write(descriptor, b"one ")
        self.end()
        os.write(descriptor, b"two")

    def end(self):
        if self.fails:
            raise LookupError


@pytest.mark.parametrize("verb", ["put", "create"])
def test_what_can_write_itself_is_stored_and_does_so_where_blobs_are_files(store, verb):
    text = Text()
    assert getattr(store, verb)("wal_005/blob", text) == 7
    assert read(store, "wal_005/blob") == b"one two"
    assert text.way == ("chunks" if store.open_file("wal_005/blob") is None else "file")


@pytest.mark.parametrize("verb", ["put", "create"])
def test_nothing_is_stored_when_what_writes_itself_raises(store, verb):
    with pytest.raises(LookupError):
        getattr(store, verb)("blob", Text(fails=True))
    assert keys(store) == []


def test_a_blob_that_is_a_file_can_be_opened(store):
    store.put("blob", [b"content"])
    descriptor = store.open_file("blob")
    if descriptor is not None:
        try:
            assert os.pread(descriptor, 100, 0) == b"content"
        finally:
            os.close(descriptor)
        with pytest.raises(BlobNotFound):
            store.open_file("absent")


def test_an_empty_blob_is_a_blob(store):
    assert store.put("none", []) == 0
    assert store.create("dir/none", iter([b""])) == 0
    assert list(store.get("none")) == []
    assert store.stat("none").size == 0
    assert keys(store) == ["dir/none", "none"]


def test_put_replaces(store):
    store.put("key", [b"a longer content"])
    assert store.put("key", [b"new"]) == 3
    assert read(store, "key") == b"new"
    assert store.stat("key").size == 3


def test_stat_and_list_say_the_same(store):
    before = datetime.now(UTC)
    store.put("dir/a", [b"1"])
    store.create("dir/b", [b"22"])
    store.put("dir/large", (b"x" * MIB for _ in range(18)))
    listed = list(store.list())
    assert [(blob.key, blob.size) for blob in listed] == [("dir/a", 1), ("dir/b", 2), ("dir/large", 18 * MIB)]
    for blob in listed:
        found = store.stat(blob.key)
        assert (found.key, found.size) == (blob.key, blob.size)
        assert abs(found.modified - blob.modified) < timedelta(seconds=1.5)  # HTTP dates are whole seconds
        assert blob.modified.utcoffset() == timedelta(0)
        assert abs(blob.modified - before) < timedelta(minutes=1)


def test_create_stores_under_a_free_key(store):
    assert store.create("wal_005/1.lzo", iter([b"1", b"2"])) == 2
    assert read(store, "wal_005/1.lzo") == b"12"


def test_create_leaves_what_is_there(store):
    store.put("key", [b"old"])
    with pytest.raises(BlobExists):
        store.create("key", [b"new"])
    assert read(store, "key") == b"old"
    assert keys(store) == ["key"]


def test_create_looks_before_it_takes_all_of_a_large_blob(store):
    store.put("key", [b"old"])
    chunks = iter([b"x" * MIB] * 64)
    with pytest.raises(BlobExists):
        store.create("key", chunks)
    assert len(list(chunks)) > 40


def test_create_of_a_large_blob_stores_it_once(store):
    def chunks(content):
        return (content * MIB for _ in range(18))

    assert store.create("dir/large", chunks(b"a")) == 18 * MIB
    with pytest.raises(BlobExists):
        store.create("dir/large", chunks(b"b"))
    assert set(read(store, "dir/large")) == {ord("a")}


def test_create_of_a_large_blob_meets_one_that_came_meanwhile(store):
    def chunks():
        yield from (b"x" * MIB for _ in range(20))
        store.create("dir/key", [b"theirs"])
        yield b"x" * MIB

    with pytest.raises(BlobExists):
        store.create("dir/key", chunks())
    assert read(store, "dir/key") == b"theirs"
    assert keys(store) == ["dir/key"]
    assert list(store.leftovers()) == []


def test_create_meets_a_blob_that_came_while_it_took_chunks(store):
    def chunks():
        yield b"mine"
        store.create("dir/key", [b"theirs"])

    with pytest.raises(BlobExists):
        store.create("dir/key", chunks())
    assert read(store, "dir/key") == b"theirs"
    assert keys(store) == ["dir/key"]


def test_of_many_creators_one_wins(store):
    def contend(key, me, start):
        def chunks():
            yield b"%d" % me
            start.wait(timeout=30)
            yield b"!" * 1000

        try:
            store.create(key, chunks())
        except BlobExists:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        for turn in range(5):
            key, start = f"race/{turn}", threading.Barrier(12)
            won = list(pool.map(contend, [key] * 12, range(12), [start] * 12))
            assert won.count(True) == 1
            assert read(store, key) == b"%d" % won.index(True) + b"!" * 1000


@pytest.mark.parametrize("size", [1, 20])
@pytest.mark.parametrize("error", [RuntimeError("the codec died"), OSError(28, "not the store's"), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("verb", ["put", "create"])
def test_nothing_is_stored_when_the_chunks_raise(store, verb, error, size):
    def chunks():
        yield from (b"x" * MIB for _ in range(size))
        raise error

    with pytest.raises(type(error)) as caught:
        getattr(store, verb)("dir/key", chunks())
    assert caught.value is error
    assert keys(store) == []
    assert list(store.leftovers()) == []
    with pytest.raises(BlobNotFound):
        store.stat("dir/key")


def test_the_old_blob_stays_when_the_new_chunks_raise(store):
    def chunks():
        yield b"new"
        raise RuntimeError

    store.put("key", [b"old"])
    with pytest.raises(RuntimeError):
        store.put("key", chunks())
    assert read(store, "key") == b"old"


@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_blob_is_invisible_until_it_is_whole(store, verb):
    def chunks():
        for count in range(20):
            yield b"x" * MIB
            if count % 9:
                continue
            assert keys(store) == []
            with pytest.raises(BlobNotFound):
                store.stat("dir/key")
            with pytest.raises(BlobNotFound):
                next(store.get("dir/key"))

    getattr(store, verb)("dir/key", chunks())
    assert keys(store) == ["dir/key"]


def test_the_old_blob_is_read_until_the_new_one_is_whole(store):
    def chunks(count):
        yield from (b"x" * MIB for _ in range(count))
        assert read(store, "key") == b"old"

    for count in (1, 20):
        store.put("key", [b"old"])
        store.put("key", chunks(count))
        assert read(store, "key") == b"x" * MIB * count


@pytest.mark.parametrize("key", ["absent", "dir/absent", "absent/below", "blob/below", "dir"])
def test_an_absent_key_is_not_found(store, key):
    store.put("blob", [b"1"])
    store.put("dir/blob", [b"1"])
    with pytest.raises(BlobNotFound):
        store.stat(key)
    with pytest.raises(BlobNotFound):
        next(store.get(key))
    with pytest.raises(BlobNotFound):
        list(store.get(key, start=5, length=1))


@pytest.mark.parametrize("key", ["", "/", "/abs", "dir/", "a//b", "..", "../up", "a/../b", ".", "a/./b", ".hidden", "dir/.hidden", "nul\0byte"])
def test_what_is_no_key_is_refused(store, key):
    for use in (
        lambda: store.put(key, [b"1"]),
        lambda: store.create(key, [b"1"]),
        lambda: next(store.get(key)),
        lambda: store.stat(key),
        lambda: store.delete([key]),
    ):
        with pytest.raises(ValueError, match="not a key"):
            use()


@pytest.mark.parametrize(
    "key", ["with space/ x ", "plus+plus", "per%20cent", "Größe/ünï/☃", "new\nline", "back\\slash", "-rf", "a=b&c?d#e", "~", "*", "base_000.000"]
)
def test_odd_keys_are_keys(store, key):
    store.create(key, [b"content"])
    assert read(store, key) == b"content"
    assert store.stat(key).key == key
    assert keys(store) == keys(store, key) == [key]
    store.delete([key])
    assert keys(store) == []


@same_store
@given(wanted=st.sets(names.filter(is_key), max_size=8).map(without_directories), prefix=st.text(alphabet="ab-.0/é", max_size=4))
def test_a_listing_is_every_key_with_the_prefix_in_byte_order(store, wanted, prefix):
    for key in wanted:
        store.put(key, [key.encode()])
    assert keys(store, prefix) == sorted((key for key in wanted if key.startswith(prefix)), key=str.encode)
    store.delete(wanted)
    assert keys(store) == []


def test_a_listing_orders_by_whole_key_not_by_directory(store):
    wanted = ["a-b/1", "a-c", "a.d", "a/b", "a/b-c", "a0"]
    for key in reversed(wanted):
        store.put(key, [b""])
    assert keys(store) == wanted
    assert keys(store, "a/") == ["a/b", "a/b-c"]
    assert keys(store, "a/b-") == ["a/b-c"]
    assert keys(store, "a") == wanted
    assert keys(store, "b") == keys(store, "a/b/") == keys(store, "/") == keys(store, "../") == keys(store, "./") == []


def test_deleting_during_a_listing_is_allowed(store):
    for name in range(5):
        store.put(f"dir{name}/blob", [b""])
    for blob in store.list():
        store.delete([blob.key])
    assert keys(store) == []


def test_delete_removes_many_and_passes_over_the_absent(store):
    for name in "abc":
        store.put(f"dir/{name}", [b"1"])
    store.delete(iter(["dir/a", "dir/absent", "absent/x", "dir/c", "dir/c", "dir/b/below", "dir"]))
    assert keys(store) == ["dir/b"]
    store.delete([])
    store.delete(["dir/b"])
    assert keys(store) == []


def test_a_deleted_key_is_free_again(store):
    store.create("dir/key", [b"1"])
    store.delete(["dir/key"])
    with pytest.raises(BlobNotFound):
        store.stat("dir/key")
    store.create("dir/key", [b"2"])
    assert read(store, "dir/key") == b"2"


def test_a_big_blob_streams_both_ways_in_bounded_chunks(store):
    piece = bytes(range(256)) * 1024
    assert store.put("big", (piece for _ in range(80))) == 20 * MIB
    sizes, digest = [], sha256()
    for chunk in store.get("big"):
        sizes.append(len(chunk))
        digest.update(chunk)
    assert digest.digest() == sha256(piece * 80).digest()
    assert max(sizes) <= 8 * MIB
    assert read(store, "big", start=20 * MIB - 3) == piece[-3:]
    assert read(store, "big", start=3 * MIB - 1, length=2 * MIB + 2) == (piece * 13)[MIB - 1 : 3 * MIB + 1]


def test_a_reader_that_began_before_a_replacement_reads_one_content_only(store):
    store.put("key", [b"a" * 3 * MIB])
    chunks = store.get("key")
    first = next(chunks)
    store.put("key", [b"b" * 3 * MIB])
    assert set(first + b"".join(chunks)) == {ord("a")}


def test_puts_and_deletes_in_one_directory_do_not_disturb_each_other(store):
    def work(me):
        key = f"deep/er/{me}"
        for turn in range(25):
            store.put(key, [b"%d" % turn])
            assert read(store, key) == b"%d" % turn
            store.delete([key])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert keys(store) == []


def test_an_address_names_the_prefix_and_the_key(store):
    assert store.url_of("dir/key") == store.url + "/dir/key"


def test_a_long_listing_stays_in_order(store):
    wanted = [f"wal_005/{number:024X}.lzo" for number in range(300)]
    for key in wanted[::7] + [key for index, key in enumerate(wanted) if index % 7]:
        store.put(key, [])
    assert keys(store) == keys(store, "wal_005/") == wanted
