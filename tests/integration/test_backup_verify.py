"""backup-verify and --verify-page-checksums with a real server: page checksums on and off, damage on disk and in the store, torn pages."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fix_archive import Watched, archive_into_store, fake_lzop, refusal, settled, unchanged, warnings
from fix_load import loaded
from fix_postgres import Server, bindir, give_to_server_user, wait_until

from wal_e.postgres.wal_blocks import touched_blocks
from wal_e.postgres.wal_reader import WalReader

PAGE = 8192


def verified(result, status=0):
    assert result.returncode == status, result.stderr
    return json.loads(result.stdout)


def flip(path: Path, at: int) -> None:
    """Flip a bit in a file, in place."""
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))


def enable_checksums(server) -> None:
    server.run([bindir() / "pg_checksums", "--enable", "--no-sync", "-D", server.data], libpq=False)


@pytest.fixture(scope="module")
def summed(make_shared_server):
    """A running server with page checksums that archives into a store; tests make tables of their own, and drop those that they damage."""
    server = make_shared_server()
    enable_checksums(server)
    archive_into_store(server, autovacuum="off")
    return server


@pytest.fixture
def table(summed):
    """Make tables of some pages on disk, and return the paths of their files."""
    made = []

    def make(name: str) -> str:
        made.append(name)
        summed.psql(f"create table {name} (n int, filler text); insert into {name} select n, repeat('x', 200) from generate_series(1, 1000) as n; checkpoint")
        return summed.psql(f"select pg_relation_filepath('{name}')")

    yield make
    for name in made:
        summed.psql(f"drop table {name}; checkpoint")


def push(server, *options):
    return server.wal_e("backup-push", str(server.data), "--fast", *options)


class TestStored:
    """What is in the store, spoiled in every way; the cluster has no page checksums."""

    def wal_e(self, spoiled, *words):
        return Watched(spoiled.server, spoiled.store)(*words)

    def test_all_backups_are_good_and_the_list_shows_it(self, spoiled):
        for words in (["--all", "--fast"], ["--all"]):
            result = self.wal_e(spoiled, "backup-verify", *words)
            assert (result.returncode, [line.split(": good, ")[0] for line in result.stdout.splitlines()]) == (0, spoiled.names)
        for backup in json.loads(self.wal_e(spoiled, "backup-list", "--json").stdout):
            assert [(way, check["ok"], check["problems"]) for way, check in backup["last_verify"].items()] == [("fast", True, 0), ("full", True, 0)]
            assert backup["last_verify"]["full"]["checked_bytes"] > 1_000_000 > backup["last_verify"]["fast"]["checked_bytes"]

    def test_a_backup_that_was_never_verified_says_so(self, spoiled):
        assert [backup["last_verify"] for backup in json.loads(self.wal_e(spoiled, "backup-list", "--json").stdout)] == [{"fast": None, "full": None}] * 2

    def test_a_flipped_byte_is_found_named_and_stops_a_restore_and_the_other_backup_is_verified_all_the_same(self, spoiled):
        for path in sorted((spoiled.store / "basebackups_005").rglob("*")):
            if not path.is_file() or spoiled.names[0] not in str(path) or path.name in ("extended_version.txt", "verified.json"):
                continue
            key = str(path.relative_to(spoiled.store))
            flip(path, path.stat().st_size * 2 // 3)
            result = self.wal_e(spoiled, "backup-verify", "--all", "--json")
            bad, good = sorted(verified(result, 2), key=lambda verdict: verdict["name"])
            assert [(bad["ok"], bad["damaged"][0]["key"]), (good["ok"], good["name"])] == [(False, key), (True, spoiled.names[1])]
            assert good["pages"] is None, "the cluster has no page checksums"
            refusal(result, 2, key, stdout=result.stdout)
            if path.name.endswith((".json", "part_00000000.tar.lzo")):
                refusal(self.wal_e(spoiled, "backup-fetch", str(spoiled.server.directory / "target"), spoiled.names[0]), 2, key)
            flip(path, path.stat().st_size * 2 // 3)

    def test_missing_wal_is_named(self, spoiled):
        (lost,) = (spoiled.store / "wal_005").glob(f"{spoiled.names[0][5:29]}.lzo")
        lost.unlink()
        result = self.wal_e(spoiled, "backup-verify", spoiled.names[0], "--fast")
        assert "cannot be used without it" in result.stdout
        assert refusal(result, 2, lost.stem, spoiled.names[0], stdout=result.stdout).error == "WalGap"
        assert self.wal_e(spoiled, "backup-verify", "LATEST").returncode == 0

    def test_what_it_takes_is_one_of_three(self, spoiled):
        with unchanged(spoiled.store):
            for words in ([], ["LATEST", "--all"]):
                refusal(self.wal_e(spoiled, "backup-verify", *words), 2, "takes the name of a backup, LATEST, or --all")
            assert refusal(self.wal_e(spoiled, "backup-verify", "base_00000001000000000000009A_00000040"), 1).error == "BackupNotFound"

    def test_a_deletion_takes_the_result_along(self, spoiled):
        self.wal_e(spoiled, "backup-verify", "--all", "--fast")
        assert len(list(spoiled.store.rglob("verified.json"))) == 2
        assert self.wal_e(spoiled, "delete", "--confirm", "before", "LATEST").returncode == 0
        assert [path.parent.name for path in spoiled.store.rglob("verified.json")] == [spoiled.names[1]]


def test_pages_of_a_good_cluster_are_good_on_the_way_in_and_in_the_store(summed):
    assert warnings(push(summed, "--verify-page-checksums")) == []
    backup = json.loads(summed.wal_e("backup-list", "LATEST", "--json").stdout)[0]
    assert (backup["page_checksums"]["damaged"], backup["page_checksums"]["pages"] > 2000) == ([], True)
    (verdict,) = verified(summed.wal_e("backup-verify", "LATEST", "--json"))
    assert (verdict["pages"], verdict["ok"], verdict["damaged_pages"]) == (backup["page_checksums"]["pages"], True, [])


def test_damaged_pages_of_the_cluster_are_reported_by_relation_and_block_recorded_and_found_again(summed, table):
    flipped, future = table("flipped"), table("future")
    for block in (3, 4, 7):
        flip(summed.data / flipped, block * PAGE + 5000)
    with (summed.data / future).open("r+b") as stream:
        stream.write(struct.pack("<II", 0x7FFF, 0))  # newer than the start, as a page is that WAL replaces; but newer than the end, too
    told = [record.message for record in warnings(push(summed, "--verify-page-checksums"))]
    assert sorted(told) == sorted([f"{flipped}, blocks 3 to 4, 7 of the cluster: wrong checksum", f"{future}, block 0 of the cluster: wrong checksum"])
    backup = json.loads(summed.wal_e("backup-list", "LATEST", "--json").stdout)[0]
    found = sorted([{"relation": flipped, "blocks": [[3, 4], [7, 7]]}, {"relation": future, "blocks": [[0, 0]]}], key=lambda one: one["relation"])
    assert backup["page_checksums"]["damaged"] == found
    for words in ([], ["--fast"]):
        result = summed.wal_e("backup-verify", "LATEST", "--json", *words, check=False)
        assert verified(result, 2)[0]["damaged_pages"] == found
        assert f"{flipped}, blocks 3 to 4, 7: wrong checksum" in refusal(result, 2, stdout=result.stdout).detail


def test_a_stopped_cluster_has_no_excuse_for_a_page_not_even_a_future_position(make_place, _template):
    place = make_place()
    place.run(["cp", "-a", _template(1), place.data])
    enable_checksums(place)
    with (place.data / "base/5/1249").open("r+b") as stream:
        stream.write(struct.pack("<II", 0x7FFF, 0))
    wal_e = Watched(place, place.make_directory("store"))
    (warning,) = warnings(wal_e("backup-push", str(place.data), "--while-offline", "--verify-page-checksums"))
    assert "base/5/1249, block 0 of the cluster" in warning.message


def test_a_page_that_was_copied_half_written_is_no_damage_where_the_wal_of_the_backup_replaces_it(summed, table):
    path = table("torn")
    env = fake_lzop(summed, _WAITS)
    place = Path(env["PATH"].partition(os.pathsep)[0])
    os.mkfifo(place / "gate")
    give_to_server_user(place)
    with Watched(summed).started("backup-push", str(summed.data), "--fast", env=env) as process:
        wait_until(lambda: (place / "stopped").exists(), "the push has begun to read")
        flip(summed.data / path, 2 * PAGE + 5000)
        flip(summed.data / path, 6 * PAGE + 5000)
        summed.psql("update torn set n = -n where ctid = '(2,1)'")  # the server has the page in memory
        with (place / "gate").open("w"):
            pass
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    found = verified(summed.wal_e("backup-verify", "LATEST", "--json", check=False), 2)[0]
    assert found["damaged_pages"] == [{"relation": path, "blocks": [[6, 6]]}], "block 2 comes out of WAL"


_WAITS = """
if call == 1:
    open(f"{{place}}/stopped", "w").close()
    open(f"{{place}}/gate").read()
