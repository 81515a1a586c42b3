"""What is particular to a store in a directory: its root, its names, its file system's errors."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from fix_stores import unsupported

from wal_e.blobstore import publish
from wal_e.blobstore.file import FileStore
from wal_e.blobstore.linux import rename_noreplace
from wal_e.blobstore.registry import call_directly
from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable

MIB = 1 << 20

VERBS = {
    "put": lambda store: store.put("new", [b"1"]),
    "put below": lambda store: store.put("dir/new", [b"1"]),
    "put below a new directory": lambda store: store.put("some/new/dir/new", [b"1"]),
    "create": lambda store: store.create("new", [b"1"]),
    "create below": lambda store: store.create("dir/new", [b"1"]),
    "create over": lambda store: store.create("dir/blob", [b"1"]),
    "get": lambda store: next(store.get("dir/blob")),
    "get absent": lambda store: next(store.get("absent")),
    "stat": lambda store: store.stat("dir/blob"),
    "list": lambda store: list(store.list()),
    "list below": lambda store: list(store.list("dir/b")),
    "list absent": lambda store: list(store.list("absent/")),
    "list what cannot be": lambda store: list(store.list("//")),
    "delete": lambda store: store.delete(["dir/blob"]),
}

every_verb = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS.keys())
both_writes = pytest.mark.parametrize("write", ["put", "create"])


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mnt/store"
    root.mkdir(parents=True)
    return root


@pytest.fixture
def store(root):
    store = FileStore(str(root), call_directly)
    store.put("dir/blob", [b"content"])
    return store


@pytest.fixture
def public():
    """A directory that any user may enter and change, unlike pytest's own."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


def keys(store, prefix=""):
    return [blob.key for blob in store.list(prefix)]


