"""One stream up and down per store: wal-e beside the vendor's own SDK, and a raw copy over the loopback.

    python bench/stores.py [--gib 2] [--pools 1,4] [--stores s3,gs,wabs,swift] [--rounds 1]

The servers are those of the tests (script/test installs them), on this machine: what is compared is the cost of the
client, not of a network. A pool of 4 is four streams of a quarter of the bytes each. The bytes are random, in chunks of
256 KiB, as a codec hands them out. wal-e runs as its launcher runs it, under gevent; the SDK runs in plain threads,
with the call and the concurrency that its documentation recommends. Each contestant is a process of its own, whose peak
memory is shown. Ratios are of elapsed time; above 1 wal-e is slower.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
CHUNK = 256 * 1024
MIB = 1 << 20
PREFIXES = {"s3": "WALE_S3_PREFIX", "gs": "WALE_GS_PREFIX", "wabs": "WALE_WABS_PREFIX", "swift": "WALE_SWIFT_PREFIX"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--pools", default="1,4")
    parser.add_argument("--stores", default=",".join(PREFIXES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", nargs=4, metavar=("WHO", "STORE", "POOL", "BYTES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        who, store, pool, size = options.child
        child(who, store, int(pool), int(size))
        return
    size = int(options.gib * (1 << 30))
    sys.path.insert(0, str(ROOT / "tests"))
    print(f"{size / MIB:.0f} MiB per run, Python {sys.version.split()[0]}, {os.cpu_count()} cores; raw copy over the loopback: {raw_copy(size):.0f} MiB/s\n")
    print(f"{'store':6} {'pool':>4}  {'':4}  {'wal-e MiB/s':>11} {'SDK MiB/s':>10} {'ratio':>6}  {'wal-e MiB':>9} {'SDK MiB':>8}")
    for store in options.stores.split(","):
        for pool in map(int, options.pools.split(",")):
            compare(store, pool, size, options.rounds)


def compare(store: str, pool: int, size: int, rounds: int) -> None:
    """Run both contestants on a new server each time, in turn, and print two lines."""
    found: dict[str, list[dict[str, float]]] = {"wal-e": [], "sdk": []}
    for number in range(rounds):
        for who in reversed(found) if number % 2 else found:
            with tempfile.TemporaryDirectory(prefix="wal-e-bench-") as directory, SERVERS[store](Path(directory)) as environ:
                argv = [sys.executable, __file__, "--child", who, store, str(pool), str(size)]
                done = subprocess.run(argv, env={**clean_environ(), **environ}, stdout=subprocess.PIPE, check=True)
                found[who].append(json.loads(done.stdout))
    for way in ("up", "down"):
        ours, theirs = found["wal-e"], found["sdk"]
        ratio = median(one[way] / other[way] for one, other in zip(ours, theirs, strict=True))
        rates = [size / MIB / median(run[way] for run in runs) for runs in (ours, theirs)]
        peaks = [median(run[f"{way} MiB"] for run in runs) for runs in (ours, theirs)]
        print(f"{store:6} {pool:4}  {way:4}  {rates[0]:11.0f} {rates[1]:10.0f} {ratio:6.2f}  {peaks[0]:9.0f} {peaks[1]:8.0f}", flush=True)


def clean_environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("WALE_", "AWS_", "GOOGLE_", "AZURE_", "WABS_", "SWIFT_"))}


def raw_copy(size: int) -> float:
    """Send so many bytes through a socket on the loopback; MiB per second."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sender:
        receiver, _ = listener.accept()
        data = os.urandom(MIB)

        def send() -> None:
            for _ in range(size // MIB):
                sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)

        begin = time.perf_counter()
        threading.Thread(target=send).start()
        with receiver:
            while receiver.recv_into(bytearray(MIB)):
                pass
        return size / MIB / (time.perf_counter() - begin)


# The servers, and the environment that says where each one is.


@contextlib.contextmanager
def s3_server(directory: Path) -> Iterator[dict[str, str]]:
    import boto3
    from servers import versity

    with versity.running(directory) as endpoint:
        keys = {"aws_access_key_id": endpoint.access_key, "aws_secret_access_key": endpoint.secret_key, "region_name": endpoint.region}
        boto3.client("s3", endpoint_url=endpoint.url, **keys).create_bucket(Bucket="bench")
        yield {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": endpoint.access_key,
            "AWS_SECRET_ACCESS_KEY": endpoint.secret_key,
            "AWS_REGION": endpoint.region,
            "AWS_DEFAULT_REGION": endpoint.region,
        }


@contextlib.contextmanager
def gs_server(directory: Path) -> Iterator[dict[str, str]]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage
    from servers import gcs

    with gcs.running(directory) as endpoint:
        storage.Client(endpoint.project, AnonymousCredentials(), client_options={"api_endpoint": endpoint.url}).create_bucket("bench")
        yield {"STORAGE_EMULATOR_HOST": endpoint.url, "GOOGLE_CLOUD_PROJECT": endpoint.project}


@contextlib.contextmanager
def wabs_server(directory: Path) -> Iterator[dict[str, str]]:
    from azure.storage.blob import BlobServiceClient
    from servers import azurite

    with azurite.running(directory) as endpoint:
        BlobServiceClient.from_connection_string(endpoint.connection_string).create_container("bench")
        yield {"AZURE_STORAGE_CONNECTION_STRING": endpoint.connection_string}