""".replace("{{", "{").replace("}}", "}")


def test_the_blocks_in_wal_are_those_that_pg_waldump_shows(summed, table):
    table("t")
    start = summed.psql("select pg_switch_wal(); select pg_current_wal_lsn()")
    for sql in (
        "checkpoint; create index on t (n); update t set filler = repeat('y', 150) where n % 3 = 0; delete from t where n % 5 = 0", "vacuum t",
        "set wal_compression = 'pglz'; checkpoint; update t set n = n + 1", "truncate t",
    ):  # fmt: skip
        summed.psql(sql)
    end = summed.psql("select pg_current_wal_lsn()")
    dumped = subprocess.run([bindir() / "pg_waldump", "-p", summed.data / "pg_wal", "-s", start, "-e", end], capture_output=True, text=True, check=True).stdout
    forks = ["main", "fsm", "vm", "init"]
    shown = {
        (int(spc), int(db), int(rel), forks.index(fork or "main"), int(block))
        for spc, db, rel, fork, block in re.findall(r"blkref #\d+: rel (\d+)/(\d+)/(\d+)(?: fork (\w+))? blk (\d+)", dumped)
    }
    begin, stop = (int(high, 16) << 32 | int(low, 16) for high, low in (position.split("/") for position in (start, end)))
    reader, read = WalReader(highest_rmid=255), set()
    for number in range(begin >> 20, (stop >> 20) + 1):
        with (summed.data / "pg_wal" / f"00000001{number >> 12:08X}{number & 0xFFF:08X}").open("rb", buffering=0) as stream:
            for taken in reader.take(stream):
                if begin <= taken.lsn < stop:
                    read |= {(*fork, block) for fork, block in touched_blocks(taken.data, 15)}
    assert {fork for _, _, _, fork, _ in shown} >= {0, 1, 2}
    assert len(shown) > 50
    assert read == shown


def test_without_numpy_pages_are_not_silently_left_out(summed):
    hidden = summed.make_directory("hidden")
    (hidden / "numpy.py").write_text("raise ImportError('there is none')\n")
    give_to_server_user(hidden)
    wal_e = Watched(summed)
    before = summed.wal_e("backup-list").stdout
    for words in (["backup-verify", "LATEST"], ["backup-push", str(summed.data), "--fast", "--verify-page-checksums"]):
        assert "pip install 'wal-e[verify]'" in refusal(wal_e(*words, env={"PYTHONPATH": str(hidden)}), 2, "numpy is not installed").hint
    assert "numpy" not in wal_e("backup-verify", "LATEST", "--fast", env={"PYTHONPATH": str(hidden)}).stderr
    assert summed.wal_e("backup-list").stdout == before


@contextlib.contextmanager
def repeating(server: Server, *statements: str):
    """Run each of these statements again and again, in a session of its own, until the block ends."""
    ended = threading.Event()

    def run(statement: str) -> None:
        with server.connect() as session:
            while not ended.wait(0.05):
                session.execute(statement)

    with ThreadPoolExecutor(len(statements)) as pool:
        sessions = [pool.submit(run, statement) for statement in statements]
        try:
            yield
        finally:
            ended.set()
        for session in sessions:
            session.result()


@pytest.mark.slow
@pytest.mark.parametrize("major", range(10, 19))
def test_amid_a_load_no_page_that_changes_is_taken_for_damage_and_a_damaged_one_is_found(make_server, major):
    """More pages change than the server has memory for, so it writes them at every moment; little of that comes into WAL."""
    server = make_server(major=major, checksums=True)
    archive_into_store(server, autovacuum="off", full_page_writes="on", wal_compression="on")
    server.psql("create table cold as select n, repeat('x', 200) as filler from generate_series(1, 5000) as n; create index on cold (n)")
    server.psql("create table large (n int, k int, filler text) with (fillfactor = 40)")
    server.psql("insert into large select n, 0, repeat('z', 300) from generate_series(1, 50000) as n")
    server.pgbench("-i", "-q", "-s", "1")
    cold, index = server.psql("select pg_relation_filepath('cold'), pg_relation_filepath('cold_n_idx')").split("|")
    server.psql("checkpoint")
    server.psql("update large set k = 1")  # the memory is full of this one: what is damaged now is on disk only
    flip(server.data / cold, 3 * PAGE + 5000)
    flip(server.data / index, 2 * PAGE + 5000)
    expected = sorted([{"relation": cold, "blocks": [[3, 3]]}, {"relation": index, "blocks": [[2, 2]]}], key=lambda one: one["relation"])
    changes = [f"update large set k = k + 1 where n % 7 = {rest}" for rest in range(3)]
    with loaded(server, rate=100), repeating(server, *changes, "checkpoint"):
        for _ in range(3):
            told = warnings(push(server, "--verify-page-checksums", "-p", "2"))
            assert [record.message for record in told] == [f"{one['relation']}, block {one['blocks'][0][0]} of the cluster: wrong checksum" for one in expected]
    settled(server)
    assert [backup["page_checksums"]["damaged"] for backup in json.loads(server.wal_e("backup-list", "--json").stdout)] == [expected] * 3
    [verdict] = verified(server.wal_e("backup-verify", "LATEST", "--json", check=False), 2)
    assert verdict["damaged_pages"] == expected