def run(program, *arguments):
    """Run a program in its own interpreter, with this one's path."""
    prelude = """
import datetime, os, resource, shlex, signal, sys
sys.path[:0] = sys.argv.pop(1).split(os.pathsep)
from wal_e.blobstore.file import FileStore
from wal_e.blobstore.registry import call_directly
from wal_e.errors import *

def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

def failing(call):
    try:
        call()
    except StoreError as error:
        return error
    raise AssertionError("no error")
"""
    return subprocess.run(
        [sys.executable, "-c", prelude + program, os.pathsep.join(sys.path), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )


def check(program, *arguments):
    ran = run(program, *arguments)
    assert ran.returncode == 0, ran.stderr


# The root


def test_a_missing_root_is_refused_and_not_made(tmp_path):
    with pytest.raises(StoreMisconfigured) as caught:
        FileStore(f"{tmp_path}/back ups", call_directly)
    assert caught.value.status == 2
    assert f"mkdir -p '{tmp_path}/back ups' && chown" in caught.value.hint
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_file_in_place_of_the_root_is_refused(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(StoreMisconfigured):
        FileStore(f"{tmp_path}/file{below}", call_directly)


def test_a_root_that_may_not_be_entered_is_forbidden(public):
    (public / "closed/store").mkdir(parents=True)
    (public / "closed").chmod(0)
    program = """
become_nobody()
error = failing(lambda: FileStore(sys.argv[1], call_directly))
assert type(error) is StoreForbidden and sys.argv[1] in error.message, repr(error)
"""
    check(program, public / "closed/store")
    (public / "closed").chmod(0o700)


@every_verb
def test_a_root_that_went_away_is_unavailable_and_nothing_is_absent(store, root, verb):
    root.rename(root.with_name("moved"))
    with pytest.raises(StoreUnavailable) as caught:
        verb(store)
    assert caught.value.transient
    assert not root.exists()
    assert files(root.with_name("moved")) == ["dir/blob"]


@every_verb
def test_a_parent_that_became_a_file_is_unavailable(store, root, verb):
    root.parent.rename(root.parent.with_name("moved"))
    root.parent.touch()
    with pytest.raises(StoreUnavailable):
        verb(store)


@every_verb
def test_an_empty_directory_in_place_of_the_root_is_not_the_store(store, root, verb):
    root.rename(root.with_name("moved"))
    root.mkdir()
    with pytest.raises(StoreUnavailable, match="went away"):
        verb(store)
    assert os.listdir(root) == []


def test_a_root_that_comes_back_is_the_store_again(store, root):
    root.rename(root.with_name("moved"))
    with pytest.raises(StoreUnavailable):
        store.stat("dir/blob")
    root.with_name("moved").rename(root)
    assert store.stat("dir/blob").size == 7
    with pytest.raises(BlobNotFound):
        store.stat("absent")


@both_writes
@pytest.mark.parametrize("key", ["new", "dir/new"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_root_that_goes_away_during_a_write_is_unavailable(store, root, write, key, replaced):
    def chunks():
        yield b"half"
        root.rename(root.with_name("moved"))
        if replaced:
            root.mkdir()
        yield b"half"

    with pytest.raises(StoreUnavailable, match="went away"):
        getattr(store, write)(key, chunks())
    assert root.exists() == replaced
    assert not (root / key).exists()
    assert not (root.with_name("moved") / key).exists()


def test_a_read_that_began_goes_on_when_the_root_is_renamed(store, root):
    store.put("big", [b"x" * 3 * MIB])
    chunks = store.get("big")
    first = next(chunks)
    root.rename(root.with_name("moved"))
    assert first + b"".join(chunks) == b"x" * 3 * MIB


def test_a_listing_does_not_end_early_when_the_root_goes_away(store, root):
    store.put("other/blob", [b""])
    blobs = store.list()
    assert next(blobs).key == "dir/blob"
    root.rename(root.with_name("moved"))
    with pytest.raises(StoreUnavailable, match="went away"):
        list(blobs)


def test_a_closed_root_is_forbidden_not_gone(public):
    program = """
become_nobody()
root = sys.argv[1] + "/mnt/store"
os.makedirs(root)
store = FileStore(root, call_directly)
os.chmod(sys.argv[1] + "/mnt", 0)
calls = (
    lambda: store.stat("key"),
    lambda: next(store.get("key")),
    lambda: store.put("key", [b""]),
    lambda: list(store.list()),
    lambda: store.delete(["key"]),
)
for call in calls:
    error = failing(call)
    assert type(error) is StoreForbidden and root in str(error), repr(error)
os.chmod(sys.argv[1] + "/mnt", 0o777)
"""
    check(program, public)


# What the file system refuses


def test_permission_denied_is_forbidden_and_names_the_path(public):
    program = """
become_nobody()
root = sys.argv[1]
store = FileStore(root, call_directly)
store.put("dir/blob", [b"content"])
os.chmod(root + "/dir/blob", 0)
error = failing(lambda: next(store.get("dir/blob")))
assert type(error) is StoreForbidden and root + "/dir/blob" in error.message, repr(error)
open(root + "/dir/.key.123.0123456789abcdef.tmp", "w").close()
(leftover,) = store.leftovers()
os.chmod(root + "/dir", 0o500)
writes = [lambda: store.put("dir/new", [b"1"]), lambda: store.create("dir/new", [b"1"]), lambda: store.put("dir/sub/new", [b"1"])]
for call in (*writes, lambda: store.discard(leftover)):
    error = failing(call)
    assert type(error) is StoreForbidden and root + "/dir/" in error.message, repr(error)
os.chmod(root + "/dir", 0)
for call in (lambda: store.stat("dir/blob"), lambda: store.stat("dir/absent"), lambda: next(store.get("dir/blob")), lambda: list(store.list())):
    error = failing(call)
    assert type(error) is StoreForbidden and root + "/dir" in error.message, repr(error)
"""
    check(program, public)


def test_delete_tries_all_keys_and_names_those_that_are_left(public):
    program = """
become_nobody()
root = sys.argv[1]
store = FileStore(root, call_directly)
for key in ("closed/1", "closed/2", "open/1", "open/2"):
    store.put(key, [b""])
os.chmod(root + "/closed", 0o500)
error = failing(lambda: store.delete(["closed/1", "open/1", "closed/2", "open/2"]))
assert type(error) is StoreForbidden, repr(error)
assert error.detail.startswith("2 left: closed/1, closed/2. The first: no permission for " + root + "/closed/1. The system says"), error.detail
assert [blob.key for blob in store.list()] == ["closed/1", "closed/2"]
assert not os.path.exists(root + "/open")
"""
    check(program, public)


def test_deletes_that_fail_differently_are_a_plain_error(store, monkeypatch):
    def unlink(path, real=os.unlink):
        number = {"a": errno.EACCES, "b": errno.EIO}.get(os.path.basename(path))
        if number:
            raise OSError(number, os.strerror(number))
        real(path)

    monkeypatch.setattr("os.unlink", unlink)
    with pytest.raises(StoreError) as caught:
        store.delete(["a", "b", "dir/blob"])
    assert type(caught.value) is StoreError
    assert "2 left: a, b." in caught.value.detail
    monkeypatch.undo()
    assert keys(store) == []


def test_a_listing_passes_over_lost_and_found_which_nobody_may_read(public):
    (public / "lost+found").mkdir(mode=0o700)
    program = """
if os.geteuid():
    os.chmod(sys.argv[1] + "/lost+found", 0)
become_nobody()
store = FileStore(sys.argv[1], call_directly)
store.put("key", [b""])
assert [blob.key for blob in store.list()] == ["key"]
"""
    check(program, public)
    (public / "lost+found").chmod(0o700)


@both_writes
def test_a_full_file_system_is_unavailable_and_leaves_nothing(store, root, monkeypatch, write):
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr("os.write", lambda _, data, write=os.write: write(full, data))
    with pytest.raises(StoreUnavailable) as caught:
        getattr(store, write)("new", [b"1"])
    os.close(full)
    assert "the file system of the store is full" in caught.value.message
    assert files(root) == ["dir/blob"]


def test_a_file_size_limit_is_explained_and_leaves_nothing(public):
    program = """
store = FileStore(sys.argv[1], call_directly)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))
for call in (lambda: store.put("dir/new", [b"x" * 400000] * 4), lambda: store.create("dir/new", [b"x" * 4000000])):
    error = failing(call)
    assert type(error) is StoreMisconfigured and "File too large" in error.detail, repr(error)
assert os.listdir(sys.argv[1]) == []
store.put("dir/new", [b"x" * 999999])
"""
    check(program, public)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EIO, StoreUnavailable),
        (errno.ESTALE, StoreUnavailable),
        (errno.ENOTCONN, StoreUnavailable),
        (errno.EMFILE, StoreUnavailable),
        (errno.ENOSPC, StoreUnavailable),
        (errno.EDQUOT, StoreUnavailable),
        (errno.EACCES, StoreForbidden),
        (errno.EPERM, StoreForbidden),
        (errno.EROFS, StoreForbidden),
        (errno.EFBIG, StoreMisconfigured),
        (errno.ENAMETOOLONG, StoreMisconfigured),
    ],
)
def test_each_error_of_the_system_has_its_kind(store, root, monkeypatch, number, kind):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    for function, call in [
        ("pread", lambda: next(store.get("dir/blob"))),
        ("fsync", lambda: store.put("new", [b"1"])),
        ("fsync", lambda: store.create("new", [])),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(f"os.{function}", fail)
            with pytest.raises(StoreError) as caught:
                call()
        assert type(caught.value) is kind
        assert os.strerror(number) in caught.value.detail
    assert files(root) == ["dir/blob"]


def test_a_read_that_breaks_in_the_middle_is_unavailable(store, monkeypatch):
    store.put("big", [b"x" * 3 * MIB])
    chunks = store.get("big")
    next(chunks)
    monkeypatch.setattr("os.pread", lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, "Stale file handle")))
    with pytest.raises(StoreUnavailable):
        next(chunks)


