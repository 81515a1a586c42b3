import pytest
from hypothesis import given
from hypothesis import strategies as st

from wal_e.blobstore.memory import MemoryStore
from wal_e.blobstore.wrappers import Metered, ReadOnly, Retrying
from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreUnavailable, UsageError
from wal_e.retry import Effort, Policy


class Flaky(MemoryStore):
    """A memory store whose next calls fail, and whose reads break after so many bytes."""

    def __init__(self, failures=0, breaks=()):
        super().__init__()
        self.failures = failures
        self.breaks = list(breaks)
        self.calls = []

    def _call(self, name):
        self.calls.append(name)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("away")

    def put(self, key, chunks):
        self._call("put")
        return super().put(key, chunks)

    def create(self, key, chunks):
        self._call("create")
        return super().create(key, chunks)

    def get(self, key, *, start=0, length=None):
        self._call(("get", start, length))
        content = b"".join(super().get(key, start=start, length=length))
        whole = self.breaks.pop(0) if self.breaks else len(content)
        for offset in range(0, min(whole, len(content)), 3):
            yield content[offset : min(offset + 3, whole)]
        if whole < len(content):
            raise StoreUnavailable("broken")

    def stat(self, key):
        self._call("stat")
        return super().stat(key)

    def list(self, prefix=""):
        self._call("list")
        yield from super().list(prefix)

    def delete(self, keys):
        self._call("delete")
        super().delete(keys)


def retrying(store, attempts=4):
    notices = []
    wrapped = Retrying(
        store, Effort(Policy(attempts, 60), Policy(attempts, 60)), sleep=lambda _: None, notice=lambda error, delay_s: notices.append(str(error))
    )
    return wrapped, notices


def filled(**options):
    store = Flaky(**options)
    MemoryStore.put(store, "key", [b"0123456789"])
    MemoryStore.put(store, "other", [b"abc"])
    return store


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("stat", lambda store: store.stat("key").size == 10),
        ("list", lambda store: [blob.key for blob in store.list()] == ["key", "other"]),
        ("list", lambda store: [blob.key for blob in store.list("o")] == ["other"]),
        ("list", lambda store: list(store.list("absent")) == []),
        ("delete", lambda store: store.delete(iter(["key"])) is None),
        ("put", lambda store: store.put("key", [b"1", b"2"]) == 2),
        ("put", lambda store: store.put("key", (b"1", b"2")) == 2),
        ("create", lambda store: store.create("new", [b"1"]) == 1),
        ("create", lambda store: store.create("new", ()) == 0),
    ],
)
def test_what_can_be_replayed_is_called_again(name, call):
    store = filled(failures=3)
    wrapped, notices = retrying(store)
    assert call(wrapped)
    assert store.calls == [name] * 4
    assert notices == ["away"] * 3


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.stat("key"),
        lambda store: list(store.list()),
        lambda store: list(store.get("key")),
        lambda store: store.delete(["key"]),
        lambda store: store.put("key", [b""]),
        lambda store: store.create("new", [b""]),
    ],
)
def test_trouble_that_stays_is_raised(call):
    store = filled(failures=99)
    wrapped, _ = retrying(store)
    with pytest.raises(StoreUnavailable):
        call(wrapped)
    assert len(store.calls) == 4


@pytest.mark.parametrize("verb", ["put", "create"])
def test_a_stream_is_stored_by_one_call_only(verb):
    store = filled(failures=1)
    wrapped, notices = retrying(store)
    with pytest.raises(StoreUnavailable):
        getattr(wrapped, verb)("new", iter([b"1"]))
    assert store.calls == [verb]
    assert notices == []
    assert getattr(wrapped, verb)("new", iter([b"1"])) == 1


def test_all_keys_are_deleted_when_the_first_call_used_up_the_iterator():
    store = filled()
    tried = []
    erase = MemoryStore.delete

    def delete(keys):
        tried.append(list(keys))
        if len(tried) == 1:
            raise StoreUnavailable("away")
        erase(store, tried[-1])

    store.delete = delete
    retrying(store)[0].delete(iter(["key", "other"]))
    assert tried == [["key", "other"]] * 2
    assert list(store.list()) == []


def test_a_listing_that_began_is_not_begun_again():
    class Breaking(MemoryStore):
        def list(self, prefix=""):
            self.put("key", [b""])
            yield self.stat("key")
            raise StoreUnavailable("broken")

    blobs = retrying(Breaking())[0].list()
    assert next(blobs).key == "key"
    with pytest.raises(StoreUnavailable):
        next(blobs)


