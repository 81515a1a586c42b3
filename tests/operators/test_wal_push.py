"""wal-push against a memory store, with real lzop."""

import os

import build_wal
import pytest
from fix_memory import content_of

from wal_e.archive import layout
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import DamageError, LocalFileError, StoreUnavailable, WalConflict, WalRefused, WrongCluster
from wal_e.operators.wal_push import neighbours, push, push_with_neighbours
from wal_e.pipeline import process
from wal_e.pipeline.process import Blocking
from wal_e.pipeline.side_by_side import SideBySide

SEG = "000000010000000000000003"
NEXT = "000000010000000000000004"
HISTORY = b"1\t0/3000000\tno recovery target specified\n"


def stored(archive, name):
    return content_of(archive, layout.wal_key(name, ".lzo"))


def keys(archive):
    return [blob.key for blob in archive.store.list()]


def test_a_segment_is_stored_as_it_is(archive, segment):
    push(archive, segment(SEG))
    assert stored(archive, SEG) == build_wal.build_segment(SEG)


@pytest.mark.parametrize("name, content", [("00000002.history", HISTORY), (f"{SEG}.00000028.backup", b"START WAL LOCATION: 0/3000028\n")])
def test_history_and_backup_files_are_stored_as_they_are(archive, segment, name, content):
    push(archive, segment(name, content))
    assert stored(archive, name) == content


def test_a_partial_segment_is_stored_under_its_own_name(archive, segment):
    push(archive, segment(f"{SEG}.partial"))
    assert layout.wal_key(f"{SEG}.partial", ".lzo") in keys(archive)
    assert layout.wal_key(SEG, ".lzo") not in keys(archive)


def test_pushing_the_same_again_is_a_success(archive, segment):
    push(archive, segment(SEG))
    before = b"".join(archive.store.get(layout.wal_key(SEG, ".lzo")))
    push(archive, segment(SEG))
    assert b"".join(archive.store.get(layout.wal_key(SEG, ".lzo"))) == before


def test_other_content_under_the_same_name_is_refused_and_the_stored_one_is_kept(archive, segment):
    push(archive, segment(SEG))
    with pytest.raises(WalConflict, match=SEG) as caught:
        push(archive, segment(SEG, fill="zero"))
    assert "split brain" in caught.value.detail
    assert stored(archive, SEG) == build_wal.build_segment(SEG)


def test_a_damaged_segment_in_the_store_is_told_from_another_one(archive, segment):
    archive.store.put(layout.wal_key(SEG, ".lzo"), [b"rubbish"])
    with pytest.raises(DamageError, match="already, damaged"):
        push(archive, segment(SEG))


@pytest.mark.parametrize(
    "name, content",
    [
        ("garbage", b"x"),
        (SEG.lower() + "x", b"x"),
        (SEG, b""),
        (SEG, build_wal.build_segment(SEG)[:-1]),
        (SEG, build_wal.build_segment(SEG) + b"x"),
        (SEG, bytes(build_wal.SEGMENT_SIZE)),
        (SEG, build_wal.build_segment(NEXT)),
        (SEG, build_wal.build_segment(SEG, system_identifier=5)),
    ],
)
def test_what_is_not_the_segment_it_says_is_refused_and_nothing_is_stored(archive, segment, name, content):
    with pytest.raises(WalRefused, match=name):
        push(archive, segment(name, content))
    assert keys(archive) == []


def test_another_cluster_is_refused(archive, segment, data_directory):
    push(archive, segment(SEG))
    (data_directory / "global" / "pg_control").write_bytes(build_wal.build_control(5, segment_size=build_wal.SEGMENT_SIZE))
    other = type(archive)(archive.store, archive.pipeline, archive.waits, archive.push_policy, archive.fetch_policy)
    for name, content in ((NEXT, build_wal.build_segment(NEXT, system_identifier=5)), ("00000002.history", HISTORY)):
        with pytest.raises(WrongCluster):
            push(other, segment(name, content))
    assert layout.wal_key(NEXT, ".lzo") not in keys(archive)


def test_a_missing_file_is_named_with_the_working_directory(archive):
    with pytest.raises(LocalFileError, match=SEG) as caught:
        push(archive, f"pg_wal/{SEG}")
    assert os.getcwd() in caught.value.detail


