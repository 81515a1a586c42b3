"""Prefetch against a memory store, with real lzop: the window, the directory, and what is taken from it."""

import os
import subprocess
import sys
import threading
import time

import build_wal
import pytest
from fix_memory import open_memory
from fix_postgres import wait_until

from wal_e.archive import layout
from wal_e.blobstore.memory import MemoryStore
from wal_e.errors import DamageError, WaleError
from wal_e.operators import prefetch_directory, prefetch_window, wal_prefetch
from wal_e.operators.prefetch_directory import PrefetchDirectory, note_absence, take
from wal_e.operators.wal_prefetch import prefetch, promote, start_prefetching
from wal_e.operators.wal_push import push

NAMES = [f"0000000100000000000000{number:02X}" for number in range(3, 15)]
SEG = NAMES[0]
SIZE = build_wal.SEGMENT_SIZE
NEVER = "0000000100000000000000FF"


@pytest.fixture
def archive(data_directory, segment):
    """An archive that holds the segments; pg_wal is empty again."""
    filled = open_memory(MemoryStore())
    for name in NAMES:
        path = segment(name)
        push(filled, path)
        os.unlink(path)
    return filled


@pytest.fixture
def pg_wal(data_directory):
    return data_directory / "pg_wal"


@pytest.fixture
def destination(pg_wal):
    return str(pg_wal / "RECOVERYXLOG")


@pytest.fixture
def directory(destination):
    made = PrefetchDirectory.beside(destination)
    made.make()
    return made


@pytest.fixture
def server_process(data_directory):
    """A process that postmaster.pid tells of: as if a server ran there."""
    with subprocess.Popen(["sleep", "60"]) as process:
        (data_directory / "postmaster.pid").write_text(f"{process.pid}\n{data_directory}\n")
        yield process
        process.kill()


@pytest.fixture
def background(archive, pg_wal, monkeypatch):
    """Start a prefetcher in a thread; it must have ended, without an error, when the test ends."""
    monkeypatch.setattr(wal_prefetch, "LAST_PAUSE_S", 0.02)
    threads, errors = [], []

    def start(first, count):
        def run():
            try:
                prefetch(archive, str(pg_wal), first, count)
            except WaleError as error:
                errors.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return threads[-1]

    yield start
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert errors == []


def becomes_ready(directory, *names):
    wait_until(lambda: directory.segments() == sorted(names), f"{names} are ready")


def put_as(archive, name, content):
    archive.store.put(layout.wal_key(name, ".lzo"), archive.pipeline.encode(lambda stream: stream.write(content)))


def test_it_stays_within_its_count_goes_along_with_the_server_and_ends_where_the_archive_ends(background, directory, destination, server_process):
    running = background(NAMES[1], 3)
    for number, name in enumerate(NAMES[1:], 1):
        becomes_ready(directory, *NAMES[number : number + 3])
        assert promote(name, destination)
        with open(destination, "rb") as stream:
            assert stream.read() == build_wal.build_segment(name)
    running.join(30)
    assert not running.is_alive()
    assert os.listdir(directory.running) == []


def test_it_stays_within_its_bytes(background, directory, server_process, monkeypatch):
    monkeypatch.setattr(prefetch_window, "MAX_BYTES", 2 * SIZE)
    background(SEG, 8)
    becomes_ready(directory, *NAMES[:2])
    time.sleep(0.2)
    assert directory.segments() == NAMES[:2]
    directory.ask_for(NEVER)


def test_it_leaves_room_on_the_file_system(background, directory, monkeypatch):
    monkeypatch.setattr(wal_prefetch, "IDLE_WITHOUT_SERVER_S", 0.3)
    monkeypatch.setattr(wal_prefetch, "download", lambda *_: pytest.fail("something was fetched"))
    monkeypatch.setattr(prefetch_window, "FREE_SEGMENTS", 1 << 50)
    background(SEG, 8).join(30)
    assert directory.segments() == []


def test_it_ends_where_the_archive_ends_and_the_next_one_waits_until_there_may_be_more(archive, pg_wal, directory):
    prefetch(archive, str(pg_wal), NAMES[-2], 8)
    assert directory.segments() == NAMES[-2:]
    after = "00000001000000000000000F"
    assert directory.reaches_the_end_after(NAMES[-1], after)
    assert directory.reaches_the_end_after(NAMES[-3], NAMES[-2])
    assert not directory.reaches_the_end_after(NAMES[0], NAMES[1])
    assert directory.reaches_the_end_after(after, "000000010000000000000010")
    assert not directory.reaches_the_end_after("000000010000000000000010", "000000010000000000000011")
    assert not directory.reaches_the_end_after("000000020000000000000003", "000000020000000000000004")