@contextlib.contextmanager
def swift_server(directory: Path) -> Iterator[dict[str, str]]:
    import swiftclient
    from servers import swift

    with swift.running(directory) as endpoint:
        swiftclient.Connection(endpoint.auth_url, endpoint.user, endpoint.key).put_container("bench")
        yield {"SWIFT_AUTHURL": endpoint.auth_url, "SWIFT_USER": endpoint.user, "SWIFT_PASSWORD": endpoint.key, "SWIFT_AUTH_VERSION": "1"}


SERVERS = {"s3": s3_server, "gs": gs_server, "wabs": wabs_server, "swift": swift_server}


# The contestants, each in a process of its own: seconds and peak memory of both ways, as JSON.


def child(who: str, store: str, pool: int, size: int) -> None:
    up, down = ours(store, pool) if who == "wal-e" else sdk(store)
    data = os.urandom(MIB)
    result = {}
    for way, work in (("up", lambda number: up(f"stream-{number}", size // pool, data)), ("down", lambda number: down(f"stream-{number}", size // pool))):
        begin = time.perf_counter()
        side_by_side(work, pool)
        result[way] = time.perf_counter() - begin
        result[f"{way} MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def side_by_side(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        sys.exit(1)


def chunks(size: int, data: bytes) -> Iterator[bytes]:
    for offset in range(0, size, CHUNK):
        begin = offset % len(data)
        yield data[begin : begin + min(CHUNK, size - offset)]


class Stream(io.RawIOBase):
    """The same chunks as a file that cannot seek, which is what an SDK takes."""

    def __init__(self, size: int, data: bytes) -> None:
        self.left, self.data, self.offset = size, data, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), CHUNK, self.left, len(self.data) - self.offset % len(self.data))
        begin = self.offset % len(self.data)
        buffer[:count] = self.data[begin : begin + count]
        self.offset, self.left = self.offset + count, self.left - count
        return count


class Sink(io.RawIOBase):
    """A file that counts what is written."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


Up = Callable[[str, int, bytes], None]
Down = Callable[[str, int], None]


def ours(store: str, pool: int) -> tuple[Up, Down]:
    from gevent import monkey

    monkey.patch_all(os=False, signal=False)
    sys.path.insert(0, str(ROOT))
    from wal_e.blobstore.registry import open_store
    from wal_e.settings import Settings

    blobs = open_store(Settings({**os.environ, PREFIXES[store]: f"{store}://bench/prefix"}), lanes=pool)

    def down(key: str, size: int) -> None:
        assert sum(map(len, blobs.get(key))) == size

    return lambda key, size, data: blobs.put(key, chunks(size, data)), down


def sdk(store: str) -> tuple[Up, Down]:
    return {"s3": s3_sdk, "gs": gs_sdk, "wabs": wabs_sdk, "swift": swift_sdk}[store]()


def s3_sdk() -> tuple[Up, Down]:
    import boto3

    client = boto3.client("s3")

    def down(key: str, size: int) -> None:
        sink = Sink()
        client.download_fileobj("bench", key, sink)
        assert sink.size == size

    return lambda key, size, data: client.upload_fileobj(io.BufferedReader(Stream(size, data), CHUNK), "bench", key), down


def gs_sdk() -> tuple[Up, Down]:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    bucket = storage.Client(credentials=AnonymousCredentials()).bucket("bench")

    def down(key: str, size: int) -> None:
        sink = Sink()
        bucket.blob(key).download_to_file(sink)
        assert sink.size == size

    def up(key: str, size: int, data: bytes) -> None:
        with bucket.blob(key).open("wb", ignore_flush=True) as writer:  # 40 MiB at a time: the one way for a stream of unknown length
            for chunk in chunks(size, data):
                writer.write(chunk)

    return up, down


def wabs_sdk() -> tuple[Up, Down]:
    from azure.storage.blob import ContainerClient

    container = ContainerClient.from_connection_string(os.environ["AZURE_STORAGE_CONNECTION_STRING"], "bench", max_block_size=8 * MIB)

    def down(key: str, size: int) -> None:
        sink = Sink()
        container.download_blob(key).readinto(sink)  # more at once wants a file that can seek
        assert sink.size == size

    return lambda key, size, data: container.upload_blob(key, chunks(size, data), max_concurrency=4), down


def swift_sdk() -> tuple[Up, Down]:
    import swiftclient

    def connection() -> swiftclient.Connection:
        return swiftclient.Connection(os.environ["SWIFT_AUTHURL"], os.environ["SWIFT_USER"], os.environ["SWIFT_PASSWORD"])

    def down(key: str, size: int) -> None:
        _, body = connection().get_object("bench", key, resp_chunk_size=CHUNK)
        assert sum(map(len, body)) == size

    def up(key: str, size: int, data: bytes) -> None:
        url, token = connection().get_auth()
        swiftclient.client.put_object(url, token, "bench", key, chunks(size, data))  # one request, up to 5 GiB

    return up, down


if __name__ == "__main__":
    main()