@both_writes
def test_a_blob_in_the_way_of_a_directory_is_explained(store, root, write):
    with pytest.raises(StoreMisconfigured) as caught:
        getattr(store, write)("dir/blob/below", [b"1"])
    assert f"{root}/dir/blob/below" in caught.value.message
    assert files(root) == ["dir/blob"]


def test_a_directory_in_the_way_of_a_blob_is_explained(store, root):
    with pytest.raises(StoreMisconfigured):
        store.put("dir", [b"1"])
    assert files(root) == ["dir/blob"]


def test_a_directory_that_cannot_be_flushed_is_tolerated(root):
    def offload(blocking):
        blocking()
        if list(root.glob("key")):
            raise OSError(errno.EINVAL, "Invalid argument")

    store = FileStore(str(root), offload)
    store.put("key", [b"1"])
    assert keys(store) == ["key"]


# Names


def test_foreign_names_are_no_blobs(store, root):
    (root / ".hidden").touch()
    (root / ".snapshot").mkdir()
    (root / ".snapshot/blob").touch()
    (root / "dir/.nfs0001").touch()
    (root / "empty").mkdir()
    os.mkfifo(root / "fifo")
    (root / "dangling").symlink_to("absent")
    (root / "loop").symlink_to(".")
    (root / "linked").symlink_to("dir")
    assert keys(store) == ["dir/blob"]
    for key in ("fifo", "dangling", "linked", "empty"):
        with pytest.raises(BlobNotFound):
            store.stat(key)
        with pytest.raises(BlobNotFound):
            next(store.get(key))