def test_the_end_of_the_archive_is_forgotten_after_a_minute(directory):
    directory.note_end(SEG)
    assert directory.reaches_the_end_after(SEG, NAMES[1])
    os.utime(os.path.join(directory.top, "prefetch.end"), (time.time() - 61,) * 2)
    assert not directory.reaches_the_end_after(SEG, NAMES[1])


def test_absence_is_noted_only_where_something_is_prefetched(destination, pg_wal):
    note_absence(SEG, destination)
    assert not (pg_wal / ".wal-e").exists()


@pytest.mark.parametrize("there", [NAMES[2], "000000020000000000000005"])
def test_it_goes_where_the_server_goes(archive, background, directory, server_process, there):
    put_as(archive, "000000020000000000000005", build_wal.build_segment("000000020000000000000005"))
    put_as(archive, "000000020000000000000006", build_wal.build_segment("000000020000000000000006"))
    background(NAMES[6], 2)
    becomes_ready(directory, *NAMES[6:8])
    directory.ask_for(there)
    becomes_ready(directory, there, there[:-1] + "6")
    directory.ask_for(NEVER)


def test_a_segment_that_is_not_wanted_any_more_is_not_made_ready(archive, background, directory, server_process, monkeypatch):
    flushed = []
    monkeypatch.setattr(wal_prefetch, "flush", flushed.append)
    store = Interrupted(archive.store, layout.wal_key(SEG, ".lzo"), lambda: directory.ask_for(NAMES[1]))
    archive.store = store
    background(SEG, 1)
    becomes_ready(directory, NAMES[1])
    assert [os.path.basename(os.path.dirname(path)) for path in flushed] == [NAMES[1]]
    directory.ask_for(NEVER)


class Interrupted:
    """A store in which something happens while a key is read."""

    def __init__(self, store, key, happen):
        self._store, self._key, self._happen = store, key, happen

    def __getattr__(self, name):
        return getattr(self._store, name)

    def get(self, key, **options):
        for chunk in self._store.get(key, **options):
            if key == self._key:
                self._happen()
            yield chunk


def test_what_another_program_takes_counts_as_taken(background, directory, pg_wal, server_process):
    background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    os.rename(directory.path(SEG), pg_wal / SEG)
    becomes_ready(directory, *NAMES[1:3])
    directory.ask_for(NEVER)


def test_it_ends_with_the_server_and_tidies_up(background, directory, server_process):
    running = background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    server_process.kill()
    server_process.wait()
    running.join(30)
    assert directory.segments() == []


def test_it_ends_with_the_recovery_and_tidies_up(background, directory, data_directory, server_process):
    (data_directory / "recovery.signal").touch()
    running = background(NAMES[-2], 8)
    becomes_ready(directory, *NAMES[-2:])
    (data_directory / "recovery.signal").unlink()
    running.join(30)
    assert directory.segments() == []


def test_it_ends_when_the_last_segment_of_the_archive_was_taken(background, directory, destination, server_process):
    running = background(NAMES[-2], 8)
    becomes_ready(directory, *NAMES[-2:])
    assert promote(NAMES[-2], destination)
    becomes_ready(directory, NAMES[-1])
    assert running.is_alive()
    assert promote(NAMES[-1], destination)
    running.join(30)


def test_it_ends_when_another_server_was_started(background, directory, data_directory, server_process):
    running = background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    (data_directory / "postmaster.pid").write_text("1\n")
    running.join(30)
    assert directory.segments() == []


def test_it_ends_when_nobody_takes_anything_and_there_is_no_server(background, directory, monkeypatch):
    monkeypatch.setattr(wal_prefetch, "IDLE_WITHOUT_SERVER_S", 0.3)
    background(SEG, 2).join(30)
    assert directory.segments() == []


def test_it_ends_when_its_directory_is_removed(background, directory, pg_wal, server_process):
    running = background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    os.rename(pg_wal / ".wal-e", pg_wal.parent / "away")
    running.join(30)
    assert not (pg_wal / ".wal-e").exists()


def test_a_damaged_segment_ends_it_and_those_before_are_ready(archive, pg_wal, directory):
    put_as(archive, NAMES[2], build_wal.build_segment(NAMES[3]))
    with pytest.raises(DamageError, match=NAMES[2]):
        prefetch(archive, str(pg_wal), SEG, 8)
    assert directory.segments() == NAMES[:2]
    assert directory.reaches_the_end_after(SEG, NAMES[1])
    assert os.listdir(directory.running) == []


