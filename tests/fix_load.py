"""Servers under load, what is kept of them in a store, and the comparison of the two.

A ``Shelf`` is a prefix and a way to see all that is there without wal-e. ``whole`` is what must be
true of an archive when everything has settled, whatever was killed or away before.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import fix_s3
from fix_archive import _identity, script
from fix_network import NETWORKS, Network
from fix_postgres import Server, bindir, wait_until
from servers import versity


class Shelf(NamedTuple):
    """The variables that name a prefix; functions that list all keys below it, and read one; ``network`` if it is in one."""

    environ: dict[str, str]
    keys: Callable[[], list[str]]
    read: Callable[[str], bytes]
    network: Network | None = None

    def contents(self) -> dict[str, bytes]:
        """All that is there, by key."""
        return {key: self.read(key) for key in self.keys()}

    def wal_names(self) -> list[str]:
        """All WAL there, by name; temporary files are left out."""
        names = [key.removeprefix("wal_005/") for key in self.keys() if key.startswith("wal_005/")]
        return sorted(name.removesuffix(".lzo") for name in names if not name.startswith("."))

    def wal(self, name: str) -> bytes:
        """One WAL file, decoded by lzop itself."""
        return decoded(self.read(f"wal_005/{name}.lzo"))


def file_shelf(server: Server) -> Shelf:
    """A directory beside the server's."""
    store = server.make_directory("store")

    def keys() -> list[str]:
        return [str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()]

    environ = {"WALE_FILE_PREFIX": f"file://localhost{store}", "WALE_LOG_DESTINATION": "stderr"}
    return Shelf(environ, keys, lambda key: (store / key).read_bytes())


def s3_shelf(server: Server) -> Shelf:
    """A bucket of a real S3 server."""
    network, client = NETWORKS["s3"](), fix_s3.admin(versity)
    bucket = re.match(r"s3://([^/]+)", network.environ["WALE_S3_PREFIX"])[1]

    def keys() -> list[str]:
        return [name.removeprefix("pg/main/") for name in network.objects()]

    def read(key: str) -> bytes:
        return client.get_object(Bucket=bucket, Key=f"pg/main/{key}")["Body"].read()

    return Shelf({**network.environ, "WALE_LOG_DESTINATION": "stderr"}, keys, read, network)


def decoded(content: bytes) -> bytes:
    return subprocess.run(["lzop", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout


@contextlib.contextmanager
def loaded(server: Server, rate: int | None = None) -> Iterator[None]:
    """Run pgbench, again and again, until the block ends; of its transactions, so many a second, each twentieth writes 96 kB of WAL.

    The server may go away for a moment.
    """
    ending, ends = threading.Event(), []
    noise = server.directory / "noise.sql"
    noise.write_text("select pg_logical_emit_message(false, 'noise', string_agg(md5(random()::text), '')) from generate_series(1, 3000);")
    noise.chmod(0o644)
    argv = [bindir() / "pgbench", "-n", "-c", "2", "-T", "1", "-b", "tpcb-like@19", "-f", f"{noise}@1", *(["-R", str(rate)] if rate else [])]

    def run() -> None:
        while not ending.is_set():
            ends.append(server.run(argv, check=False))
            ending.wait(0.2 if ends[-1].returncode else 0)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
    assert [end for end in ends if end.returncode == 0], ends[-1]


def drained(server: Server, timeout_s: float = 60) -> None:
    """Wait until nothing waits to be archived; ask the archiver again and again, which sleeps for a minute after three failures."""
    asked = [0.0]

    def empty() -> bool:
        if not list((server.data / "pg_wal/archive_status").glob("*.ready")):
            return True
        if time.monotonic() > asked[0] + 1:
            server.psql("select pg_switch_wal()")
            asked[0] = time.monotonic()
        return False

    server.psql("select pg_switch_wal()")
    wait_until(empty, f"the end of the backlog\n{server.log_text()[-5000:]}", timeout_s=timeout_s)


def whole(server: Server, shelf: Shelf) -> list[str]:
    """Compare all that is archived with what the server has kept; return its names.

    The server must keep all its WAL (``wal_keep_size``). Everything stored has the bytes of the server's file, everything that is
    marked done is stored, and the segments stored have no gap.
    """
    names, pg_wal = shelf.wal_names(), server.data / "pg_wal"
    assert [name for name in names if shelf.wal(name) != (pg_wal / name).read_bytes()] == []
    assert marked_done(server) - set(names) == set()
    segments = [name for name in names if len(name) == 24]
    in_a_log = (1 << 32) // (pg_wal / segments[0]).stat().st_size
    numbers = [int(name[8:16], 16) * in_a_log + int(name[16:], 16) for name in segments]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return names


def marked_done(server: Server) -> set[str]:
    """Names of the WAL files that the server takes for archived."""
    return {path.name.removesuffix(".done") for path in (server.data / "pg_wal/archive_status").glob("*.done")}


def dump(server: Server) -> list[str]:
    lines = server.run([bindir() / "pg_dump", "postgres"]).stdout.splitlines()
    return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]  # followed by random words


class Resident:
    """A resident archiver of a server: runs until the block ends, and can be started again when it was killed."""

    def __init__(self, server: Server, log: Path) -> None:
        self.server = server
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Resident:
        self.revive()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def revive(self) -> None:
        """Start it, unless it runs."""
        if self.process is None or self.process.poll() is not None:
            with self.log.open("ab") as log:
                environ = {**self.server.environ, "WALE_LOG_LEVEL": "info"}
                argv = [script(), "wal-archive", self.server.data]
                self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ, cwd=self.server.directory, **_identity())