def test_neighbours_are_what_is_ready_history_first_up_to_the_pool(data_directory, segment):
    for number in range(3, 9):
        name = f"00000001000000000000000{number}"
        segment(name)
        (data_directory / "pg_wal" / "archive_status" / f"{name}.ready").touch()
    (data_directory / "pg_wal" / "00000002.history").write_bytes(HISTORY)
    (data_directory / "pg_wal" / "archive_status" / "00000002.history.ready").touch()
    found = [os.path.basename(path) for path in neighbours(str(data_directory / "pg_wal" / SEG), 4)]
    assert found == ["00000002.history", NEXT, "000000010000000000000005"]
    assert neighbours(str(data_directory / "pg_wal" / SEG), 1) == []
    assert neighbours(str(data_directory / "pg_wal" / SEG), 0) == []


def test_there_are_no_neighbours_without_archive_status(tmp_path):
    assert neighbours(str(tmp_path / SEG), 32) == []


def status_of(data_directory, name):
    status = data_directory / "pg_wal" / "archive_status"
    return [suffix for suffix in ("ready", "done") if (status / f"{name}.{suffix}").exists()]


@pytest.fixture
def ready(data_directory, segment):
    def make(name, **options):
        path = segment(name, **options)
        (data_directory / "pg_wal" / "archive_status" / f"{name}.ready").touch()
        return path

    return make


def test_stored_neighbours_are_marked_done_and_the_named_one_is_left_to_the_server(archive, data_directory, ready):
    names = [f"00000001000000000000000{number}" for number in range(3, 8)]
    paths = [ready(name) for name in names]
    push_with_neighbours(archive, paths[0], paths[1:])
    assert [status_of(data_directory, name) for name in names] == [["ready"], *[["done"]] * 4]
    assert all(stored(archive, name) == build_wal.build_segment(name) for name in names)


def test_a_neighbour_that_fails_stays_ready_and_does_not_decide(archive, data_directory, ready):
    paths = [ready(SEG), ready(NEXT, content=b"broken"), ready("000000010000000000000005")]
    push_with_neighbours(archive, paths[0], paths[1:])
    assert status_of(data_directory, NEXT) == ["ready"]
    assert status_of(data_directory, "000000010000000000000005") == ["done"]


def test_the_named_file_decides_even_when_neighbours_succeed(archive, ready):
    paths = [ready(SEG, content=b"broken"), ready(NEXT)]
    with pytest.raises(WalRefused):
        push_with_neighbours(archive, paths[0], paths[1:])


class Away(MemoryStore):
    def create(self, key, chunks):
        raise StoreUnavailable("away")


def test_nothing_is_marked_done_when_the_store_is_away(data_directory, ready):
    from fix_memory import open_memory

    paths = [ready(SEG), ready(NEXT)]
    with pytest.raises(StoreUnavailable):
        push_with_neighbours(open_memory(Away()), paths[0], paths[1:])
    assert status_of(data_directory, NEXT) == ["ready"]


class Watched(MemoryStore):
    """Notes what is created, and fails for keys that hold a word."""

    def __init__(self, away_for="none"):
        super().__init__()
        self.away_for = away_for
        self.asked = []

    def create(self, key, chunks):
        if key.startswith(layout.WAL):
            self.asked.append(key.removeprefix(layout.WAL).removesuffix(".lzo"))
            if self.away_for in key:
                raise StoreUnavailable("away")
        return super().create(key, chunks)


def pushed_in_order(ready, store, names):
    from fix_memory import open_memory

    paths = [ready(name, **({"content": HISTORY} if name.endswith("history") else {})) for name in names]
    push_with_neighbours(open_memory(store), paths[0], paths[1:])
    return store.asked


def test_history_files_go_first(ready):
    second = "000000020000000000000003"
    assert pushed_in_order(ready, Watched(), [SEG, second, "00000002.history"]) == ["00000002.history", SEG, second]


def test_wal_of_a_timeline_is_not_pushed_ahead_of_its_history(data_directory, ready):
    store = Watched(away_for="history")
    second = "000000020000000000000003"
    assert pushed_in_order(ready, store, [SEG, second, NEXT, "00000002.history"]) == ["00000002.history", SEG]
    assert status_of(data_directory, second) == ["ready"]