def test_a_linked_directory_is_listed_when_the_prefix_spells_it_out(store, root):
    (root / "wal_005").symlink_to("dir")
    assert keys(store, "wal_005/") == ["wal_005/blob"]
    assert keys(store) == ["dir/blob"]


def test_names_that_are_not_utf_8_are_listed_and_read(store, root):
    Path(os.fsdecode(os.fsencode(root) + b"/dir/\xff")).write_bytes(b"1")
    store.put("dir/é", [b"2"])
    assert keys(store) == ["dir/blob", "dir/é", "dir/\udcff"]
    assert b"".join(store.get("dir/\udcff")) == b"1"


@both_writes
def test_a_blob_being_written_has_a_temporary_name_beside_it(store, root, write):
    def chunks():
        yield b"half"
        (temporary,) = set(files(root)) - {"dir/blob"}
        assert temporary.startswith(f"dir/.new.lzo.{os.getpid()}.")
        assert temporary.endswith(".tmp")
        assert keys(store) == ["dir/blob"]

    getattr(store, write)("dir/new.lzo", chunks())
    assert files(root) == ["dir/blob", "dir/new.lzo"]


@both_writes
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_no_temporary_name_stays_after_a_failure(store, root, write, error):
    def chunks():
        yield b"half"
        raise error

    with pytest.raises(error):
        getattr(store, write)("dir/new", chunks())
    assert files(root) == ["dir/blob"]


@both_writes
def test_no_empty_directory_stays_after_a_failure(store, root, write):
    def chunks():
        yield b"half"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        getattr(store, write)("some/new/dir/new", chunks())
    assert os.listdir(root) == ["dir"]


@both_writes
def test_a_killed_writer_leaves_nothing_visible_and_does_not_block_the_next(store, root, write):
    program = f"""
def chunks():
    yield b"half"
    os.kill(os.getpid(), signal.SIGKILL)
FileStore(sys.argv[1], call_directly).{write}("dir/new", chunks())
"""
    assert run(program, root).returncode == -signal.SIGKILL
    assert len(files(root)) == 2
    assert keys(store) == ["dir/blob"]
    getattr(store, write)("dir/new", [b"whole"])
    assert b"".join(store.get("dir/new")) == b"whole"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o000])
