"""What a store over an object service does around the requests: parts, retries, resumed reads, clean-up."""

import threading
import tracemalloc

import pytest
from fake_service import FakeService
from hypothesis import given
from hypothesis import strategies as st

from wal_e.blobstore import parts
from wal_e.blobstore.objects import ObjectStore
from wal_e.blobstore.parts import PART_BYTES, Cut
from wal_e.errors import BlobExists, BlobNotFound, DamageError, StoreError, StoreForbidden, StoreUnavailable
from wal_e.retry import Effort, Policy

MIB = 1 << 20


def away(times=1):
    return [StoreUnavailable("away") for _ in range(times)]


@pytest.fixture
def service():
    return FakeService()


@pytest.fixture
def store(service):
    policy = Policy(5, 60)
    return ObjectStore(service, Effort(policy, policy), 4, sleep=lambda _: None, notice=lambda *_: None)


def large(content=b"x", size=30):
    return (content * MIB for _ in range(size))


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 30), st.integers(1, 4))
def test_the_parts_of_a_stream_are_the_stream(chunks, part_bytes, doubling):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", part_bytes)
        patch.setattr(parts, "DOUBLING_PARTS", doubling)
        cut = Cut(chunks, 2 * part_bytes + 1)
        found = list(cut)
    content = b"".join(chunks)
    assert b"".join(part.data for part in found) == content
    assert [part.number for part in found] == list(range(len(found)))
    assert [part.offset for part in found] == [sum(len(part.data) for part in found[:number]) for number in range(len(found))]
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True]
    assert (cut.whole.size, cut.whole.parts) == (len(content), len(found))
    assert [len(part.data) for part in found[:-1]] == [part_bytes << (number // doubling) for number in range(len(found) - 1)]
    assert (len(found) == 1) == (len(content) <= 2 * part_bytes + 1)


def test_a_short_stream_is_one_request_and_a_long_one_parts(store, service):
    store.put("short", [b"x" * PART_BYTES])
    store.create("segment", [b"x" * 17 * MIB])
    assert service.log == ["write", "write"]
    store.put("long", [b"x" * PART_BYTES, b"x"])
    assert service.log[2:] == ["begin", "send", "send", "complete"]
    store.create("longer", [b"x" * 17 * MIB, b"x"])
    assert service.log[6:] == ["stat", "begin", "send", "send", "send", "complete"]
    assert (len(service.objects["long"][0]), len(service.objects["longer"][0])) == (PART_BYTES + 1, 17 * MIB + 1)


def test_a_stream_is_not_taken_faster_than_it_is_stored(store, service):
    gate, taken = threading.Event(), []

    def chunks():
        for number in range(100):
            taken.append(number)
            yield b"x" * MIB

    send = service.request

    def slow(kind, call):
        assert kind != "send" or gate.wait(30)
        return send(kind, call)

    service.request = slow
    writer = threading.Thread(target=store.put, args=("key", chunks()))
    writer.start()
    try:
        while service.sending < 4:
            pass
        assert service.most_sending == 4
        assert len(taken) * MIB <= 6 * PART_BYTES + MIB
    finally:
        gate.set()
        writer.join()
    assert len(service.objects["key"][0]) == 100 * MIB


@pytest.mark.parametrize("kind", ["write", "begin", "send", "complete", "open", "stat", "page", "delete", "leftovers"])
def test_every_request_is_tried_again_after_passing_trouble(store, service, kind):
    service.before[kind] = away(4)
    store.put("short", [b"1"])
    store.put("long", large())
    assert b"".join(store.get("long")) == b"x" * 30 * MIB
    assert store.stat("short").size == 1
    assert [blob.key for blob in store.list()] == ["long", "short"]
    store.delete(["long", "short"])
    assert list(store.leftovers()) == []
    assert service.objects == {}
    assert service.before[kind] == []


@pytest.mark.parametrize("kind", ["write", "begin", "send", "complete"])
def test_trouble_that_stays_is_the_error_and_leaves_nothing(store, service, kind):
    service.before[kind] = away(99)
    with pytest.raises(StoreUnavailable, match="away"):
        store.put("key", [b"1"] if kind == "write" else large())
    assert service.objects == {}
    assert service.uploads == {}


def test_trouble_that_does_not_pass_is_not_tried_again(store, service):
    service.before["send"] = [StoreForbidden("no")] * 4
    with pytest.raises(StoreForbidden):
        store.put("key", large())
    assert service.count("send") <= 4
    assert service.uploads == {}


@pytest.mark.parametrize("size", [1, 30])
def test_a_create_whose_answer_was_lost_is_a_success(store, service, size):
    service.after["write"], service.after["complete"] = away(), away()
    assert store.create("key", large(size=size)) == size * MIB
    assert service.objects["key"][0] == b"x" * size * MIB


@pytest.mark.parametrize("size", [1, 30])
def test_a_create_that_lost_an_answer_and_the_race_says_so(store, service, size):
    kind = "write" if size == 1 else "complete"
    request = service.request

    def raced(asked, call):
        if asked == kind and kind not in service.log:
            service.log.append(kind)
            service._set("key", b"theirs", "put")
            raise StoreUnavailable("lost")
        return request(asked, call)

    service.request = raced
    with pytest.raises(BlobExists):
        store.create("key", large(size=size))
    assert service.objects["key"][0] == b"theirs"
    assert service.uploads == {}


def test_an_upload_that_is_cancelled_is_aborted(store, service):
    chunks = large()

    def cancelled():
        for _ in range(25):
            yield next(chunks)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("key", cancelled())
    assert service.count("abort") == 1
    assert (service.objects, service.uploads, service.sending) == ({}, {}, 0)


def test_an_abort_that_fails_is_told_and_does_not_hide_the_error(store, service, capsys):
    service.before["send"] = [StoreForbidden("no")]
    service.before["abort"] = away(99)
    with pytest.raises(StoreForbidden):
        store.put("key", large())
    assert "unfinished upload of fake://bucket/prefix/key" in capsys.readouterr().err
    assert [leftover.description for leftover in store.leftovers()] == ["upload of key"]


def test_a_broken_read_goes_on_where_it_stopped(store, service):
    content = b"".join(bytes([number]) * MIB for number in range(10))
    store.put("key", [content])
    service.cuts = [3 * MIB, 0, 2 * MIB, 0]
    assert b"".join(store.get("key")) == content
    service.cuts = [3 * MIB, 1 * MIB]
    assert b"".join(store.get("key", start=5, length=7 * MIB)) == content[5 : 5 + 7 * MIB]


def test_a_read_that_breaks_again_and_again_without_progress_ends(store, service):
    store.put("key", large(size=5))
    service.cuts = [2 * MIB] + [0] * 99
    with pytest.raises(StoreUnavailable, match=r"3145728 bytes were still to come"):
        list(store.get("key"))
    assert service.count("open") == 5


def test_two_versions_are_never_mixed(store, service):
    store.put("key", large(b"a", size=5))
    service.cuts = [2 * MIB]
    chunks = store.get("key")
    first = next(chunks)
    store.put("key", large(b"b", size=5))
    with pytest.raises(StoreError, match="replaced while it was read"):
        list(chunks)
    assert set(first) == {ord("a")}


def test_a_blob_deleted_while_it_is_read_is_not_called_absent(store, service):
    store.put("key", large(size=5))
    service.cuts = [2 * MIB]
    chunks = store.get("key")
    next(chunks)
    store.delete(["key"])
    with pytest.raises(StoreError, match="deleted while it was read") as caught:
        list(chunks)
    assert not isinstance(caught.value, BlobNotFound)


def changed(service, times):
    chunks = service._chunks

    def change(piece):
        nonlocal times
        times -= 1
        for chunk in chunks(piece):
            yield b"!" + chunk[1:] if times >= 0 else chunk

    service._chunks = change


def test_a_small_blob_that_arrives_changed_is_read_again(store, service):
    store.put("key", [b"content"])
    changed(service, 2)
    assert b"".join(store.get("key")) == b"content"
    assert service.count("open") == 3


def test_a_large_blob_that_arrives_changed_is_damage(store, service):
    store.put("key", large(size=5))
    changed(service, 1)
    with pytest.raises(DamageError, match="key did not arrive as it was stored"):
        list(store.get("key"))


def test_a_read_that_hardly_moves_is_begun_again(service):
    now = 0.0

    def clock():
        nonlocal now
        now += 10
        return now

    policy = Policy(5, 1e6)
    store = ObjectStore(service, Effort(policy, policy), 1, sleep=lambda _: None, clock=clock, notice=lambda *_: None)
    store.put("key", large(size=2))
    chunks = service._chunks

    def trickling(piece):
        if service.count("open") == 1:
            yield from (piece[number : number + 1] for number in range(100))
        else:
            yield from chunks(piece)

    service._chunks = trickling
    assert b"".join(store.get("key")) == b"x" * 2 * MIB
    assert service.count("open") == 2


def test_objects_that_are_no_blobs_are_passed_over(store, service):
    for name in ("dir/", "a//b", ".hidden", "dir/.hidden/x", "blob"):
        service._set(name, b"", "put")
    assert [blob.key for blob in store.list()] == ["blob"]


def test_one_key_that_cannot_be_deleted_is_named_and_the_others_go(store, service):
    for number in range(10):
        store.put(f"key{number}", [b""])
    service.before["delete key4"] = [StoreForbidden("locked", "It is under legal hold.")]
    service.before["delete key7"] = away(2)
    with pytest.raises(StoreForbidden, match=r"1 left: key4\. The first: locked\. It is under legal hold\."):
        store.delete(f"key{number}" for number in range(10))
    assert list(service.objects) == ["key4"]


def test_a_batch_that_fails_as_a_whole_is_named_and_the_others_go(store, service):
    for number in range(6):
        store.put(f"key{number}", [b""])
    service.before["delete"] = [StoreForbidden("no right to delete")]
    with pytest.raises(StoreForbidden, match="3 left: key0, key1, key2"):
        store.delete(f"key{number}" for number in range(6))
    assert sorted(service.objects) == ["key0", "key1", "key2"]


def test_an_upload_holds_one_part_more_than_it_sends(service):
    held = []

    class Upload:
        def send(self, part):
            held.append(tracemalloc.get_traced_memory()[0])

        def complete(self, whole):
            pass

    service.begin = lambda key, verb: Upload()
    policy = Policy(1, 60)
    store = ObjectStore(service, Effort(policy, policy), 1)
    tracemalloc.start()
    try:
        store.put("key", (bytes([number]) * MIB for number in range(100)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held) == 13
    assert peak < 2.5 * PART_BYTES


def test_tidying_up_gives_up_after_a_few_attempts(store, service):
    service.before["stat"] = away(99)
    with pytest.raises(StoreUnavailable):
        store.hasty().stat("key")
    assert service.count("stat") == 3
