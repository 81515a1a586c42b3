import os
import subprocess
import sys

import pytest

from wal_e.blobstore.registry import call_directly, open_store
from wal_e.errors import ConfigurationError, StoreMisconfigured
from wal_e.settings import PREFIXES, Settings

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


def opened(url, **options):
    return open_store(Settings({PREFIXES["file_prefix"]: url}), **options)


def test_a_file_url_opens_a_file_store(tmp_path):
    store = opened(f"file://localhost{tmp_path}/")
    store.put("key", [b"content"])
    assert (tmp_path / "key").read_bytes() == b"content"
    assert store.url == f"file://localhost{tmp_path}"


def test_a_file_url_needs_its_directory(tmp_path):
    with pytest.raises(StoreMisconfigured):
        opened(f"file:///{tmp_path}/absent")


def test_flushes_go_through_the_given_offload(tmp_path):
    calls = []

    def offload(blocking):
        calls.append(blocking)
        blocking()

    opened(f"file://localhost{tmp_path}", offload=offload).put("key", [b"content"])
    assert len(calls) == 2


def test_a_direct_call_returns_what_the_call_returns():
    assert call_directly(lambda: 42) == 42


@pytest.mark.parametrize(("scheme", "extra"), [("s3", "aws"), ("gs", "google"), ("wabs", "azure"), ("swift", "swift")])
def test_a_library_that_is_missing_is_named_by_its_extra(scheme, extra):
    program = """
import sys
for sdk in ("botocore", "google.cloud.storage", "azure.storage.blob", "swiftclient"):
    sys.modules[sdk] = None
from wal_e.blobstore.registry import open_store
from wal_e.errors import ConfigurationError
from wal_e.settings import Settings
try:
    open_store(Settings({}, {"file_prefix": sys.argv[1] + "://bucket/prefix"}))
except ConfigurationError as error:
    print(error.status, error.message, error.hint)
"""
    environ = {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program, scheme], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.startswith(f"2 {scheme}:// needs a library")
    assert f'pip install "wal-e[{extra}]"' in done.stdout


def test_an_unusable_url_is_refused():
    with pytest.raises(ConfigurationError):
        opened("file://backups/pg")


def test_storing_and_reading_a_segment_imports_nothing_slow(tmp_path):
    program = """
import sys
before = set(sys.modules)
from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings
store = open_store(Settings({}, {"file_prefix": "file://localhost" + sys.argv[1]}))
store.create("wal_005/1.lzo", iter([b"x" * 7_000_000]))
assert len(b"".join(store.get("wal_005/1.lzo"))) == 7_000_000
store.stat("wal_005/1.lzo")
print(*(set(sys.modules) - before))
"""
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", "import sys; sys.path.insert(0, sys.argv.pop(1))" + program, sys.path[0], str(tmp_path)],
                         capture_output=True, text=True, check=True)  # fmt: skip
    assert set(ran.stdout.split()) & SLOW == set()
    assert "wal_e.blobstore.file" in ran.stdout.split()


def test_what_libraries_log_does_not_reach_stderr():
    program = """
import logging
from wal_e.blobstore.registry import LIBRARIES, open_store
from wal_e.settings import Settings
open_store(Settings({}, {"swift_prefix": "swift://container/path"}))
for name in LIBRARIES:
    logging.getLogger(name + ".something").warning("the connection pool is full")
"""
    environ = {
        "SWIFT_AUTHURL": "http://127.0.0.1:1",
        "SWIFT_USER": "me",
        "SWIFT_PASSWORD": "secret",
        "SWIFT_AUTH_VERSION": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", program.replace("Settings({}", f"Settings({environ!r}")], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