def test_blobs_and_directories_are_their_owners_only(store, root, mask):
    before = os.umask(mask)
    try:
        store.create("new/sub/blob", [b"1"])
    finally:
        os.umask(before)
    assert (root / "new").stat().st_mode & 0o777 == 0o700
    assert (root / "new/sub").stat().st_mode & 0o777 == 0o700
    assert (root / "new/sub/blob").stat().st_mode & 0o777 == 0o600


def test_delete_prunes_empty_directories_but_never_the_root(store, root):
    store.put("a/b/c/1", [b""])
    store.put("a/2", [b""])
    store.delete(["a/b/c/1"])
    assert not (root / "a/b").exists()
    assert (root / "a").exists()
    store.delete(["a/2", "dir/blob"])
    assert os.listdir(root) == []
    assert root.exists()


def test_delete_finishes_the_pruning_that_a_killed_one_left(store, root):
    (root / "a/b").mkdir(parents=True)
    store.delete(["a/b/1"])
    assert not (root / "a").exists()


# Durability and exclusiveness


class Recorder:
    """An offload that notes at each flush what is to be seen in the root."""

    def __init__(self, root):
        self.root = root
        self.seen = []

    def __call__(self, blocking):
        self.seen.append([name if not name.startswith(".") else "temporary" for name in sorted(os.listdir(self.root))])
        blocking()


@both_writes
def test_a_blob_gets_its_name_after_its_flush_and_before_its_directorys(root, write):
    recorder = Recorder(root)
    getattr(FileStore(str(root), recorder), write)("key", [b"1"])
    assert recorder.seen[0] == ["temporary"]
    assert "key" in recorder.seen[1]
    assert len(recorder.seen) == 2


def test_flushes_are_of_the_file_then_of_its_directory(root, monkeypatch):
    flushed = []
    monkeypatch.setattr("os.fsync", lambda descriptor: flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(root)))
    store = FileStore(str(root), call_directly)
    store.put("a/b/key", [b"1"])
    assert [str(path) for path in flushed[:2]] == [".", "a"]
    assert flushed[2].name.endswith(".tmp")
    assert str(flushed[2].parent) == str(flushed[3]) == "a/b"
    assert len(flushed) == 4
    store.put("a/b/key2", [b"1"])
    assert len(flushed) == 6


def test_a_blob_whose_flush_fails_is_not_stored(root):
    def offload(_):
        raise OSError(errno.EIO, "Input/output error")

    store = FileStore(str(root), offload)
    with pytest.raises(StoreUnavailable):
        store.create("key", [b"1"])
    assert files(root) == []


def test_writing_to_disk_begins_every_8_mib(root, monkeypatch):
    ranges = []
    monkeypatch.setattr("wal_e.blobstore.publish.start_writeback", lambda _, offset, length: ranges.append((offset, length)))
    FileStore(str(root), call_directly).put("key", (b"x" * 3 * MIB for _ in range(7)))
    assert ranges == [(0, 9 * MIB), (9 * MIB, 9 * MIB)]