FOREIGN = [b"", b"garbage", build_wal.build_segment(NAMES[1]), build_wal.build_segment(SEG, system_identifier=5), build_wal.build_segment(SEG)[:-1]]


@pytest.mark.parametrize("content", FOREIGN, ids=len)
def test_a_file_that_is_not_the_segment_is_never_taken_and_is_fetched_anew(archive, directory, destination, pg_wal, content):
    write(directory.path(SEG), content)
    lock = directory.lock()
    try:
        assert not take(SEG, destination)
    finally:
        os.close(lock)
    assert os.path.exists(directory.path(SEG))
    assert not promote(SEG, destination)
    assert not os.path.exists(directory.path(SEG))
    assert not os.path.exists(destination)


@pytest.mark.parametrize("content", FOREIGN, ids=len)
def test_the_background_process_does_not_build_on_a_file_that_is_not_the_segment(background, directory, server_process, content):
    write(directory.path(SEG), content)
    background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    wait_until(lambda: os.path.getsize(directory.path(SEG)) == SIZE, "the segment is whole")
    directory.ask_for(NEVER)


def write(path, content):
    with open(path, "wb") as stream:
        stream.write(content)


def test_what_a_predecessor_left_is_used_or_removed(background, directory, server_process):
    write(directory.path(SEG), build_wal.build_segment(SEG))
    write(directory.path(NAMES[9]), build_wal.build_segment(NAMES[9]))
    os.mkdir(os.path.join(directory.running, NAMES[5]))
    write(os.path.join(directory.running, NAMES[5], "tmp"), b"half")
    write(os.path.join(directory.running, "file"), b"")
    background(SEG, 2)
    becomes_ready(directory, *NAMES[:2])
    assert os.listdir(directory.running) == []
    directory.ask_for(NEVER)


def test_a_segment_is_taken_as_soon_as_it_is_ready(directory, destination, monkeypatch):
    monkeypatch.setattr(prefetch_directory, "PATIENCE_S", 60)
    directory.announce(SEG)
    lock = directory.lock()
    written = os.path.join(directory.running, SEG, "tmp")
    write(written, build_wal.build_segment(SEG))
    late = threading.Timer(0.2, lambda: os.rename(written, directory.path(SEG)))
    late.start()
    try:
        assert take(SEG, destination)
    finally:
        late.join()
        os.close(lock)


@pytest.mark.parametrize("dies_after_s", [0, 0.2])
def test_nobody_waits_for_a_download_that_nobody_goes_on_with(directory, destination, dies_after_s, monkeypatch):
    monkeypatch.setattr(prefetch_directory, "PATIENCE_S", 60)
    directory.announce(SEG)
    write(os.path.join(directory.running, SEG, "tmp"), b"half")
    death = threading.Timer(dies_after_s, os.close, [directory.lock()])
    before = time.monotonic()
    death.start()
    assert not take(SEG, destination)
    assert time.monotonic() - before < 30
    death.join()


def test_a_second_prefetcher_leaves_at_once(archive, pg_wal, directory):
    lock = directory.lock()
    try:
        prefetch(archive, str(pg_wal), SEG, 3)
        assert directory.segments() == []
    finally:
        os.close(lock)


def test_the_lock_is_passed_on_so_that_there_is_no_moment_without_it(directory):
    code = f"from wal_e.operators.prefetch_directory import PrefetchDirectory as D; print(D({os.path.dirname(directory.top)!r}).inherited_lock() is not None)"
    lock = directory.lock()
    try:
        inheriting = subprocess.run([sys.executable, "-c", code], stdin=lock, capture_output=True, text=True, check=True)
        another = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        assert [inheriting.stdout, another.stdout] == ["True\n", "False\n"]
        assert directory.is_attended()
    finally:
        os.close(lock)
    assert not directory.is_attended()


def test_the_running_process_is_told_what_the_server_wants_next(directory, destination):
    write(destination, build_wal.build_segment(SEG))
    lock = directory.lock()
    try:
        start_prefetching(SEG, destination, 8, dict)
    finally:
        os.close(lock)
    assert directory.asked_for()[0] == NAMES[1]


def test_none_is_started_after_a_segment_that_was_absent_a_moment_ago(directory, destination):
    write(destination, build_wal.build_segment(SEG))
    note_absence(SEG, destination)
    start_prefetching(SEG, destination, 8, lambda: pytest.fail("a process was started"))
    assert os.listdir(directory.running) == []
