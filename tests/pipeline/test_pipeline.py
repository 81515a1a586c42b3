"""The pipeline with real lzop, waiting in both ways: blocking, and under gevent."""

import os
import subprocess
import sys
import textwrap

import pytest

from wal_e.errors import CodecFailed, DamageError, DiskFull, ToolMissing
from wal_e.pipeline.pipeline import Pipeline
from wal_e.pipeline.process import Blocking

CONTENT = os.urandom(1 << 20) + bytes(3 << 20) + b"tail"


@pytest.fixture
def pipeline():
    return Pipeline(Blocking())


def produce(stream):
    view = memoryview(CONTENT)
    while view:
        view = view[stream.write(view) :]


def collect(into):
    def consume(stream):
        while data := stream.read(1 << 16):
            into.append(data)

    return consume


def coded(pipeline):
    return list(pipeline.encode(produce))


def test_what_is_encoded_is_what_lzop_decodes(pipeline):
    assert subprocess.run(["lzop", "-dc"], input=b"".join(coded(pipeline)), capture_output=True, check=True).stdout == CONTENT


def test_what_lzop_encodes_is_decoded(pipeline):
    stored = subprocess.run(["lzop", "-c"], input=CONTENT, capture_output=True, check=True).stdout
    got = []
    pipeline.decode(iter([stored]), "k.lzo", collect(got))
    assert b"".join(got) == CONTENT


def test_a_file_is_encoded_from_its_offset_and_decoded_into_a_file(pipeline, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"skip" + CONTENT)
    with source.open("rb", buffering=0) as file:
        file.seek(4)
        stored = list(pipeline.encode_file(file.fileno()))
    with (tmp_path / "back").open("w+b", buffering=0) as back:
        pipeline.decode_file(iter(stored), "k.lzo", back.fileno())
        back.seek(0)
        assert back.read() == CONTENT


def test_an_empty_stream_round_trips(pipeline):
    got = []
    pipeline.decode(pipeline.encode(lambda stream: None), "k.lzo", collect(got))
    assert got == []


@pytest.mark.parametrize("bytes_a_chunk", [1, 7, 4096])
def test_the_codec_is_recognised_however_the_first_bytes_are_cut(pipeline, bytes_a_chunk):
    stored = b"".join(pipeline.encode(lambda stream: stream.write(b"hello" * 100)))
    got = []
    pipeline.decode((stored[i : i + bytes_a_chunk] for i in range(0, len(stored), bytes_a_chunk)), "k.lzo", collect(got))
    assert b"".join(got) == b"hello" * 100


def damaged(kind, stored):
    middle = len(stored) // 2
    return {
        "empty": b"",
        "foreign": b"this is not what lzop writes at all",
        "cut at the end": stored[:-3],
        "cut in the middle": stored[:middle],
        "a flipped bit": stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "foreign", "cut at the end", "cut in the middle", "a flipped bit"])
@pytest.mark.parametrize("into", ["consumer", "file"])
def test_damage_is_an_error_that_names_the_key(pipeline, tmp_path, kind, into):
    stored = damaged(kind, b"".join(coded(pipeline)))
    with pytest.raises(DamageError, match=r"wal_005/X\.lzo") as caught, (tmp_path / "out").open("wb") as out:
        if into == "file":
            pipeline.decode_file(iter([stored]), "wal_005/X.lzo", out.fileno())
        else:
            pipeline.decode(iter([stored]), "wal_005/X.lzo", collect([]))
    assert "ioctl" not in str(caught.value)
    assert caught.value.hint


def test_the_error_of_a_producer_is_raised_and_the_stream_does_not_end_well(pipeline):
    def fail(stream):
        stream.write(CONTENT)
        raise LookupError("from the producer")

    with pytest.raises(LookupError, match="from the producer"):
        list(pipeline.encode(fail))


def test_the_error_of_a_consumer_is_raised(pipeline):
    def fail(stream):
        stream.read(10)
        raise LookupError("from the consumer")

    with pytest.raises(LookupError, match="from the consumer"):
        pipeline.decode(iter(coded(pipeline)), "k.lzo", fail)