def test_a_c_library_without_sync_file_range_is_tolerated(root, monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    assert FileStore(str(root), call_directly).put("key", [b"x" * 9 * MIB]) == 9 * MIB


def store_whose_links_fail(root, monkeypatch, number):
    tried = []

    def link(*names):
        tried.append(names)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.link", link)
    return FileStore(str(root), call_directly), tried


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_what_file_systems_say_of_hard_links_leads_to_another_way_for_good(root, monkeypatch, number):
    store, tried = store_whose_links_fail(root, monkeypatch, number)
    for name in "abc":
        store.create(name, [b"1"])
    assert len(tried) == 1
    with pytest.raises(BlobExists):
        store.create("a", [b"2"])
    assert files(root) == ["a", "b", "c"]


def test_a_real_failure_of_link_is_no_reason_for_another_way(root, monkeypatch):
    store, tried = store_whose_links_fail(root, monkeypatch, errno.EIO)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            store.create("new", [b"1"])
    assert len(tried) == 2
    assert files(root) == []


def test_rename_noreplace_renames_and_never_replaces(tmp_path):
    (tmp_path / "ä").write_text("new")
    rename_noreplace(f"{tmp_path}/ä", f"{tmp_path}/target")
    (tmp_path / "other").write_text("other")
    with pytest.raises(FileExistsError):
        rename_noreplace(f"{tmp_path}/other", f"{tmp_path}/target")
    with pytest.raises(FileNotFoundError):
        rename_noreplace(f"{tmp_path}/absent", f"{tmp_path}/free")
    assert (tmp_path / "target").read_text() == "new"
    assert files(tmp_path) == ["other", "target"]


def test_rename_noreplace_says_when_the_c_library_lacks_it(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    with pytest.raises(OSError, match="Function not implemented") as caught:
        rename_noreplace(f"{tmp_path}/a", f"{tmp_path}/b")
    assert caught.value.errno == errno.ENOSYS


@pytest.fixture
def claims_only(monkeypatch):
    monkeypatch.setattr("os.link", unsupported)
    monkeypatch.setattr(publish, "rename_noreplace", unsupported)


@pytest.mark.usefixtures("claims_only")
def test_a_claim_stands_between_the_check_and_the_rename(store, root, monkeypatch):
    seen = []

    def rename(source, target, real=os.rename):
        seen.append(files(root))
        real(source, target)

    monkeypatch.setattr("os.rename", rename)
    store.create("dir/new", [b"1"])
    assert "dir/.new.claim" in seen[0]
    assert files(root) == ["dir/blob", "dir/new"]


@pytest.mark.usefixtures("claims_only")
def test_a_claim_that_stays_is_reported_by_name_and_never_broken(root):
    waits = []
    store = FileStore(str(root), call_directly, sleep=waits.append)
    (root / ".key.claim").touch()
    with pytest.raises(StoreUnavailable) as caught:
        store.create("key", [b"1"])
    assert 1 < sum(waits) < 30
    assert f"{root}/.key.claim" in caught.value.detail
    assert files(root) == [".key.claim"]
    assert keys(store) == []


@pytest.mark.usefixtures("claims_only")
def test_a_claim_that_is_given_up_lets_the_next_writer_in(root):
    store = FileStore(str(root), call_directly, sleep=lambda _: (root / ".key.claim").unlink())
    (root / ".key.claim").touch()
    assert store.create("key", [b"1"]) == 1
    assert files(root) == ["key"]


@pytest.mark.usefixtures("claims_only")
def test_a_claim_that_led_to_a_blob_means_it_exists(root):
    store = FileStore(str(root), call_directly, sleep=lambda _: (root / "key").write_text("theirs"))
    (root / ".key.claim").touch()
    with pytest.raises(BlobExists):
        store.create("key", [b"1"])
    assert (root / "key").read_text() == "theirs"


def test_a_url_names_the_local_host_and_the_root(store, root):
    assert store.url == f"file://localhost{root}"
    assert store.url_of("dir/blob") == f"file://localhost{root}/dir/blob"


def test_flushes_in_a_thread_pool_leave_the_event_loop_running(public):
    program = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent
import threading
main, flushers = threading.get_ident(), set()

def offload(blocking):
    def call():
        flushers.add(gevent.monkey.get_original("_thread", "get_ident")())
        before = len(ticks)
        while len(ticks) < before + 3:
            gevent.monkey.get_original("time", "sleep")(0.001)
        blocking()
    gevent.get_hub().threadpool.apply(call)

ticks = []

def tick():
    while True:
        ticks.append(1)
        gevent.sleep(0.005)

ticker = gevent.spawn(tick)
store = FileStore(sys.argv[1], offload)
store.create("dir/big", (b"x" * 1048576 for _ in range(20)))
assert store.stat("dir/big").size == 20 << 20
assert flushers and gevent.monkey.get_original("_thread", "get_ident")() not in flushers
"""
    check(program, public)