def test_when_the_store_goes_away_no_more_neighbours_are_tried(data_directory, ready):
    store = Watched(away_for=NEXT)
    assert pushed_in_order(ready, store, [SEG, NEXT, "000000010000000000000005"]) == [SEG, NEXT]
    assert status_of(data_directory, "000000010000000000000005") == ["ready"]


def test_wal_of_a_timeline_stays_back_when_its_history_is_refused(data_directory, ready):
    store = Watched()
    store.put(layout.wal_key("00000002.history", ".lzo"), [b"another"])
    second = "000000020000000000000003"
    assert pushed_in_order(ready, store, [SEG, second, NEXT, "00000002.history"]) == ["00000002.history", SEG, NEXT]
    assert status_of(data_directory, second) == ["ready"]


class TestTwoServersOnOneTimeline:
    """The store has the first segment from another server than ours."""

    THIRD = "000000010000000000000005"

    @pytest.fixture
    def store(self, segment, archive):
        push(archive, segment(SEG, fill="zero"))
        os.unlink(segment(SEG))
        return archive.store

    def test_a_refused_segment_keeps_all_later_ones_of_its_timeline_out(self, archive, store, data_directory, ready):
        before = keys(archive)
        paths = [ready(SEG), ready(NEXT), ready(self.THIRD)]
        with pytest.raises(WalConflict, match=SEG):
            push_with_neighbours(archive, paths[0], paths[1:])
        assert keys(archive) == before
        assert status_of(data_directory, NEXT) == ["ready"]

    def test_a_later_segment_is_refused_with_the_earlier_one(self, archive, store, ready):
        before = keys(archive)
        paths = [ready(SEG), ready(NEXT)]
        with pytest.raises(WalConflict, match=SEG):
            push_with_neighbours(archive, paths[1], paths[:1])
        assert keys(archive) == before

    def test_other_timelines_go_on(self, archive, store, data_directory, ready):
        other = "000000020000000000000009"
        paths = [ready(other), ready(SEG), ready(NEXT)]
        push_with_neighbours(archive, paths[0], paths[1:])
        assert layout.wal_key(other, ".lzo") in keys(archive)
        assert layout.wal_key(NEXT, ".lzo") not in keys(archive)


class Slow(MemoryStore):
    """Takes its time over the first segment, while other lanes go on; counts how often it is asked for one."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits
        self.looked_up = []

    def create(self, key, chunks):
        if SEG in key:
            started = process.start(("sleep", "0.3"), 0, 1)
            os.close(started.stderr)
            self.waits.reap(started)
        return super().create(key, chunks)

    def stat(self, key):
        self.looked_up.append(key)
        return super().stat(key)


def test_no_later_segment_is_begun_before_it_is_known_whose_the_first_is(data_directory, ready, segment):
    from fix_memory import open_memory

    waits = SideBySide(3)
    archive = open_memory(Slow(waits), waits)
    push(archive, segment(SEG, fill="zero"))
    os.unlink(segment(SEG))
    paths = [ready(SEG), ready(NEXT)]
    with pytest.raises(WalConflict):
        push_with_neighbours(archive, paths[0], paths[1:])
    assert layout.wal_key(NEXT, ".lzo") not in keys(archive)


def test_only_the_first_segment_of_a_batch_is_looked_up(ready):
    from fix_memory import open_memory

    store = Slow(Blocking())
    paths = [ready(f"00000001000000000000000{number}") for number in range(4, 8)]
    push_with_neighbours(open_memory(store), paths[0], paths[1:])
    assert store.looked_up == [layout.wal_key("000000010000000000000004", ".lzo")]


def test_segments_that_are_stored_already_are_passed_one_after_the_other(archive, data_directory, ready):
    paths = [ready(f"00000001000000000000000{number}") for number in range(3, 8)]
    push(archive, paths[0])
    push(archive, paths[1])
    push_with_neighbours(archive, paths[0], paths[1:])
    assert [stored(archive, os.path.basename(path)) for path in paths] == [build_wal.build_segment(os.path.basename(path)) for path in paths]
    assert status_of(data_directory, NEXT) == ["done"]
