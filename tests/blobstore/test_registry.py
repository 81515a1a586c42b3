import subprocess
import sys

import pytest

from wal_e.blobstore.registry import call_directly, open_store
from wal_e.errors import ConfigurationError, StoreMisconfigured

SLOW = {
    "typing",
    "re",
    "json",
    "dataclasses",
    "enum",
    "logging",
    "subprocess",
    "tempfile",
    "contextlib",
    "hashlib",
    "threading",
    "pathlib",
    "urllib",
    "random",
    "ctypes",
}


def test_a_file_url_opens_a_file_store(tmp_path):
    store = open_store(f"file://localhost{tmp_path}/")
    store.put("key", [b"content"])
    assert (tmp_path / "key").read_bytes() == b"content"
    assert store.url == f"file://localhost{tmp_path}"


def test_a_file_url_needs_its_directory(tmp_path):
    with pytest.raises(StoreMisconfigured):
        open_store(f"file:///{tmp_path}/absent")


def test_flushes_go_through_the_given_offload(tmp_path):
    calls = []

    def offload(blocking):
        calls.append(blocking)
        blocking()

    open_store(f"file://localhost{tmp_path}", offload=offload).put("key", [b"content"])
    assert len(calls) == 2


def test_a_direct_call_returns_what_the_call_returns():
    assert call_directly(lambda: 42) == 42


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "aws"), ("gs", "google"), ("wabs", "azure"), ("swift", "swift")])
def test_a_store_of_a_later_release_is_named_as_such(scheme, extra):
    with pytest.raises(ConfigurationError) as caught:
        open_store(f"{scheme}://bucket/prefix")
    assert caught.value.status == 2
    assert f"{scheme}://" in caught.value.message
    assert "file:// only" in caught.value.message
    assert f'pip install "wal-e[{extra}]"' in caught.value.detail


def test_an_unusable_url_is_refused():
    with pytest.raises(ConfigurationError):
        open_store("file://backups/pg")


def test_storing_and_reading_a_segment_imports_nothing_slow(tmp_path):
    program = """
import sys
before = set(sys.modules)
from wal_e.blobstore.registry import open_store
from wal_e.blobstore.wrappers import Retrying
from wal_e.retry import Policy
store = Retrying(open_store("file://localhost" + sys.argv[1]), Policy(3, 60))
store.create("wal_005/1.lzo", iter([b"x" * 7_000_000]))
assert len(b"".join(store.get("wal_005/1.lzo"))) == 7_000_000
store.stat("wal_005/1.lzo")
print(*(set(sys.modules) - before))
"""
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1))" + program, sys.path[0], str(tmp_path)],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert set(ran.stdout.split()) & SLOW == set()
    assert "wal_e.blobstore.file" in ran.stdout.split()