def test_a_broken_read_is_resumed_where_it_stopped():
    store = filled(breaks=[4, 0, 3])
    wrapped, notices = retrying(store)
    assert b"".join(wrapped.get("key")) == b"0123456789"
    assert store.calls == [("get", 0, None), ("get", 4, None), ("get", 4, None), ("get", 7, None)]
    assert notices == ["broken"] * 3


def test_a_broken_range_is_resumed_for_what_is_left_of_it():
    store = filled(breaks=[3])
    assert b"".join(retrying(store)[0].get("key", start=1, length=6)) == b"123456"
    assert store.calls == [("get", 1, 6), ("get", 4, 3)]


@given(
    content=st.binary(min_size=20, max_size=40),
    start=st.integers(0, 45),
    length=st.none() | st.integers(0, 45),
    breaks=st.lists(st.integers(1, 10), max_size=10),
)
def test_a_read_broken_anywhere_gives_the_same_bytes(content, start, length, breaks):
    store = Flaky(breaks=breaks)
    MemoryStore.put(store, "key", [content])
    assert b"".join(retrying(store)[0].get("key", start=start, length=length)) == b"".join(MemoryStore.get(store, "key", start=start, length=length))


def test_attempts_count_anew_from_each_chunk():
    store = filled(breaks=[1] * 9)
    assert b"".join(retrying(store, attempts=2)[0].get("key")) == b"0123456789"


def test_absence_is_not_retried():
    store = filled()
    wrapped, notices = retrying(store)
    with pytest.raises(BlobNotFound):
        next(wrapped.get("absent"))
    with pytest.raises(BlobNotFound):
        wrapped.stat("absent")
    with pytest.raises(BlobExists):
        wrapped.create("key", [b""])
    assert notices == []


def test_a_blob_deleted_while_it_is_read_is_not_reported_as_absent():
    store = filled(breaks=[4])
    chunks = retrying(store)[0].get("key")
    next(chunks)
    MemoryStore.delete(store, ["key"])
    with pytest.raises(StoreError, match="was deleted while it was read") as caught:
        list(chunks)
    assert not isinstance(caught.value, BlobNotFound)


def test_closing_a_read_closes_the_stream_within():
    closed = []

    class Watched(MemoryStore):
        def get(self, key, *, start=0, length=None):
            try:
                yield b"1"
                yield b"2"
            finally:
                closed.append(key)

    chunks = retrying(Watched())[0].get("key")
    next(chunks)
    chunks.close()
    assert closed == ["key"]


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.put("key", [b"x"]),
        lambda store: store.create("new", [b"x"]),
        lambda store: store.delete(["key"]),
    ],
)
def test_a_read_only_store_refuses_to_write(write):
    store = filled()
    with pytest.raises(UsageError, match="this store is opened read-only"):
        write(ReadOnly(store))
    assert b"".join(MemoryStore.get(store, "key")) == b"0123456789"
    assert [blob.key for blob in store.list()] == ["key", "other"]


def test_a_read_only_store_reads():
    store = ReadOnly(filled())
    assert b"".join(store.get("key", start=2, length=3)) == b"234"
    assert store.stat("key").size == 10
    assert [blob.key for blob in store.list("k")] == ["key"]


@pytest.mark.parametrize("wrap", [ReadOnly, lambda store: retrying(store)[0]])
def test_a_wrapped_store_keeps_its_address(wrap):
    assert wrap(MemoryStore()).url_of("key") == MemoryStore().url_of("key")


def test_what_passes_is_counted():
    store = Metered(MemoryStore())
    assert store.put("a", [b"123", b"45"]) == 5
    assert store.create("b", [b"1"]) == 1
    assert b"".join(store.get("a", start=1, length=3)) == b"234"
    assert store.stat("a").size == 5
    assert [blob.key for blob in store.list()] == ["a", "b"]
    store.delete(["a"])
    assert (store.calls, store.sent_bytes, store.received_bytes) == (6, 6, 3)
    with pytest.raises(BlobExists):
        store.create("b", [b"2"])
    assert store.sent_bytes == 6


def test_tidying_up_gives_up_within_seconds():
    now, store = 0.0, filled(failures=99)

    def sleep(seconds):
        nonlocal now
        now += seconds

    patient = Effort(Policy(1000, 1000), Policy(1000, 1000))
    wrapped = Metered(Retrying(store, patient, sleep=sleep, clock=lambda: now, notice=lambda *_: None))
    for call in (lambda: wrapped.hasty().stat("key"), lambda: wrapped.hasty().delete(["key"])):
        began = now
        with pytest.raises(StoreUnavailable):
            call()
        assert now - began <= 10
    assert store.calls == ["stat"] * 3 + ["delete"] * 3
    with pytest.raises(UsageError):
        ReadOnly(wrapped).hasty().delete(["key"])
