"""Two runs of wal-push on one cluster at once, on the same file or on neighbours: nothing is lost, nothing fails, each file is stored once."""

from __future__ import annotations

import shutil

import build_wal
import pytest
from fix_archive import Watched, records
from fix_load import Shelf, decoded, file_shelf, s3_shelf
from fix_postgres import Server, give_to_server_user

SEGMENTS = [f"0000000200000000000000{number:02X}" for number in range(3, 7)]
FILES = {"00000002.history": b"1\t0/3000000\tno recovery target specified\n", **{name: build_wal.build_segment(name) for name in SEGMENTS}}
PAIRS = [(SEGMENTS[0], SEGMENTS[0]), (SEGMENTS[0], SEGMENTS[1]), ("00000002.history", SEGMENTS[3]), (SEGMENTS[3], SEGMENTS[3])]


class Place:
    """A directory like a cluster's, without a server, and runs of wal-e in it."""

    def __init__(self, server: Server, shelf: Shelf) -> None:
        self.server = server
        self.wal_e = Watched(server)
        self.wal_e.env |= shelf.environ
        self.variable = next(name for name in shelf.environ if name.endswith("_PREFIX"))
        self.prefix = shelf.environ[self.variable]
        self.contents = shelf.contents
        self.pg_wal = server.make_directory("data") / "pg_wal"

    def restart(self, round_: str) -> None:
        """Let all files wait, for a prefix that was never used."""
        shutil.rmtree(self.pg_wal, ignore_errors=True)
        (self.pg_wal / "archive_status").mkdir(parents=True)
        for name, content in FILES.items():
            (self.pg_wal / name).write_bytes(content)
            (self.pg_wal / f"archive_status/{name}.ready").touch()
        give_to_server_user(self.pg_wal)
        self.wal_e.env[self.variable] = f"{self.prefix}/{round_}"
        if (self.server.directory / "store").exists():
            self.server.make_directory(f"store/{round_}")

    @property
    def done(self) -> set[str]:
        return {path.name.removesuffix(".done") for path in (self.pg_wal / "archive_status").glob("*.done")}


@pytest.mark.parametrize(
    ("shelf_of", "rounds"),
    [(file_shelf, 12), (s3_shelf, 3), pytest.param(file_shelf, 100, marks=pytest.mark.slow), pytest.param(s3_shelf, 100, marks=pytest.mark.slow)],
)
def test_two_pushes_at_once_store_every_file_once_and_both_succeed(make_place, shelf_of, rounds):
    server = make_place()
    place = Place(server, shelf_of(server))
    for number in range(rounds):
        round_ = f"round-{number:03d}"
        place.restart(round_)
        pair = PAIRS[number % len(PAIRS)]
        with place.wal_e.started("wal-push", f"data/pg_wal/{pair[0]}") as one, place.wal_e.started("wal-push", f"data/pg_wal/{pair[1]}") as other:
            ends = [process.communicate(timeout=60) for process in (one, other)]
            assert [one.returncode, other.returncode] == [0, 0], ends
        assert [record for _, stderr in ends for record in records(stderr) if record.level in ("ERROR", "WARNING")] == [], ends
        found = {key.removeprefix(f"{round_}/"): content for key, content in place.contents().items() if key.startswith(round_)}
        assert set(found) == {"identity_005.json", *(f"wal_005/{name}.lzo" for name in FILES)}
        for name, content in FILES.items():
            assert decoded(found[f"wal_005/{name}.lzo"]) == content
        assert place.done >= set(FILES) - set(pair)