def test_the_error_of_the_store_is_raised(pipeline):
    def stream():
        yield coded(pipeline)[0]
        raise LookupError("from the store")

    with pytest.raises(LookupError, match="from the store"):
        pipeline.decode(stream(), "k.lzo", collect([]))


def test_nothing_is_started_for_a_key_that_is_not_there(pipeline, monkeypatch):
    def absent():
        raise LookupError("no such key")
        yield b""

    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LookupError, match="no such key"):
        pipeline.decode(absent(), "k.lzo", collect([]))


def test_a_full_disk_is_told_from_damage(pipeline):
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(DiskFull):
        pipeline.decode_file(iter(coded(pipeline)), "k.lzo", full.fileno())


def test_a_missing_program_is_named_with_what_to_install(pipeline, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolMissing, match="lzop") as caught:
        coded(pipeline)
    assert "apt-get install lzop" in caught.value.hint


@pytest.mark.parametrize("script", ["kill -9 $$", "exec head -c 10", "exit 3"])
def test_a_codec_that_dies_or_stops_early_is_never_a_clean_end(pipeline, monkeypatch, tmp_path, script):
    fake = tmp_path / "lzop"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(CodecFailed):
        coded(pipeline)


@pytest.mark.parametrize(("status", "error"), [(1, DamageError), (2, DamageError), (3, CodecFailed), (127, CodecFailed)])
def test_a_codec_that_could_not_begin_says_nothing_of_what_is_stored(pipeline, monkeypatch, tmp_path, status, error):
    stored = coded(pipeline)
    fake = tmp_path / "lzop"
    fake.write_text(f"#!/bin/sh\ncat >/dev/null; exit {status}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(error):
        pipeline.decode(iter(stored), "k.lzo", collect([]))


def children():
    return subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True).stdout.count("lzop")


def test_closing_a_stream_early_leaves_neither_process_nor_descriptor(pipeline):
    before = len(os.listdir("/proc/self/fd"))
    stream = pipeline.encode(produce)
    next(stream)
    stream.close()
    assert children() == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_is_left_after_a_thousand_chunks_and_errors(pipeline):
    before = len(os.listdir("/proc/self/fd"))
    stored = coded(pipeline)
    pipeline.decode(iter(stored), "k.lzo", collect([]))
    for bad in ([], stored[:1]):
        with pytest.raises(DamageError):
            pipeline.decode(iter(bad), "k.lzo", collect([]))
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_same_holds_under_gevent_in_parallel_lanes():
    script = textwrap.dedent("""
        from gevent import monkey; monkey.patch_all(os=False, signal=False)
        import hashlib, os
        from wal_e.errors import DamageError
        from wal_e.pipeline import pool
        from wal_e.pipeline.lanes import Cooperative
        from wal_e.pipeline.pipeline import Pipeline

        pipeline = Pipeline(Cooperative(6))
        block = os.urandom(1 << 20)

        def there_and_back(number):
            def produce(stream):
                for _ in range(20):
                    left = memoryview(block)
                    while left:
                        left = left[stream.write(left):]
                stream.write(b"%d" % number)
            digest = hashlib.sha256()
            def consume(stream):
                while data := stream.read(1 << 16):
                    digest.update(data)
            stored = list(pipeline.encode(produce))
            if number % 5 == 4:
                stored[3] = bytes(len(stored[3]))
            pipeline.decode(iter(stored), "k.lzo", consume)
            assert digest.digest() == hashlib.sha256(block * 20 + b"%d" % number).digest()
            return number

        outcomes = list(pool.run(there_and_back, range(30), 6))
        assert sorted(o.item for o in outcomes if o.error is None) == [n for n in range(30) if n % 5 != 4]
        assert all(isinstance(o.error, DamageError) for o in outcomes if o.item % 5 == 4)

        lanes = pool.run(there_and_back, iter(int, 1), 6)
        next(lanes); lanes.close()
        print(len(os.listdir("/proc/self/task")), os.popen("ps -o comm= --ppid %d | grep -c lzop" % os.getpid()).read().strip())
    """)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == "0"
    assert done.stderr == ""
